"""All ranks clip alike, scale alike and skip the same step, whichever of them overflowed; copies stay equal bit for bit."""

from __future__ import annotations

import json

import pytest

from pangu_lab.launch import launch
from pangu_lab.model.parameters import WORD, parameter_specs

LAYOUTS = {
    "dp2": {"parallel.data": 2},
    "tp2": {"parallel.data": 1, "parallel.tensor": 2},
    "pp2": {"parallel.data": 1, "parallel.pipeline": 2, "parallel.micro_batches": 4},
}
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def seen(debug_config, tmp_path_factory):
    """What both ranks saw under each layout: {layout: [rank 0, rank 1]}."""
    run = tmp_path_factory.mktemp("agreement") / "launch"
    run.mkdir()
    config = debug_config.replace(
        **{
            "model.compute_dtype": "float16",
            "train.loss_scale": 1024.0,
            "train.loss_scale_window": 5,
            "data.batch_size": 8,
            "train.eval_every": 20,
            "train.checkpoint_every": 20,
            "parallel.data": 2,
        }
    )
    (run / "trainings.json").write_text(json.dumps(list(LAYOUTS.items())), encoding="utf-8")
    launch(config, run, 2, program=("-m", "tests.parallel.agreement_program"))
    return {
        name: [json.loads((run / f"agreement-{name}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        for name in LAYOUTS
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_overflow_of_one_rank_is_skipped_by_all_and_norm_and_scale_agree(seen, name):
    ours, theirs = (rank["events"] for rank in seen[name])
    assert ours == theirs
    assert [event["kind"] for event in ours] == ["step"] * 3 + ["overflow"] + ["step"] * 17
    assert ours[3]["step"] == 3 and ours[3]["loss_scale"] == 512.0
    assert [event["loss_scale"] for event in ours[4:10]] == [512.0] * 4 + [
        1024.0
    ] * 2  # five good steps double it again


def test_copies_on_data_and_tensor_ranks_are_equal_bit_for_bit_after_20_steps(seen, debug_config):
    ours, theirs = (rank["digests"] for rank in seen["dp2"])
    assert ours == theirs
    ours, theirs = (rank["digests"] for rank in seen["tp2"])
    specs = parameter_specs(debug_config.model)
    copies = [name for name, spec in specs.items() if spec.tensor_axis is None]
    assert copies and all(ours[name] == theirs[name] for name in copies)
    assert ours[WORD] != theirs[WORD]  # halves of the vocabulary


def test_the_tied_embedding_is_equal_on_first_and_last_stage_after_20_steps(seen):
    ours, theirs = (rank["digests"] for rank in seen["pp2"])
    assert ours[WORD] == theirs[WORD] and set(ours) & set(theirs) == {WORD}


def test_stages_of_a_real_pipeline_follow_1f1b_and_keep_no_more_than_there_are_stages_to_come(seen):
    first, last = (
        [(kind, number) for kind, number in rank["passes"] if kind in ("forward", "backward")] for rank in seen["pp2"]
    )
    batch = [
        ("forward", 0),
        ("forward", 1),
        ("backward", 0),
        ("forward", 2),
        ("backward", 1),
        ("forward", 3),
        ("backward", 2),
        ("backward", 3),
    ]
    assert first == batch * 21
    assert last == [("backward", number) for number in range(4)] * 21  # its forward is in the same graph
    assert [rank["kept"] for rank in seen["pp2"]] == [2, 1]
