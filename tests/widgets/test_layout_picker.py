"""The picker shows the planner's layouts; what a rank is said to hold is what training puts there."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.model.parameters import parameter_specs
from pangu_lab.parallel.mesh import Mesh, check_layout
from pangu_lab.planner import plan
from pangu_lab.presets import preset
from widgets.layout_picker import MOST_ROWS, LayoutPicker, held_by, mesh_of


def test_layouts_and_their_order_are_the_planners():
    picker = LayoutPicker("2.6B", devices=8)
    found = plan(preset("2.6B"), 8)
    shown = [(row["pipeline"], row["data"], row["tensor"], row["total"], row["fits"]) for row in picker.layouts]
    assert shown == [
        (item.parallel.pipeline, item.parallel.data, item.parallel.tensor, item.total, item.fits)
        for item in found.layouts
    ]
    assert [row["recommended"] for row in picker.layouts].count(True) == 1 and picker.why == list(found.why)
    assert picker.why_zh == list(found.why_zh) and "放得下" in picker.why_zh[-1]
    assert picker.config.parallel == found.chosen.parallel
    picker.chosen = 2
    assert picker.config.parallel == found.layouts[2].parallel
    check_layout(picker.config)


def test_devices_and_memory_move_the_plan_and_what_cannot_be_is_said():
    picker = LayoutPicker("2.6B", devices=8)
    before = picker.layouts
    picker.memory = 8.0
    assert picker.layouts[0]["capacity"] < before[0]["capacity"]
    picker.memory, picker.devices = None, 0
    assert "0 devices" in picker.note and picker.layouts == [] and picker.note in picker.still_text()
    with pytest.raises(InputError, match="0 devices"):
        picker.config
    picker.devices = 16
    assert picker.note == "" and picker.layouts and "<script" not in picker.still_html()


def test_without_a_page_the_parts_of_a_rank_and_what_is_left_out_are_told_in_both_languages():
    picker = LayoutPicker("2.6B", devices=16)
    wide = max(range(len(picker.layouts)), key=lambda number: picker.layouts[number]["data"])
    picker.chosen = wide
    assert picker.mesh["hidden"] == 16 - MOST_ROWS and f"and {16 - MOST_ROWS} more data ranks" in picker.still_html()
    picker.chosen = next(n for n, row in enumerate(picker.layouts) if row["tensor"] > 1 and row["pipeline"] == 1)
    picker.rank = 1
    row = next(row for row in picker.held["rows"] if row["here"] and row["where"] == "block")
    part = " × ".join(f"{first}–{last}" for first, last in row["here"])
    assert (
        f"  0–{max(row['layers'])}  {row['name']}  {' × '.join(map(str, row['whole']))}: {part}"
        in picker.still_text().splitlines()
    )
    assert "Rank 1 (stage 0" in picker.still_text() and "more data ranks" not in picker.still_html()
    picker.language = "zh"
    assert "进程 1" in picker.still_text() and "流水线 × 数据 × 张量" in picker.still_text()


@pytest.mark.parametrize(
    "name,sizes",
    [
        ("debug", dict(pipeline=2, data=2, tensor=2, micro_batches=2)),
        ("debug_moe", dict(pipeline=1, data=2, tensor=2, expert=2, all_to_all=True)),
    ],
)
def test_what_the_ranks_hold_covers_every_parameter_once_for_each_copy(name, sizes):
    config = preset(name).replace(**{f"parallel.{key}": value for key, value in sizes.items()})
    specs = parameter_specs(config.model)
    seen = {key: np.zeros(spec.shape, int) for key, spec in specs.items()}
    for rank in range(config.parallel.world_size):
        held = held_by(config.model, config.parallel, rank)
        size = 0
        for row in held["rows"]:
            names = (
                [f"backbone.blocks.{layer}.{row['name']}" for layer in row["layers"]]
                if row["where"] == "block"
                else [
                    key
                    for key in specs
                    if key.endswith(row["name"])
                    and ".blocks." not in key
                    and ("top_query" in key) == (row["where"] == "query_layer")
                ]
            )
            for key in names:
                part = tuple(slice(first, last + 1) for first, last in row["here"]) if row["here"] else ...
                seen[key][part] += 1
                size += seen[key][part].size
        assert size == held["parameters"]
    for key, counts in seen.items():
        assert counts.min() == counts.max() >= 1, key  # every element is as often there as every other


def test_the_mesh_shows_every_rank_at_its_place_and_hides_only_copies():
    parallel = (
        preset("debug")
        .replace(
            **{
                "parallel.pipeline": 2,
                "parallel.data": 12,
                "parallel.tensor": 2,
                "parallel.micro_batches": 2,
                "data.batch_size": 24,
            }
        )
        .parallel
    )
    mesh = mesh_of(parallel, 4)
    assert mesh["hidden"] == 12 - MOST_ROWS and [stage["layers"] for stage in mesh["stages"]] == [[0, 1], [2, 3]]
    for number, stage in enumerate(mesh["stages"]):
        for data, ranks in enumerate(stage["ranks"]):
            for tensor, rank in enumerate(ranks):
                assert Mesh(parallel, rank).coordinates == {"pipeline": number, "data": data, "tensor": tensor}
