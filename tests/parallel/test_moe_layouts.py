"""Experts in every layout: real processes give the single process's loss curve, counts and checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.config import ParallelConfig
from pangu_lab.launch import launch
from pangu_lab.model.parameters import parameter_specs
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import is_owner, parameter_shards
from pangu_lab.presets import preset
from pangu_lab.runs import read_curves
from pangu_lab.train import train

EP2 = {"parallel.data": 2, "parallel.expert": 2}
ALL_TO_ALL = {"parallel.all_to_all": True}
TP2 = {"parallel.tensor": 2}
PP2 = {"parallel.pipeline": 2, "parallel.micro_batches": 2}
slow = [
    pytest.param(layout, id=name, marks=pytest.mark.slow)
    for name, layout in {
        "ep2-gather": EP2,
        "dp2": {"parallel.data": 2},
        "ep2xtp2-all-to-all": {**EP2, **TP2, **ALL_TO_ALL},
        "ep2xtp2": {**EP2, **TP2},
        "ep4-accumulate": {
            "parallel.data": 4,
            "parallel.expert": 4,
            **ALL_TO_ALL,
            "train.accumulation": 2,
            "data.batch_size": 8,
        },
        "ep2-of-dp4-optimizer": {"parallel.data": 4, "parallel.expert": 2, "parallel.optimizer": True},
        "dp2-optimizer": {"parallel.data": 2, "parallel.optimizer": True},
        "pp2": PP2,
        "pp2xep2-recompute": {**PP2, **EP2, "parallel.recompute": True},
    }.items()
]


@pytest.fixture(scope="module")
def config(debug_config):
    """The debug mixture on the debug preset's data, two blocks with experts, and capacity small enough to drop tokens."""
    made = preset("debug_moe").replace(
        **{"data.path": debug_config.data.path, "data.eval_path": debug_config.data.eval_path}
    )
    return made.replace(**{"train.decay_steps": 20, "model.dropout_rate": 0.1, "model.capacity_factor": 1.0})


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The single process's run, by batch size and distance of the blocks with experts."""
    runs = {}

    def run(**changes):
        key = tuple(changes.items())
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("straight") / "run"
            train(config.replace(**{name.replace("__", "."): value for name, value in changes.items()}), runs[key])
        return runs[key]

    return run


def run_layout(config, layout, folder):
    config = config.replace(**layout)
    launch(config, folder, config.parallel.world_size)
    return folder


def assert_same_story(run, one):
    ours, theirs = read_curves(run), read_curves(one)
    assert len(ours.steps) == len(theirs.steps) == 20
    for mine, single in zip(ours.steps, theirs.steps):
        for key in ("loss", "grad_norm", "aux_loss"):
            assert mine[key] == pytest.approx(single[key], rel=1e-5 if key == "loss" else 1e-4), (key, mine["step"])
        assert mine["expert_load"] == single["expert_load"] and mine["drop_rate"] == single["drop_rate"]
    for mine, single in zip(ours.evals, theirs.evals):
        assert mine["loss"] == pytest.approx(single["loss"], rel=1e-5)
    assert any(step["drop_rate"] > 0 for step in theirs.steps)


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_experts_over_two_ranks_and_then_over_one_give_the_single_process_curve(config, straight, tmp_path):
    small = {"model.num_layers": 2, "model.moe_every": 1}  # one block with experts compiles in half the time
    run_layout(config, {**small, **EP2, **ALL_TO_ALL, "train.steps": 10}, tmp_path / "run")
    train(config.replace(**small), tmp_path / "run")  # the checkpoint's experts are put together again
    assert_same_story(tmp_path / "run", straight(model__num_layers=2, model__moe_every=1))


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", slow)
def test_a_layout_gives_the_loss_curve_of_the_single_process(config, straight, tmp_path, layout):
    changes = {"model.moe_every": 1} if "parallel.pipeline" in layout else {}
    one = straight(data__batch_size=layout.get("data.batch_size", 4), model__moe_every=1 if changes else 2)
    run = run_layout(config.replace(**changes), layout, tmp_path / "run")
    assert_same_story(run, one)
    ours = Checkpoint(run / "checkpoints" / "step-00000020")
    single = Checkpoint(one / "checkpoints" / "step-00000020")
    assert set(ours.tensors) == set(single.tensors)  # every parameter and moment, each whole
    for name in single.tensors:
        assert np.allclose(ours.read(name), single.read(name), rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_checkpoint_goes_on_with_experts_spread_otherwise(config, straight, tmp_path):
    run_layout(config, {**EP2, **TP2, "train.steps": 10}, tmp_path / "run")
    run_layout(config, {"parallel.data": 4, "parallel.expert": 4, **ALL_TO_ALL}, tmp_path / "run")
    assert_same_story(tmp_path / "run", straight())


def test_every_element_of_experts_spread_over_ranks_counts_and_is_written_once():
    model = preset("debug_moe").model
    specs = parameter_specs(model)
    layout = ParallelConfig(data=4, expert=2, tensor=2)
    owned = {name: np.zeros(spec.shape, int) for name, spec in specs.items()}
    for rank in range(8):
        mesh = Mesh(layout, rank)
        for name, shard in parameter_shards(specs, mesh, model.num_layers).items():
            if is_owner(specs[name], mesh):
                shard.of(owned[name])[...] += 1
    assert all((count == 1).all() for count in owned.values())


def test_expert_ranks_are_neighbours_within_the_data_dimension():
    layout = ParallelConfig(pipeline=2, data=4, expert=2, tensor=2, micro_batches=2)
    for rank in range(16):
        mesh = Mesh(layout, rank)
        assert mesh.index("data") == mesh.index("replica") * 2 + mesh.index("expert")
        assert set(mesh.group("expert")) | set(mesh.group("replica")) <= set(mesh.group("data"))
        assert sorted(mesh.group("replica", "expert")) == mesh.group("data")
    assert Mesh(layout, 5).group("expert") == [5, 7] and Mesh(layout, 5).group("replica") == [1, 5]
