"""Incremental training: weights that exist are the starting point, everything else begins anew."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint, load_weights
from pangu_lab.checkpoint.convert import convert_checkpoint
from pangu_lab.checkpoint.folder import list_checkpoints
from pangu_lab.data import open_dataset
from pangu_lab.errors import InputError
from pangu_lab.launch import launch
from pangu_lab.runs import read_curves, read_events
from pangu_lab.train import train
from pangu_lab.train.loop import Trainer
from pangu_lab.train.starting import starting_point, starting_values


@pytest.fixture(scope="module")
def release(debug_run, tmp_path_factory):
    """The run's weights as they come back from the community's layout, with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("release")
    convert_checkpoint(debug_run, folder / "theirs", "gpt_pangu")
    convert_checkpoint(
        folder / "theirs",
        folder / "mine",
        overrides={"model.num_heads": 4, "model.hidden_act": "gelu"},
        tokenizer=str(debug_run / "tokenizer"),
    )
    return folder / "mine"


def after(config, source, **changes):
    return config.replace(**{"train.init_from": str(source), "train.steps": 4, **changes})


def test_training_begins_at_the_loss_that_the_weights_had_and_at_step_one(debug_config, debug_run, release, tmp_path):
    run = tmp_path / "run"
    result = train(after(debug_config, release), run)
    before, now = read_curves(debug_run), read_curves(run)
    assert now.evals[0]["loss"] == pytest.approx(before.evals[-1]["loss"], rel=1e-5)
    assert [event["step"] for event in now.steps] == [1, 2, 3, 4] and result.notes == ()
    assert [event["lr"] for event in now.steps[:4]] == [event["lr"] for event in before.steps[:4]]  # warms up again
    start = next(event for event in read_events(run) if event["kind"] == "start")
    assert start["init_from"] == str(release)


@pytest.mark.parametrize("moments", [False, True])
def test_what_a_run_begins_with_is_in_memory_once(debug_config, moments):
    values, alive, most = starting_values(debug_config), [], 0

    def read(name, offset, shape):
        nonlocal most
        value = values(name.removeprefix("adam_m.").removeprefix("adam_v."), offset, shape).copy()
        alive.append(weakref.ref(value))
        most = max(most, sum(one() is not None for one in alive))
        return value

    trainer = Trainer(debug_config, None, [0], None)
    trainer.build(read, moments)
    assert len(alive) == len(trainer.shards) * (3 if moments else 1)
    assert most <= 2 and not any(one() is not None for one in alive), "each is read, copied and let go"


def test_the_moments_begin_at_zero(debug_config, debug_run, tmp_path):
    train(after(debug_config, debug_run, **{"train.steps": 1}), tmp_path / "run")
    first = Checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    name = "backbone.layernorm.gamma"
    # after one step from zero, first moment = (1 − β1) · g and second = (1 − β2) · g²
    g = first.read(f"adam_m.{name}") / (1 - debug_config.train.beta1)
    assert np.allclose(first.read(f"adam_v.{name}"), (1 - debug_config.train.beta2) * g * g, rtol=1e-4, atol=1e-12)


def test_fewer_positions_take_the_first_ones_and_say_so(debug_config, debug_run):
    shorter = after(debug_config, debug_run, **{"model.num_positions": 16, "data.seq_length": 16})
    point = starting_point(shorter)
    weights, _ = load_weights(debug_run)
    name = "backbone.position_embedding.embedding_table"
    assert (point.read(name, (0, 0), (16, 32)) == weights[name][:16]).all()
    assert "the first 16 of 64 positions" in point.notes[0]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model.num_positions": 128}, "64 positions, fewer than model.num_positions=128"),
        ({"model.vocab_size": 520}, "model.vocab_size=512, this run asks for 520"),
        ({"model.num_heads": 8}, "model.num_heads=4, this run asks for 8.*--set model.num_heads=4"),
        ({"model.hidden_act": "fast_gelu"}, "model.hidden_act=gelu"),
    ],
)
def test_another_network_is_refused_by_the_setting(debug_config, debug_run, change, words):
    with pytest.raises(InputError, match=words):
        starting_point(after(debug_config, debug_run, **change))


def test_another_vocabulary_is_refused_by_the_data_set(debug_config, debug_run, tmp_path):
    from pangu_lab.data import prepare, sample_files
    from pangu_lab.tokenizer import load_tokenizer, train_vocabulary

    train_vocabulary(sample_files("heldout"), tmp_path / "tokenizer", 500)
    prepare(sample_files("heldout"), tmp_path / "data", load_tokenizer(str(tmp_path / "tokenizer")), record_length=65)
    with pytest.raises(InputError, match="another tokenizer than the weights"):
        starting_point(after(debug_config, debug_run), open_dataset(tmp_path / "data"))


def test_weights_that_are_not_there_are_named(debug_config, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        starting_point(after(debug_config, tmp_path / "nothing"))


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.tensor": 2},
        pytest.param({"parallel.pipeline": 2, "parallel.micro_batches": 2}, marks=pytest.mark.slow),
        pytest.param({"parallel.data": 2, "parallel.optimizer": True}, marks=pytest.mark.slow),
    ],
)
def test_a_layout_begins_where_the_single_process_does(debug_config, release, tmp_path, layout):
    config = after(debug_config, release)
    train(config, tmp_path / "one")
    launch(config.replace(**layout), tmp_path / "two", 2)
    one, two = ([event["loss"] for event in read_curves(tmp_path / name).steps] for name in ("one", "two"))
    assert len(two) == 4 and np.allclose(one, two, rtol=1e-5, atol=0)
