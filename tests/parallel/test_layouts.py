"""One model, every layout: real processes give the single process's loss curve, and load each other's checkpoints."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.launch import launch
from pangu_lab.runs import read_curves
from pangu_lab.train import train

DP2 = {"parallel.data": 2}
TP2 = {"parallel.tensor": 2}
PP2 = {"parallel.pipeline": 2, "parallel.micro_batches": 2}
OPT2 = {"parallel.data": 2, "parallel.optimizer": "states"}
PARAMETERS = {"parallel.data": 2, "parallel.optimizer": "parameters"}
SEQUENCE = {"parallel.sequence": True}
RECOMPUTE = {"parallel.recompute": True}
ACCUMULATE = {"train.accumulation": 2}
WAYS = {"": {}, "-recompute": RECOMPUTE, "-accumulate": ACCUMULATE, "-both": {**RECOMPUTE, **ACCUMULATE}}
GRID = {
    "dp2": DP2,
    "tp2": TP2,
    "pp2": PP2,
    "opt2": OPT2,
    "tp2xdp2": {**TP2, **DP2},
    "pp2xdp2": {**PP2, **DP2},
    "pp2xtp2": {**PP2, **TP2},
}
MORE = {
    "tp2-sequence": {**TP2, **SEQUENCE},
    "parameters2": PARAMETERS,
    "parameters2-both": {**PARAMETERS, **WAYS["-both"]},
    "tp2xdp2-sequence-both": {**TP2, **DP2, **SEQUENCE, **WAYS["-both"]},
    "pp2xtp2-sequence": {**PP2, **TP2, **SEQUENCE},
    "parameters2xtp2-sequence": {**PARAMETERS, **TP2, **SEQUENCE},
    "parameters2xpp2": {**PARAMETERS, **PP2},
    "opt2xtp2-recompute": {**OPT2, **TP2, **RECOMPUTE},
    "pp4-accumulate": {"parallel.pipeline": 4, "parallel.micro_batches": 4, **ACCUMULATE},
}
LAYOUTS = {**{name + way: {**layout, **more} for name, layout in GRID.items() for way, more in WAYS.items()}, **MORE}
CHANGES = {  # ten steps under the first layout, ten under the second
    "tp2-to-opt2": (TP2, OPT2),
    "pp2-to-dp2": (PP2, DP2),
    "opt2-to-pp2": (OPT2, PP2),
    "dp2-to-parameters2": (DP2, PARAMETERS),
    "opt2-to-parameters2": (OPT2, PARAMETERS),
    "tp2-sequence-to-parameters2": ({**TP2, **SEQUENCE}, PARAMETERS),
    "parameters2-to-tp2": (PARAMETERS, TP2),
    "tp2xdp2-to-pp2xtp2": (LAYOUTS["tp2xdp2"], LAYOUTS["pp2xtp2"]),
    "pp2xtp2-to-pp2xdp2": (LAYOUTS["pp2xtp2"], LAYOUTS["pp2xdp2"]),
    "pp2xdp2-to-parameters2xtp2-sequence": (LAYOUTS["pp2xdp2"], LAYOUTS["parameters2xtp2-sequence"]),
}
AGAIN = ("dp2", "tp2", "pp2-recompute", "opt2", "parameters2", "tp2-sequence", "pp2xtp2", "tp2xdp2")
QUICK = ("dp2-recompute", "tp2-sequence", "pp2")
QUICK_CHANGE = "opt2-to-parameters2"
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1800)]


def processes(layout) -> int:
    return math.prod(layout.get(f"parallel.{name}", 1) for name in ("data", "tensor", "pipeline"))


@pytest.fixture(scope="module")
def config(debug_config):
    """With dropout, whose masks must agree between layouts too, and all four layers, for a pipeline of four stages."""
    return debug_config.replace(
        **{"model.num_layers": 4, "model.dropout_rate": 0.1, "train.decay_steps": 20, "data.batch_size": 8}
    )


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The single process's run."""
    folder = tmp_path_factory.mktemp("single") / "run"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def config_of_two(config):
    """For `make test`: half the layers compile in half the time."""
    return config.replace(**{"model.num_layers": 2})


