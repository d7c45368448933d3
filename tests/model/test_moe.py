"""Mixtures of experts against a plain numpy reference: outputs, gradients, places, losses, and what is promised of them."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import ModelConfig
from pangu_lab.model.moe import Experts, ExpertsWithGates, ExpertsWithoutLimit, block_rows, expert_capacity
from pangu_lab.model.pangu import Parts

ms.set_context(mode=ms.GRAPH_MODE)
BATCH, SEQ, HIDDEN, EXPERTS = 3, 10, 8, 4


def settings(**changes):
    return ModelConfig(
        **{
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "num_experts": EXPERTS,
            "hidden_act": "fast_gelu",
            "num_layers": 2,
            "vocab_size": 16,
            "num_positions": SEQ,
            **changes,
        }
    )


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "p.router.weight": normal(HIDDEN, EXPERTS),
        "p.experts.mapping.weight": normal(EXPERTS, HIDDEN, 4 * HIDDEN) * 0.3,
        "p.experts.mapping.bias": normal(EXPERTS, 1, 4 * HIDDEN) * 0.3,
        "p.experts.projection.weight": normal(EXPERTS, 4 * HIDDEN, HIDDEN) * 0.3,
        "p.experts.projection.bias": normal(EXPERTS, 1, HIDDEN) * 0.3,
    }


class Made:
    """The Parameters of one layer of experts, made once, by name."""

    def __init__(self, values):
        self.parameters = {name: Parameter(Tensor(value), name=name) for name, value in values.items()}

    def __call__(self, name):
        return self.parameters[name]


def make(kind, config, values):
    weights = Made(values)
    return kind(Parts(config, weights, seq_length=SEQ), "p"), weights


def told_by(cell, x):
    """Output, losses and counts of an ``Experts``."""
    y, ((losses, counts),) = cell(Tensor(x))
    return y.asnumpy(), losses.asnumpy(), counts.asnumpy()


def rows(seed=1):
    return np.random.default_rng(seed).standard_normal((BATCH * SEQ, HIDDEN)).astype(np.float32)


def reference(x, values, config):
    """One token at a time, in the order of the text: output, auxiliary loss a record, tokens sent and dropped."""
    x, values = x.astype(np.float64), {name[2:]: value.astype(np.float64) for name, value in values.items()}
    capacity = expert_capacity(config, SEQ)
    output, losses, sent, dropped = np.zeros_like(x), np.zeros(BATCH), np.zeros(EXPERTS), 0
    for record in range(BATCH):
        taken, mean, squares = np.zeros(EXPERTS), np.zeros(EXPERTS), 0.0
        for t in range(record * SEQ, (record + 1) * SEQ):
            logits = x[t] @ values["router.weight"]
            p = np.exp(logits) / np.exp(logits).sum()
            mean, squares = mean + p / SEQ, squares + np.log(np.exp(logits).sum()) ** 2 / SEQ
            chosen = np.argsort(-p, kind="stable")[: config.experts_per_token]
            gates = p[chosen] if len(chosen) == 1 else p[chosen] / p[chosen].sum()
            for e, gate in zip(chosen, gates):
                if taken[e] < capacity:
                    inner = x[t] @ values["experts.mapping.weight"][e] + values["experts.mapping.bias"][e, 0]
                    inner = inner / (1 + np.exp(-1.702 * inner))
                    out = inner @ values["experts.projection.weight"][e] + values["experts.projection.bias"][e, 0]
                    output[t] += gate * out
                else:
                    dropped += 1
                taken[e] += 1
        sent += taken
        share = taken / (SEQ * config.experts_per_token)
        losses[record] = config.balance_loss * EXPERTS * (share * mean).sum() + config.z_loss * squares
    return output, losses, sent, dropped


@pytest.mark.parametrize("choices, capacity", [(1, 1.0), (2, 0.75), (3, 4.0)])
def test_outputs_losses_and_counts_equal_one_token_at_a_time(choices, capacity):
    config = settings(experts_per_token=choices, capacity_factor=capacity, balance_loss=0.3, z_loss=0.2)
    values, x = arrays(), rows()
    cell, _ = make(Experts, config, values)
    y, losses, counts = told_by(cell, x)
    want, want_losses, sent, dropped = reference(x, values, config)
    assert np.abs(y - want).max() < 1e-5 and np.allclose(losses, want_losses, rtol=1e-5)
    assert counts.tolist() == [*sent, dropped] and (dropped > 0) == (capacity <= 1.0)


class DenseReference(nn.Cell):
    """Every expert computes every token; the gates of experts that were not chosen are zero. Capacity unlimited."""

    def __init__(self, config, weights):
        super().__init__(auto_prefix=False)
        self.config = config
        self.router, self.up, self.up_bias, self.down, self.down_bias = (
            weights(f"p.{name}")
            for name in (
                "router.weight",
                "experts.mapping.weight",
                "experts.mapping.bias",
                "experts.projection.weight",
                "experts.projection.bias",
            )
        )

    def construct(self, x):
        batch = x.shape[0] // SEQ
        logits = ops.matmul(x, self.router)
        p = ops.softmax(logits, -1)
        least = ops.stop_gradient(ops.sort(p, -1)[0][:, EXPERTS - self.config.experts_per_token :][:, :1])
        gates = p * ops.cast(p >= least, mstype.float32)
        if self.config.experts_per_token > 1:
            gates = gates / gates.sum(-1, keepdims=True)
        inner = ops.matmul(ops.expand_dims(x, 0), self.up) + self.up_bias
        out = ops.matmul(inner * ops.sigmoid(1.702 * inner), self.down) + self.down_bias
        y = (out * ops.expand_dims(ops.transpose(gates, (1, 0)), -1)).sum(0)
        share = ops.stop_gradient(ops.cast(p >= least, mstype.float32)) / self.config.experts_per_token
        balance = EXPERTS * (p.reshape(batch, SEQ, EXPERTS).mean(1) * share.reshape(batch, SEQ, EXPERTS).mean(1)).sum(1)
        z = (ops.logsumexp(logits, -1) ** 2).reshape(batch, SEQ).mean(1)
        return y, ((self.config.balance_loss * balance + self.config.z_loss * z, y),)


class Gradients(nn.Cell):
    """Of Σ y · direction + Σ loss, for x and for all parameters."""

    def __init__(self, cell, weights):
        super().__init__(auto_prefix=False)
        self.cell, self.weights = cell, ParameterTuple(list(weights.parameters.values()))
        self.grad = ops.grad(self._scalar, 0, self.weights)

    def _scalar(self, x, direction):
        y, told = self.cell(x)
        return (y * direction).sum() + told[0][0].sum()

    def construct(self, x, direction):
        return self.grad(x, direction)


@pytest.mark.parametrize("choices", [1, 2])
def test_with_unlimited_capacity_output_and_gradients_equal_the_dense_computation(choices):
    config = settings(experts_per_token=choices, capacity_factor=float(EXPERTS), balance_loss=0.3, z_loss=0.2)
    direction = Tensor(rows(7))
    found = []
    for kind in (Experts, DenseReference):
        weights = Made(arrays())
        cell = kind(Parts(config, weights, seq_length=SEQ), "p") if kind is Experts else kind(config, weights)
        y, losses, _ = told_by(cell, rows())
        of_x, of_weights = Gradients(cell, weights)(Tensor(rows()), direction)
        found.append([y, losses, *(value.asnumpy() for value in (of_x, *of_weights))])
    for ours, theirs in zip(*found):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_gradients_with_dropped_tokens_equal_finite_differences():
    config = settings(experts_per_token=2, capacity_factor=0.6, balance_loss=0.3, z_loss=0.2)
    cell, weights = make(Experts, config, arrays())
    x, direction = rows(), rows(7)
    _, of_weights = Gradients(cell, weights)(Tensor(x), Tensor(direction))
    rng = np.random.default_rng(3)
    for (name, parameter), gradient in zip(weights.parameters.items(), of_weights):
        value, along, ends = parameter.asnumpy().copy(), rng.standard_normal(parameter.shape).astype(np.float32), []
        step = 2e-4 if "router" in name else 2e-3  # no token may change its expert on the way
        for sign in (1, -1):
            parameter.set_data(Tensor(value + sign * step * along))
            y, losses, _ = told_by(cell, x)
            ends.append(float((y.astype(np.float64) * direction).sum() + losses.sum()))
        parameter.set_data(Tensor(value))
        want = float((gradient.asnumpy().astype(np.float64) * along).sum())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(want, rel=0.02, abs=0.05), name


def test_outside_training_the_result_is_that_of_unlimited_capacity():
    config = settings(experts_per_token=2, capacity_factor=float(EXPERTS))
    limited, _ = make(Experts, config, arrays())
    free, _ = make(ExpertsWithoutLimit, config, arrays())
    x = rows()
    whole = free(Tensor(x))[0].asnumpy()
    assert np.abs(told_by(limited, x)[0] - whole).max() < 1e-5
    assert np.abs(free(Tensor(x[:1]))[0].asnumpy() - whole[:1]).max() < 1e-5


def test_what_experts_tell_is_the_gates_of_those_that_were_chosen():
    config = settings(experts_per_token=2)
    with_gates, _ = make(ExpertsWithGates, config, arrays())
    plain, _ = make(ExpertsWithoutLimit, config, arrays())
    y, (gates,) = with_gates(Tensor(rows()))
    assert np.array_equal(y.asnumpy(), plain(Tensor(rows()))[0].asnumpy())
    assert ((gates.asnumpy() > 0).sum(1) == 2).all() and np.allclose(gates.asnumpy().sum(1), 1.0, atol=1e-6)


def test_a_later_token_never_takes_the_place_of_an_earlier_one():
    config = settings(capacity_factor=0.5)
    cell, _ = make(Experts, config, arrays())
    x = rows()
    changed = x.copy()
    changed[SEQ - 3 : SEQ] += 3.0
    before, after = told_by(cell, x)[0], told_by(cell, changed)[0]
    assert (before[: SEQ - 3] == after[: SEQ - 3]).all() and (before[SEQ:] == after[SEQ:]).all()


def test_places_and_blocks_are_as_many_as_the_factor_says():
    assert expert_capacity(settings(capacity_factor=1.25), 128) == 40
    assert expert_capacity(settings(capacity_factor=99.0), 128) == 128
    assert [block_rows(n, 8) for n in (1, 16, 17, 2048)] == [1, 1, 2, 128]
