"""One model, every layout: real processes give the single process's loss curve, and load each other's checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.launch import launch
from pangu_lab.train import read_curves, train

DP2 = {"parallel.data": 2}
TP2 = {"parallel.tensor": 2}
PP2 = {"parallel.pipeline": 2, "parallel.micro_batches": 2}
OPT2 = {"parallel.data": 2, "parallel.optimizer": True}
RECOMPUTE = {"parallel.recompute": True}
ACCUMULATE = {"train.accumulation": 2}
quick = [pytest.param(layout, id=name) for name, layout in
         {"tp2": TP2, "opt2": OPT2, "pp2-recompute": {**PP2, **RECOMPUTE}}.items()]
slow = [pytest.param(layout, id=name, marks=pytest.mark.slow) for name, layout in {
    "dp2": DP2, "pp2": PP2, "dp2-accumulate": {**DP2, **ACCUMULATE}, "tp2-recompute": {**TP2, **RECOMPUTE},
    "tp2-accumulate": {**TP2, **ACCUMULATE}, "tp2xdp2": {**TP2, **DP2}, "tp2xopt2-recompute": {**TP2, **OPT2, **RECOMPUTE},
    "pp2xdp2": {**PP2, "parallel.data": 2}, "pp2xtp2": {**PP2, **TP2},
    "pp4-accumulate": {"parallel.pipeline": 4, "parallel.micro_batches": 4, "data.batch_size": 8, **ACCUMULATE},
}.items()]
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def config(debug_config):
    """With dropout, whose masks must agree between layouts too."""
    return debug_config.replace(**{"model.dropout_rate": 0.1, "train.decay_steps": 20})


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The single process's run, by batch size."""
    runs = {}

    def run(batch_size):
        if batch_size not in runs:
            folder = tmp_path_factory.mktemp("straight") / str(batch_size)
            train(config.replace(**{"data.batch_size": batch_size}), folder)
            runs[batch_size] = folder
        return runs[batch_size]

    return run


def run_layout(config, layout, folder):
    config = config.replace(**layout)
    launch(config, folder, config.parallel.world_size)
    return folder


def losses(run):
    return np.array([event["loss"] for event in read_curves(run).steps])


@pytest.mark.parametrize("layout", quick + slow)
def test_a_layout_gives_the_loss_curve_of_the_single_process(config, straight, tmp_path, layout):
    one = straight(layout.get("data.batch_size", config.data.batch_size))
    run = run_layout(config, layout, tmp_path / "run")
    want, got = losses(one), losses(run)
    assert len(got) == 20 and np.allclose(got, want, rtol=1e-5, atol=0)
    for mine, theirs in zip(read_curves(run).evals, read_curves(one).evals):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours = Checkpoint(run / "checkpoints" / "step-00000020")
    single = Checkpoint(one / "checkpoints" / "step-00000020")
    assert set(ours.tensors) == set(single.tensors)  # every parameter and moment, each whole
    for name in single.tensors:
        assert np.allclose(ours.read(name), single.read(name), rtol=1e-3, atol=1e-5), name


def test_a_checkpoint_of_one_layout_goes_on_under_another(config, straight, tmp_path):
    half = {"train.steps": 10}
    run_layout(config, {**TP2, **half}, tmp_path / "run")
    run_layout(config, OPT2, tmp_path / "run")  # tensor-parallel before, optimizer-parallel now
    assert np.allclose(losses(tmp_path / "run"), losses(straight(config.data.batch_size)), rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("first,second", [(PP2, {}), ({}, PP2), (OPT2, {**PP2, "parallel.tensor": 2})])
def test_more_layouts_load_each_others_checkpoints(config, straight, tmp_path, first, second):
    half = {"train.steps": 10}
    run_layout(config, {**first, **half}, tmp_path / "run")
    run_layout(config, second, tmp_path / "run")
    assert np.allclose(losses(tmp_path / "run"), losses(straight(config.data.batch_size)), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_within_a_layout_going_on_is_bit_equal(config, tmp_path):
    layout = TP2
    run_layout(config, layout, tmp_path / "straight")
    run_layout(config, {**layout, "train.steps": 10}, tmp_path / "parts")
    run_layout(config, layout, tmp_path / "parts")
    assert (losses(tmp_path / "parts") == losses(tmp_path / "straight")).all()
