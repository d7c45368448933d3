"""AdamW against its published formula, gradients against finite differences, the schedule and the loss scale."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from pangu_lab.config import TrainConfig
from pangu_lab.model.pangu import PanguLoss, PanguStage, Parts, Weights
from pangu_lab.model.parameters import initial_weights, parameter_specs
from pangu_lab.ops.adamw import SquaredNorm
from pangu_lab.ops.portable import Portable
from pangu_lab.presets import preset
from pangu_lab.train.schedule import LossScale, batches_of_step, learning_rate
from pangu_lab.train.step import AdamW, GradientStep

ms.set_context(mode=ms.GRAPH_MODE)


def test_adamw_equals_the_published_formula_with_clip_and_decay():
    config = TrainConfig(weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)]
    decay = [True, False]
    optimizer = AdamW([Parameter(Tensor(v), name=f"p{i}") for i, v in enumerate(values)], decay, config)
    want = [v.astype(np.float64) for v in values]
    first, second = [np.zeros_like(v) for v in want], [np.zeros_like(v) for v in want]
    for step in range(1, 6):
        gradients = [rng.standard_normal(v.shape) * 0.9**step for v in want]
        norm, lr = math.sqrt(sum((g**2).sum() for g in gradients)), 0.01 * step
        scale = 2.0**10
        optimizer.update([Tensor((g * scale).astype(np.float32)) for g in gradients], norm, 1 / scale, lr)
        for i, gradient in enumerate(gradients):
            gradient = gradient * min(1.0, 1.0 / (norm + 1e-6))
            first[i] = config.beta1 * first[i] + (1 - config.beta1) * gradient
            second[i] = config.beta2 * second[i] + (1 - config.beta2) * gradient**2
            move = (first[i] / (1 - config.beta1**step)) / (np.sqrt(second[i] / (1 - config.beta2**step)) + 1e-8)
            want[i] = want[i] - lr * (move + (0.1 * want[i] if decay[i] else 0.0))
    for weight, value in zip(optimizer.state.weights, want):
        assert np.allclose(weight.asnumpy(), value, atol=2e-6)


def small_network(dropout=0.0, backend=Portable()):
    config = (
        preset("debug")
        .replace(
            **{
                "model.hidden_size": 8,
                "model.num_layers": 2,
                "model.num_heads": 2,
                "model.vocab_size": 16,
                "model.num_positions": 6,
                "data.seq_length": 6,
                "model.dropout_rate": dropout,
                "model.init_std": 0.3,
            }
        )
        .model
    )
    weights = Weights(initial_weights(config, 3))
    loss = PanguLoss(PanguStage(Parts(config, weights, backend=backend)))
    return loss, {name: weights(name) for name in parameter_specs(config)}


def small_batch():
    rng = np.random.default_rng(2)
    ids, labels = rng.integers(0, 16, (2, 3, 6)).astype(np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2], range(6), range(6)], np.int32)
    weights = rng.random((3, 6)).astype(np.float32)
    return [Tensor(a) for a in (ids, positions, np.arange(3, dtype=np.int32), labels, weights)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_equal_finite_differences(dropout):
    loss, parameters = small_network(dropout)
    batch, step = small_batch(), GradientStep(loss, list(parameters.values()))
    _, gradients = step(*batch, Tensor(1.0, ms.float32))
    rng = np.random.default_rng(4)
    for (name, parameter), gradient in zip(parameters.items(), gradients):
        value = parameter.asnumpy().copy()
        direction = rng.standard_normal(value.shape).astype(np.float32)
        ends = []
        for sign in (1, -1):
            parameter.set_data(Tensor(value + sign * 3e-3 * direction))
            ends.append(float(loss(*batch).asnumpy()))
        parameter.set_data(Tensor(value))
        along = float((gradient.asnumpy().astype(np.float64) * direction).sum())
        assert math.isclose((ends[0] - ends[1]) / 6e-3, along, rel_tol=0.02, abs_tol=0.02), name


def test_the_squared_norm_is_exact_enough_to_be_the_same_in_every_layout():
    whole = (np.random.default_rng(0).standard_normal((8000, 384)) * 1e-3).astype(np.float32)
    wanted = (whole.astype(np.float64) ** 2).sum()
    one = float(SquaredNorm([True])(Tensor(whole)).asnumpy())
    halves = float(
        SquaredNorm([True, True, False])(*[Tensor(part) for part in (whole[:4000], whole[4000:], whole)]).asnumpy()
    )
    assert one == pytest.approx(wanted, rel=5e-6) and halves == pytest.approx(one, rel=5e-6)
    bias = np.arange(7, dtype=np.float32)
    assert float(SquaredNorm([True])(Tensor(bias)).asnumpy()) == 91


def test_an_infinite_gradient_shows_in_the_norm():
    norm = SquaredNorm([True, True])
    good, bad = Tensor(np.ones((2, 2), np.float32)), Tensor(np.array([1.0, np.inf], np.float32))
    assert float(norm(good, good).asnumpy()) == 8.0
    assert not math.isfinite(float(norm(good, bad).asnumpy()))


def test_learning_rate_warms_up_and_ends_at_end_lr():
    config = TrainConfig(steps=100, warmup_steps=10, start_lr=1.0, end_lr=0.1)
    rates = [learning_rate(config, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert all(a >= b for a, b in zip(rates[9:], rates[10:])) and rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, 55) == pytest.approx(0.55)


def test_wsd_keeps_the_rate_until_its_cool_down_whatever_the_number_of_steps():
    config = TrainConfig(steps=100, warmup_steps=10, start_lr=1.0, end_lr=0.0, schedule="wsd", cooldown=0.2)
    rates = [learning_rate(config, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9:80] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(1, 21)])
    longer = TrainConfig(steps=200, warmup_steps=10, start_lr=1.0, end_lr=0.0, schedule="wsd", cooldown=0.2)
    assert [learning_rate(longer, step) for step in range(1, 81)] == rates[:80]


@pytest.mark.parametrize("changes", [{"cooldown": 0.0}, {"cooldown": 1.0}, {"warmup_steps": 500}, {"warmup_steps": 0}])
def test_every_wsd_schedule_ends_at_end_lr_and_stays_between_the_two(changes):
    config = TrainConfig(
        **{"steps": 100, "warmup_steps": 10, "start_lr": 1.0, "end_lr": 0.1, "schedule": "wsd", **changes}
    )
    rates = [learning_rate(config, step) for step in range(1, 701)]
    assert all(0 < rate <= 1.0 for rate in rates) and rates[-1] == pytest.approx(0.1)


def test_a_batch_doubles_after_each_of_the_steps_named():
    config = TrainConfig(batch_doublings=(2, 4))
    assert [batches_of_step(config, step) for step in range(1, 7)] == [1, 1, 2, 2, 4, 4]


def test_loss_scale_doubles_after_a_window_and_halves_down_to_its_floor():
    scale = LossScale(True, 8.0, window=3, floor=2.0)
    for _ in range(3):
        scale.good()
    assert scale.value == 16.0 and scale.good_steps == 0
    assert scale.overflow() and scale.overflow() and scale.overflow() and scale.value == 2.0
    assert not scale.overflow()
