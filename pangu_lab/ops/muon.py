"""Muon: momentum whose every step is made orthogonal, for the matrices of a network (K. Jordan, 2024).

The singular values of a gradient differ by orders of magnitude: a few directions get nearly all of an update. Muon sets
them all to about 1, by five steps of a polynomial (Newton-Schulz, a few products of matrices and no decomposition), so
that rare directions are learned too. Per step this costs 5 · (4 n² m + 2 n³) operations for an (n, m) matrix with n ≤ m,
however large the batch.

An update has the size that AdamW's would have (0.2 · √max(n, m) times an orthogonal matrix: Liu et al., arXiv
2502.16982), so that one learning rate and one weight decay serve both. The work is done by MindSpore's own operators
under either back end: its products of matrices were as fast as numpy's and as the kernels' (85 GFLOP/s on two cores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops
from mindspore import dtype as mstype

from pangu_lab.parallel.collectives import GatherParts, Group

# x → a x + b (x xᵀ) x + c (x xᵀ)² x, whose slope at 0 is as steep as it can be while five steps end between 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
STACK = 1 << 23  # elements of the matrices that go through one product; a step needs four times this
EPSILON = 1e-7  # a gradient of zeros stays one


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
class Matrix:
    """A parameter (or a part of one) that Muon updates, two- or, for experts, three-dimensional.

    Attributes:
        weight: this rank's part.
        momentum: of the same shape, fp32.
        rows: the (first, last + 1) rows of the gradient that belong to it; None for all.
        split: how the whole is put together from the parts of the ranks: (axis, group), in the order of gathering.
    """

    weight: Parameter
    momentum: Parameter
    rows: tuple[int, int] | None
    split: tuple[tuple[int, Group], ...]

    @property
    def whole(self) -> tuple[int, ...]:
        shape = list(self.weight.shape)
        for axis, group in self.split:
            shape[axis] *= group.size
        return tuple(shape)

    @property
    def own(self) -> tuple[slice, ...]:
        """This rank's part of the whole."""
        cut = [slice(0, size) for size in self.whole]
        start = [0] * len(cut)
        size = list(self.weight.shape)
        for axis, group in self.split:  # a later gather puts together what an earlier one gave
            start[axis] += group.index * size[axis]
            size[axis] *= group.size
        for axis, first in enumerate(start):
            cut[axis] = slice(first, first + self.weight.shape[axis])
        return tuple(cut)


class MuonUpdate(nn.Cell):
    """One step of Muon over all matrices, in place.

    Where ranks hold parts of a matrix, each gathers the momentum's other parts (one message for all matrices) and
    makes the whole orthogonal, so the result is that of one process; the products are done again on every rank.
    """

    def __init__(self, matrices: Sequence[Matrix], beta: float):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple([matrix.weight for matrix in matrices])
        self.momenta = ParameterTuple([matrix.momentum for matrix in matrices])
        self.rows = [matrix.rows for matrix in matrices]
        self.own = [matrix.own for matrix in matrices]
        self.split = [bool(matrix.split) for matrix in matrices]
        self.gathers, self.gathered = _gathers(matrices)
        self.beta = beta
        self.scale = [0.2 * max(matrix.whole[-2:]) ** 0.5 for matrix in matrices]
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, matrix in enumerate(matrices):
            alike.setdefault(matrix.whole, []).append(number)
        self.alike = []  # matrices of one shape go through one product, as many as ``STACK`` allows
        for shape, numbers in alike.items():
            count = max(1, STACK // int(np.prod(shape)))
            self.alike += [numbers[first:first + count] for first in range(0, len(numbers), count)]
        self.stack = ops.Stack()

    def construct(self, factor, lr, decay_factor, *gradients):
        """Scalars, fp32: ``factor`` multiplies the gradients (unscale and clip), ``decay_factor`` is 1 − lr · decay."""
        wholes = []
        for i in range(len(self.weights)):
            gradient = gradients[i]
            if self.rows[i] is not None:
                gradient = gradient[self.rows[i][0]:self.rows[i][1]]
            gradient = ops.cast(gradient, mstype.float32) * (factor * (1.0 - self.beta))
            momentum = ops.assign(self.momenta[i], self.momenta[i] * self.beta + gradient)
            wholes.append(momentum * self.beta + gradient)  # Nesterov's
        for i in range(len(self.gathers)):
            parts = ()
            for j in self.gathered[i]:
                parts = parts + (wholes[j],)
            parts = self.gathers[i](*parts)
            for k in range(len(self.gathered[i])):
                wholes[self.gathered[i][k]] = parts[k]
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


def _gathers(matrices: Sequence[Matrix]) -> tuple[nn.CellList, list[list[int]]]:
    """The messages that put wholes together, in order, and the numbers of the matrices in each."""
    shapes = [tuple(matrix.weight.shape) for matrix in matrices]
    cells, gathered = [], []
    for turn in range(max((len(matrix.split) for matrix in matrices), default=0)):
        groups: dict[Group, list[int]] = {}
        for number, matrix in enumerate(matrices):
            if turn < len(matrix.split):
                groups.setdefault(matrix.split[turn][1], []).append(number)
        for group, numbers in groups.items():
            axes = [matrices[number].split[turn][0] for number in numbers]
            cells.append(GatherParts(group, [shapes[number] for number in numbers], axes))
            gathered.append(numbers)
            for number, axis in zip(numbers, axes):
                shapes[number] = tuple(size * (group.size if a == axis else 1) for a, size in enumerate(shapes[number]))
    return nn.CellList(cells), gathered


def momentum_of(weight: Parameter, value: np.ndarray | None) -> Parameter:
    """The momentum of a weight (or of its own rows), zeros or ``value``."""
    name = f"muon_m.{weight.name.removeprefix('own.')}"
    return Parameter(np.zeros(weight.shape, np.float32) if value is None else value, name=name)
