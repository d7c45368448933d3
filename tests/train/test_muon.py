"""Muon: what it makes of a matrix, the same in every layout, and a training that goes on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch import launch
from pangu_lab.ops.muon import orthogonalised
from pangu_lab.runs import read_events
from pangu_lab.train import train

MUON = {
    "train.optimizer": "muon",
    "train.schedule": "wsd",
    "train.start_lr": 5e-3,
    "train.batch_doublings": (6, 12),
    "train.steps": 16,
    "train.eval_every": 8,
    "train.checkpoint_every": 8,
}
LAYOUTS = {
    "tp2": {"parallel.data": 1, "parallel.tensor": 2},
    "states2": {"parallel.data": 2, "parallel.optimizer": True},
}
MORE = {
    "dp2": {"parallel.data": 2},
    "parameters2": {"parallel.data": 2, "parallel.optimizer": "parameters"},
    "pp2": {"parallel.data": 1, "parallel.pipeline": 2, "parallel.micro_batches": 2},
    "recompute": {"parallel.data": 2, "parallel.recompute": True},
}
LAYOUTS_OF_4 = {
    "tp2xdp2": {"parallel.data": 2, "parallel.tensor": 2},
    "tp2xstates2": {"parallel.data": 2, "parallel.tensor": 2, "parallel.optimizer": True},
    "tp2xparameters2": {"parallel.data": 2, "parallel.tensor": 2, "parallel.optimizer": "parameters"},
    "pp2xtp2": {"parallel.data": 1, "parallel.pipeline": 2, "parallel.micro_batches": 2, "parallel.tensor": 2},
}


def losses(run) -> list[float]:
    return [event["loss"] for event in read_events(run) if event["kind"] == "step"]


@pytest.fixture(scope="module")
def config(debug_config):
    return debug_config.replace(**MUON)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("muon") / "alone"
    train(config, run)
    return losses(run)


@pytest.mark.parametrize("shape", [(24, 24), (3, 16, 64), (64, 16)])
def test_an_orthogonalised_matrix_has_singular_values_near_one_in_the_gradients_directions(shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    got = orthogonalised(x)
    in_its_directions = np.einsum("...ia,...ij,...bj->...ab", u, got, v)
    values = np.diagonal(in_its_directions, axis1=-2, axis2=-1)
    large = values[s > 0.1 * s.max()]
    assert np.all((large > 0.6) & (large < 1.25))
    assert np.allclose(in_its_directions - values[..., None] * np.eye(values.shape[-1]), 0, atol=1e-4)


def test_a_gradient_of_zeros_stays_zero():
    assert not orthogonalised(np.zeros((4, 8), np.float32)).any()


@pytest.mark.parametrize("native", ["0", "1"], ids=["operators", "kernels"])
def test_a_first_step_is_the_formula(debug_config, native):
    """Against numpy: weight · (1 − lr · decay) − lr · 0.2 √max(n, m) · orthogonal(1.95 g)."""
    from mindspore import Parameter, Tensor

    from pangu_lab.model.parameters import parameter_specs
    from pangu_lab.ops.backend import training_backend
    from pangu_lab.ops.portable import Portable
    from pangu_lab.train.muon import Muon

    backend = Portable() if native == "0" else training_backend(debug_config.model)
    name = "backbone.blocks.0.output.mapping.weight"
    specs = [parameter_specs(debug_config.model)[n] for n in (name, "backbone.blocks.0.output.mapping.bias")]
    generator = np.random.default_rng(3)
    values = [generator.standard_normal(spec.shape).astype(np.float32) for spec in specs]
    gradients = [generator.standard_normal(spec.shape).astype(np.float32) for spec in specs]
    weights = [Parameter(Tensor(value.copy()), name=spec.name) for value, spec in zip(values, specs)]
    train_config = dataclasses.replace(debug_config.train, optimizer="muon")
    optimizer = Muon(weights, specs, train_config, backend=backend)
    optimizer.update([Tensor(gradient) for gradient in gradients], 0.5, 1.0, 0.01)
    rate = 0.01 * train_config.muon_lr
    expected = values[0] * (1 - rate * 0.1) - rate * 0.2 * max(specs[0].shape) ** 0.5 * orthogonalised(gradients[0])
    assert np.allclose(weights[0].asnumpy(), expected, atol=1e-5)
    assert np.allclose(weights[1].asnumpy(), values[1] - 0.01 * np.sign(gradients[1]), atol=1e-5)  # AdamW's first step
    assert set(optimizer.moments()) == {f"muon_m.{name}", f"adam_m.{specs[1].name}", f"adam_v.{specs[1].name}"}


def test_it_learns_and_the_batch_grows_at_the_steps_that_say_so(alone, config, tmp_path):
    assert alone[-1] < alone[0] - 0.5
    train(config, tmp_path / "run")
    tokens = [event["tokens"] for event in read_events(tmp_path / "run") if event["kind"] == "step"]
    batch = config.data.batch_size * config.data.seq_length
    assert np.diff([0, *tokens]).tolist() == [batch] * 6 + [2 * batch] * 6 + [4 * batch] * 4


def test_a_resumed_training_is_the_straight_one_to_the_last_bit(alone, config, tmp_path):
    stopped = iter(range(100))
    train(config, tmp_path / "run", stop=lambda: next(stopped) == 9)
    train(config, tmp_path / "run")
    assert losses(tmp_path / "run") == alone


def test_a_run_of_the_other_optimizer_is_not_continued(config, tmp_path):
    train(config.replace(**{"train.steps": 2}), tmp_path / "run")
    with pytest.raises(InputError, match="train.optimizer"):
        train(config.replace(**{"train.optimizer": "adamw"}), tmp_path / "run")


def check_layouts(layouts, processes, alone, config, folder) -> None:
    folder.mkdir()
    (folder / "trainings.json").write_text(json.dumps(list(layouts.items())), encoding="utf-8")
    launch(
        config.replace(**{"parallel.data": processes}),
        folder,
        processes,
        program=("-m", "tests.parallel.trainings_program"),
    )
    for name in layouts:
        assert np.allclose(losses(folder / "runs" / name), alone, rtol=2e-4), name


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_every_layout_gives_the_losses_of_one_process(alone, config, tmp_path):
    check_layouts(LAYOUTS, 2, alone, config, tmp_path / "launch")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_further_layouts_give_them_too(alone, config, tmp_path):
    check_layouts(MORE, 2, alone, config, tmp_path / "launch")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_layouts_of_two_dimensions_give_the_losses_of_one_process(alone, config, tmp_path):
    check_layouts(LAYOUTS_OF_4, 4, alone, config, tmp_path / "launch")
