"""Muon: momentum whose every step is made orthogonal, for the matrices of a network (K. Jordan, 2024).

The singular values of a gradient differ by orders of magnitude: a few directions get nearly all of an update. Muon sets
them all to about 1, by five steps of a polynomial (Newton-Schulz, a few products of matrices and no decomposition), so
that rare directions are learned too. Per step this costs 5 · (4 n² m + 2 n³) operations for an (n, m) matrix with n ≤ m,
however large the batch.

An update has the size that AdamW's would have (0.2 · √max(n, m) times an orthogonal matrix: Liu et al., arXiv
2502.16982), so that one learning rate and one weight decay serve both.

This is the formula for every device; ``native/optimizer.c`` has it for CPUs. On one core with AVX-512, for the matrices of
the preset ``verse``, MindSpore's products pass at 54 GFLOP/s and the kernel's at 150.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops
from mindspore import dtype as mstype

# x → a x + b (x xᵀ) x + c (x xᵀ)² x, whose slope at 0 is as steep as it can be while five steps end between 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPSILON = 1e-7  # a gradient of zeros stays one
STACK = 1 << 23  # elements of the matrices that go through one product; a step needs four times this


def orthogonalised(x):
    """The matrices (…, n, m) with every singular value near 1: between 0.7 and 1.2, less for those far below the largest.

    A numpy array or, inside a graph, a tensor.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.swapaxes(-1, -2)
    x = x / ((x * x).sum(axis=(-2, -1), keepdims=True) ** 0.5 + EPSILON)
    for _ in range(STEPS):
        product = x @ x.swapaxes(-1, -2)
        x = a * x + (b * product + c * (product @ product)) @ x
    return x.swapaxes(-1, -2) if tall else x


@dataclass(frozen=True)
class MuonState:
    """The matrices, two- or, for experts, three-dimensional: one entry in each list for every one of them.

    Attributes:
        weights: this rank's part of each.
        momenta: of the same shapes, fp32.
        rows: the (first, last + 1) rows of the gradient that belong to it; None for all.
        wholes: the shapes of the whole matrices.
        own: this rank's part of the whole.
    """

    weights: list[Parameter]
    momenta: list[Parameter]
    rows: list[tuple[int, int] | None]
    wholes: list[tuple[int, ...]]
    own: list[tuple[slice, ...]]

    def scale(self, number: int) -> float:
        """What the orthogonal matrix of this number is multiplied with, before the learning rate."""
        return 0.2 * max(self.wholes[number][-2:]) ** 0.5

    def alike(self) -> list[list[int]]:
        """The numbers of matrices of one shape, which go through one product, as many as ``STACK`` allows."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, shape in enumerate(self.wholes):
            groups.setdefault(shape, []).append(number)
        found = []
        for shape, numbers in groups.items():
            count = max(1, STACK // int(np.prod(shape)))
            found += [numbers[first : first + count] for first in range(0, len(numbers), count)]
        return found


class MuonUpdate(nn.Cell):
    """One step of Muon over all matrices, in place.

    Args:
        gather: a cell from every rank's parts to the whole matrices; None where each has the wholes.
    """

    def __init__(self, state: MuonState, beta: float, gather: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.weights, self.momenta = ParameterTuple(state.weights), ParameterTuple(state.momenta)
        self.rows, self.own, self.gather, self.beta = state.rows, state.own, gather, beta
        self.split = [tuple(weight.shape) != whole for weight, whole in zip(state.weights, state.wholes)]
        self.scale = [state.scale(number) for number in range(len(state.wholes))]
        self.alike = state.alike()
        self.stack = ops.Stack()

    def construct(self, factor, lr, decay_factor, *gradients):
        """Scalars, fp32: ``factor`` multiplies the gradients (unscale and clip), ``decay_factor`` is 1 − lr · decay."""
        wholes = ()
        for i in range(len(self.weights)):
            gradient = gradients[i]
            if self.rows[i] is not None:
                gradient = gradient[self.rows[i][0] : self.rows[i][1]]
            gradient = ops.cast(gradient, mstype.float32) * (factor * (1.0 - self.beta))
            momentum = ops.assign(self.momenta[i], self.momenta[i] * self.beta + gradient)
            wholes = wholes + (momentum * self.beta + gradient,)  # Nesterov's
        if self.gather is not None:
            wholes = self.gather(*wholes)
        done = ()
        for numbers in self.alike:
            same = ()
            for i in numbers:
                same = same + (wholes[i],)
            updates = orthogonalised(self.stack(same))
            for k in range(len(numbers)):
                i = numbers[k]
                update = updates[k]
                if self.split[i]:
                    update = update[self.own[i]]
                step = self.weights[i] * decay_factor - update * (lr * self.scale[i])
                done = done + (ops.assign(self.weights[i], step),)
        return ops.depend(factor, done)
