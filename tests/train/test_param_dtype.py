"""``train.param_dtype=float16``: the layers' matrices are halves on the device and in checkpoints, the states whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint.folder import Checkpoint
from pangu_lab.launch import launch
from pangu_lab.model.parameters import is_matrix, parameter_specs
from pangu_lab.runs import read_events
from pangu_lab.train import train

SETTINGS = {"model.compute_dtype": "float16", "train.loss_scale": 1024.0, "train.start_lr": 3e-3}
HALVES = {"train.param_dtype": "float16"}


def losses(run) -> np.ndarray:
    return np.array([event["loss"] for event in read_events(run) if event["kind"] == "step"])


@pytest.fixture(scope="module")
def config(debug_config):
    return debug_config.replace(**SETTINGS)


@pytest.fixture(scope="module")
def halves(config, tmp_path_factory):
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("param-dtype") / "halves"
    train(config.replace(**HALVES, **{"train.steps": 12, "train.checkpoint_every": 6}), folder)
    return folder


def test_losses_follow_those_of_fp32_weights(config, halves, tmp_path):
    train(config.replace(**{"train.steps": 12}), tmp_path / "whole")
    found, wanted = losses(halves), losses(tmp_path / "whole")
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
    assert not np.array_equal(found, wanted) and found[-1] < found[0] - 0.1


def test_matrices_are_halves_in_the_checkpoint_and_all_else_is_in_fp32(config, halves):
    saved = Checkpoint(halves / "checkpoints" / "step-00000012")
    for name in parameter_specs(config.model):
        assert saved.dtype(name) == ("float16" if is_matrix(name) else "float32")
        assert saved.dtype(f"adam_m.{name}") == saved.dtype(f"adam_v.{name}") == "float32"


def test_a_run_goes_on_bit_equal(config, halves, tmp_path):
    half = config.replace(**HALVES, **{"train.steps": 12, "train.decay_steps": 12})
    train(half.replace(**{"train.steps": 6}), tmp_path / "parts")
    train(half, tmp_path / "parts")
    assert np.array_equal(losses(tmp_path / "parts"), losses(halves))


@pytest.mark.slow
def test_halves_start_a_run_with_fp32_weights(config, halves, tmp_path):
    result = train(config.replace(**{"train.steps": 1, "train.init_from": str(halves)}), tmp_path / "whole")
    assert losses(tmp_path / "whole")[0] == pytest.approx(losses(halves)[-1], rel=0.2)
    assert Checkpoint(result.checkpoint).dtype("backbone.blocks.0.output.mapping.weight") == "float32"


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "layout",
    [
        {"parallel.data": 2, "parallel.optimizer": True},
        pytest.param({"parallel.data": 2, "parallel.optimizer": "parameters"}, marks=pytest.mark.slow),
        pytest.param({"parallel.data": 1, "parallel.tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"parallel.data": 1, "parallel.pipeline": 2, "parallel.micro_batches": 2}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(config, halves, tmp_path, layout):
    launch(config.replace(**HALVES, **layout, **{"train.steps": 12}), tmp_path / "two", 2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(halves), rtol=2e-3)