@pytest.fixture(scope="module")
def straight_of_two(config_of_two, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single-of-two") / "run"
    train(config_of_two, folder)
    return folder


def run_trainings(config, folder, trainings):
    """Each (run's name, layout) of one number of processes, in one launch; the folder of the runs."""
    folder.mkdir()
    world = processes(trainings[0][1])
    (folder / "trainings.json").write_text(json.dumps(trainings), encoding="utf-8")
    launch(
        config.replace(**{"parallel.data": world}), folder, world, program=("-m", "tests.parallel.trainings_program")
    )
    return folder / "runs"


def trainings(layouts, changes, again):
    """What is to be trained: whole runs, runs that change their layout half way, and runs that go on within it."""
    half = {"train.steps": 10}
    result = [(name, LAYOUTS[name]) for name in [*layouts, *again]]
    for name in changes:
        first, second = CHANGES[name]
        result += [(name, {**first, **half}), (name, second)]
    for name in again:
        result += [(f"{name}-again", {**LAYOUTS[name], **half}), (f"{name}-again", LAYOUTS[name])]
    return [(name, {"parallel.data": 1, **layout}) for name, layout in result]


@pytest.fixture(scope="module")
def quick(config_of_two, tmp_path_factory):
    """What `make test` looks at: all in one launch of two processes."""
    folder = tmp_path_factory.mktemp("quick") / "launch"
    return run_trainings(config_of_two, folder, trainings(QUICK, [QUICK_CHANGE], []))


@pytest.fixture(scope="module")
def run_of(config, tmp_path_factory):
    """``run_of(name)``: the run of that layout, change of layout or going on, trained when it is first asked for.

    So a part of the grid, chosen with ``-k``, takes its part of the time.
    """

    @functools.cache
    def trained(name):
        layouts = [name] if name in LAYOUTS else []
        changes = [name] if name in CHANGES else []
        again = [name.removesuffix("-again")] if name.endswith("-again") else []
        return run_trainings(config, tmp_path_factory.mktemp("grid") / "launch", trainings(layouts, changes, again))

    return lambda name: trained(name) / name


def losses(run):
    return np.array([event["loss"] for event in read_curves(run).steps])


def check_curve(run, one, name, tell):
    want, got = losses(one), losses(run)
    assert len(got) == 20
    tell(f"largest relative difference, {name}", float(np.abs(got / want - 1).max()))
    assert np.allclose(got, want, rtol=1e-5, atol=0)
    for mine, theirs in zip(read_curves(run).evals, read_curves(one).evals):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours, single = (Checkpoint(folder / "checkpoints" / "step-00000020") for folder in (run, one))
    assert set(ours.tensors) == set(single.tensors)  # every parameter and moment, each whole
    for tensor in single.tensors:
        assert np.allclose(ours.read(tensor), single.read(tensor), rtol=1e-3, atol=1e-5), tensor


def check_again(straight_run, parts):
    assert (losses(parts) == losses(straight_run)).all()
    whole, joined = (Checkpoint(run / "checkpoints" / "step-00000020") for run in (straight_run, parts))
    for name in whole.tensors:
        assert (whole.read(name) == joined.read(name)).all(), name


@pytest.mark.parametrize("name", QUICK)
def test_a_layout_gives_the_loss_curve_of_the_single_process(quick, straight_of_two, name, record_testsuite_property):
    check_curve(quick / name, straight_of_two, name, record_testsuite_property)


def test_a_checkpoint_of_one_layout_goes_on_under_another(quick, straight_of_two, record_testsuite_property):
    check_curve(quick / QUICK_CHANGE, straight_of_two, QUICK_CHANGE, record_testsuite_property)


def test_the_memory_of_each_rank_is_told_and_slices_are_smaller(quick):
    whole = events_of(quick / "dp2-recompute")[-1]["ranks"]
    states, spread = (event["ranks"] for event in events_of(quick / QUICK_CHANGE))
    assert all([entry["rank"] for entry in ranks] == [0, 1] for ranks in (whole, states, spread))
    assert all(entry["peak_mb"] > 100 for entry in whole)
    for rank in range(2):
        assert states[rank]["optimizer_mb"] == pytest.approx(whole[rank]["optimizer_mb"] / 2, rel=0.01, abs=0.1)
        assert states[rank]["weights_mb"] == whole[rank]["weights_mb"]
        assert spread[rank]["weights_mb"] < 0.6 * whole[rank]["weights_mb"]


def events_of(run):
    return [event for event in read_curves(run).others if event["kind"] == "memory"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYOUTS, *CHANGES])
def test_every_layout_and_change_gives_the_loss_curve_of_the_single_process(
    run_of, straight, name, record_testsuite_property
):
    check_curve(run_of(name), straight, name, record_testsuite_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAIN)
def test_going_on_is_bit_equal_within_every_layout(run_of, name):
    parts = run_of(f"{name}-again")
    check_again(parts.with_name(name), parts)
