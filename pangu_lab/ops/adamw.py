"""The optimizer's computations, in MindSpore's operators: Σ g² over all gradients, and AdamW over all weights.

AdamW here is exact (Loshchilov & Hutter, arXiv 1711.05101): bias correction included, decay decoupled and not
applied to LayerNorm and biases. MindSpore's ``AdamWeightDecay`` has no bias correction, and ``ops.Adam`` adds epsilon
before it, so epsilon is passed as eps · √(1 − β2ᵗ).

Squares are summed row by row, by a product of each row with itself: ``L2Loss`` is as fast, but adds the numbers one
by one in fp32, and its error of up to 4e-4 changes with the layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype


@dataclass(frozen=True)
class AdamWState:
    """Weights with their moments, whatever back end updates them.

    Attributes:
        weights: the parameters, or with optimizer parallelism this rank's rows of them.
        first, second: their moments, fp32.
        decay: for each, whether weight decay applies.
        rows: for each, the (first, last + 1) row of the gradient that belongs to it; None for all rows.
    """

    weights: Sequence[Parameter]
    first: Sequence[Parameter]
    second: Sequence[Parameter]
    decay: Sequence[bool]
    rows: Sequence[tuple[int, int] | None]

    @classmethod
    def of(
        cls,
        weights: Sequence[Parameter],
        decay: Sequence[bool],
        moments: Mapping[str, np.ndarray] | None = None,
        rows: Sequence[tuple[int, int] | None] | None = None,
    ) -> AdamWState:
        """``moments``: (first, second) moment arrays by name to start from; zeros where absent."""
        moments = moments or {}
        first, second = ([_moment(kind, weight, moments) for weight in weights] for kind in ("adam_m", "adam_v"))
        return cls(weights, first, second, decay, rows or [None] * len(weights))


def _moment(prefix: str, weight: Parameter, moments: Mapping[str, np.ndarray]) -> Parameter:
    name = f"{prefix}.{weight.name.removeprefix('own.')}"
    value = moments.get(name)
    return Parameter(Tensor(np.zeros(weight.shape, np.float32) if value is None else value), name=name)


class SquaredNorm(nn.Cell):
    """gradients → Σ g², fp32 scalar: not finite exactly when some gradient is not (or the sum overflows)."""

    def __init__(self, counted: list[bool]):
        super().__init__(auto_prefix=False)
        self.counted = counted
        self.product = ops.BatchMatMul(transpose_b=True)
        self.sum = ops.ReduceSum()

    def construct(self, *gradients):
        total = ops.zeros((), mstype.float32)
        for i in range(len(self.counted)):
            if self.counted[i]:
                rows = ops.reshape(ops.cast(gradients[i], mstype.float32), (-1, 1, gradients[i].shape[-1]))
                total = total + self.sum(self.product(rows, rows))
        return total


class AdamWUpdate(nn.Cell):
    """AdamW over all weights of ``state``, in place; those in fp16 are rounded once, from the fp32 value of the update."""

    def __init__(self, state: AdamWState, beta1: float, beta2: float):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(state.weights)
        self.first, self.second = ParameterTuple(state.first), ParameterTuple(state.second)
        self.decay, self.rows = list(state.decay), list(state.rows)
        self.beta1, self.beta2 = Tensor(beta1, mstype.float32), Tensor(beta2, mstype.float32)
        self.half = [weight.dtype == mstype.float16 for weight in state.weights]
        self.adam = ops.Adam()
        self.mul = ops.Mul()

    def construct(self, factor, lr, decay_factor, beta1_power, beta2_power, eps, *gradients):
        """Scalars, fp32: ``factor`` multiplies the gradients (unscale and clip), ``decay_factor`` is 1 − lr · decay."""
        done = ()
        for i in range(len(self.weights)):
            weight = self.weights[i]
            gradient = gradients[i]
            if self.rows[i] is not None:
                gradient = gradient[self.rows[i][0] : self.rows[i][1]]
            gradient = self.mul(ops.cast(gradient, mstype.float32), factor)
            if self.half[i]:
                done = done + (self.update_half(i, gradient, lr, decay_factor, beta1_power, beta2_power, eps),)
                continue
            if self.decay[i]:
                gradient = ops.depend(gradient, ops.assign(weight, self.mul(weight, decay_factor)))
            updated = self.adam(
                weight,
                self.first[i],
                self.second[i],
                beta1_power,
                beta2_power,
                lr,
                self.beta1,
                self.beta2,
                eps,
                gradient,
            )
            done = done + (updated[0],)
        return ops.depend(factor, done)

    def update_half(self, i, gradient, lr, decay_factor, beta1_power, beta2_power, eps):
        """``ops.Adam`` on a weight in fp16, whose state is in fp32: the operator takes only weights in fp32."""
        rate = lr * ops.sqrt(1.0 - beta2_power) / (1.0 - beta1_power)
        first = self.first[i] + (gradient - self.first[i]) * (1.0 - self.beta1)
        second = self.second[i] + (gradient * gradient - self.second[i]) * (1.0 - self.beta2)
        weight = ops.cast(self.weights[i], mstype.float32)
        if self.decay[i]:
            weight = weight * decay_factor
        weight = weight - rate * first / (ops.sqrt(second) + eps)
        kept = ops.assign(self.first[i], first), ops.assign(self.second[i], second)
        return ops.depend(ops.assign(self.weights[i], ops.cast(weight, mstype.float16)), kept)
