"""Plans for serving: the published layout comes out, memory is what the network for generation holds, the command is right."""

from __future__ import annotations

import json
import math
import shlex

import pytest

from pangu_lab.cli import build_parser, main
from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.inference import inference_shapes
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.planner.serving import part_need, plan_serving
from pangu_lab.presets import preset

GB = 2**30


def layout(item):
    return item.parallel.tensor, item.parallel.pipeline


def test_200b_is_served_by_4_stages_of_8_tensor_parallel_devices_as_published():
    found = plan_serving(preset("200B"), 32, 32 * GB, dtype="float16")
    assert layout(found.chosen) == (8, 4)
    assert [len(stage.layers) for stage in found.chosen.stages] == [16] * 4
    assert 12 * GB < found.chosen.fullest.memory["weights"] < 13 * GB
    per_sequence = 2 * 4 * 64 * 16384 * 1024 / 32  # keys and values in fp32
    assert found.chosen.fullest.memory["key-value cache"] == 16 * per_sequence
    assert not any(item.fits for item in plan_serving(preset("200B"), 8, 32 * GB, dtype="float16").layouts)


@pytest.mark.parametrize("name", ["debug", "2.6B", "debug_moe"])
def test_every_layout_splits_the_devices_and_those_that_fit_come_first(name):
    found = plan_serving(preset(name), 4, 32 * GB)
    model = preset(name).model
    assert sorted(layout(item) for item in found.layouts) == (
        [(1, 4)] if model.moe_layers else [(1, 4), (2, 2), (4, 1)]
    )
    for item in found.layouts:
        assert [layer for stage in item.stages for layer in stage.layers] == list(range(model.num_layers))
        assert item.tokens_per_second == pytest.approx(16 / item.token_seconds)
    assert [item.fits for item in found.layouts] == sorted((item.fits for item in found.layouts), reverse=True)


@pytest.mark.parametrize("tensor, pipeline", [(1, 2), (2, 2), (2, 1)])
def test_weights_and_cache_are_those_that_the_ranks_hold(tensor, pipeline):
    model, parallel = preset("debug").model, ParallelConfig(tensor=tensor, pipeline=pipeline)
    for rank in range(parallel.world_size):
        shapes = inference_shapes(model, 128, Mesh(parallel, rank))
        need = part_need(model, 128, Mesh(parallel, rank)).parts
        assert need["weights"] + need["key-value cache"] == 4 * sum(map(math.prod, shapes.values()))
    whole = 4 * sum(map(math.prod, inference_shapes(model, 128).values()))
    assert need["weights"] + need["key-value cache"] < whole


def test_half_precision_and_fewer_sequences_take_less():
    base, half, few = (
        plan_serving(preset("13B"), 2, 32 * GB, **more)
        for more in ({}, {"dtype": "float16"}, {"dtype": "float16", "sequences": 1, "length": 256})
    )
    memory = [found.layouts[0].fullest.memory for found in (base, half, few)]
    assert memory[1]["weights"] < 0.51 * memory[0]["weights"]
    assert memory[2]["key-value cache"] * 64 == memory[1]["key-value cache"]
    assert (
        base.chosen is None and base.enough == 4 and "4 such devices would do." in base.why and few.chosen is not None
    )


@pytest.mark.parametrize(
    "given, said",
    [
        ({"devices": 0}, "--devices must be at least 1"),
        ({"devices": 7}, "no layout of 7 devices"),
        ({"devices": 2, "sequences": 0}, "--sequences must be at least 1"),
        ({"devices": 2, "length": 65}, "--length must be from 1 to 64"),
        ({"devices": 2, "hardware": "a10"}, "did you mean 'a100'"),
        ({"devices": 2, "dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(given, said):
    with pytest.raises(InputError, match=said) as caught:
        plan_serving(preset("debug"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, command",
    [
        (
            "--preset 200B --devices 32 --memory 32GB --dtype float16",
            "serve --from DIR --rank-table FILE --pipeline 4 --cache-slots 16384 --dtype float16",
        ),
        (
            "--preset 2.6B --devices 4 --hardware cpu --memory 8GB --sequences 4 --length 512",
            "serve --from DIR --nproc 4 --pipeline 2 --cache-slots 2048",
        ),
        ("--preset debug --devices 1 --sequences 2", "serve --from DIR --cache-slots 128"),
    ],
)
def test_the_command_that_serves_the_layout_is_shown_and_parses(options, command, capsys):
    assert main(["plan", "--for", "serving", *options.split(), "--json"]) == 0
    *lines, facts = capsys.readouterr().out.splitlines()
    [said] = [line.partition(": pangu-lab ")[2] for line in lines if line.startswith("use it with")]
    assert said == command and callable(build_parser().parse_args(shlex.split(said)).handler)
    assert json.loads(facts)["chosen"]["fits"] is True


@pytest.mark.parametrize(
    "options, said",
    [
        (["--for", "serving"], "give --devices N"),
        (["--for", "serving", "--devices", "2", "--batch", "4"], "--for training"),
        (["--devices", "2", "--sequences", "4"], "--sequences belongs to `plan --for serving`"),
    ],
)
def test_options_of_the_other_purpose_are_refused(options, said, capsys):
    assert main(["plan", "--preset", "debug", *options]) == 2
    assert said in capsys.readouterr().err


def test_where_nothing_fits_the_exit_code_says_so(capsys):
    assert main(["plan", "--for", "serving", "--preset", "200B", "--devices", "2", "--memory", "32GB"]) == 1
    said = capsys.readouterr().out
    assert "No layout on 2 of these devices fits" in said and "use it with" not in said
