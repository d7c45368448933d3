"""``train.optimizer: muon``: Muon for the matrices of the layers, AdamW for embeddings, norms, biases and routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from pangu_lab.config import TrainConfig
from pangu_lab.model.parameters import ParameterSpec, is_matrix
from pangu_lab.ops.backend import Backend
from pangu_lab.ops.muon import MuonState
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import GatherParts, Group, group_of
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import is_spread
from pangu_lab.train.step import AdamW, GatherWeights, own_rows


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


class Gather(nn.Cell):
    """Puts matrices together from the parts that ranks hold: one message for all of them, or for each kind of slices.

    Every rank then makes the whole orthogonal, so the result is that of one process; the products are done again on
    every rank.
    """

    def __init__(self, matrices: Sequence[Matrix]):
        super().__init__(auto_prefix=False)
        self.gathers, self.gathered = _gathers(matrices)

    def construct(self, *parts):
        wholes = list(parts)
        for i in range(len(self.gathers)):
            given = ()
            for j in self.gathered[i]:
                given = given + (wholes[j],)
            got = self.gathers[i](*given)
            for k in range(len(self.gathered[i])):
                wholes[self.gathered[i][k]] = got[k]
        return tuple(wholes)


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


class Muon:
    """Same interface as ``AdamW``, which updates the parameters that are no matrices of a layer.

    Args:
        specs: of the weights, in the same order.
        moments: initial states by name, as ``moments`` gives them; zeros where absent.
        rows: for each weight, the rows of it that this rank updates; None for all.
    """

    masters: dict[str, np.ndarray] = {}

    def __init__(
        self,
        weights: list[Parameter],
        specs: list[ParameterSpec],
        config: TrainConfig,
        moments: Mapping[str, np.ndarray] | None = None,
        steps: int = 0,
        rows=None,
        mesh: Mesh = Mesh(),
        backend: Backend = Portable(),
    ):
        self.config = config
        rows = rows or [None] * len(weights)
        moments = moments or {}
        self.is_matrix = [is_matrix(spec.name) for spec in specs]
        rest = [i for i, chosen in enumerate(self.is_matrix) if not chosen]
        group = group_of(mesh, "data")
        self.adamw = AdamW(
            [weights[i] for i in rest],
            [specs[i].decay for i in rest],
            config,
            moments,
            steps,
            [rows[i] for i in rest],
            group,
            backend,
        )
        self.matrices, pairs = [], []
        for weight, spec, part in zip(weights, specs, rows):
            if is_matrix(spec.name):
                own = own_rows(weight, part)
                momentum = momentum_of(own, moments.get(f"muon_m.{spec.name}"))
                self.matrices.append(Matrix(own, momentum, part, _split(spec, part is not None, mesh)))
                if part is not None:
                    pairs.append((weight, own))
        state = MuonState(
            *(
                [getattr(matrix, name) for matrix in self.matrices]
                for name in ("weight", "momentum", "rows", "whole", "own")
            )
        )
        split = any(matrix.split for matrix in self.matrices)
        self.apply = backend.muon(state, config.muon_momentum, Gather(self.matrices) if split else None)
        self.gather = GatherWeights(group, pairs) if pairs else None

    def update(self, gradients, norm: float, inverse_scale: float, lr: float) -> None:
        """Apply one step. ``norm`` is the global norm of the unscaled gradients."""
        config = self.config
        clip = min(1.0, config.clip_norm / (norm + 1e-6))
        scalars = (clip * inverse_scale, lr * config.muon_lr, 1.0 - lr * config.muon_lr * config.weight_decay)
        self.apply(
            *[Tensor(value, mstype.float32) for value in scalars],
            *[gradient for gradient, chosen in zip(gradients, self.is_matrix) if chosen],
        )
        if self.gather is not None:
            self.gather()
        self.adamw.update(
            [gradient for gradient, chosen in zip(gradients, self.is_matrix) if not chosen], norm, inverse_scale, lr
        )

    def moments(self) -> dict[str, np.ndarray]:
        """Every matrix's momentum by ``muon_m.NAME``, and AdamW's moments of the other weights."""
        return {**self.adamw.moments(), **{m.momentum.name: m.momentum.asnumpy() for m in self.matrices}}


def _split(spec: ParameterSpec, has_rows: bool, mesh: Mesh) -> tuple[tuple[int, Group], ...]:
    """How ranks put a matrix together: first the rows that data ranks share, then tensor parallelism's slices."""
    split = []
    if len(spec.shape) == 2 and (has_rows or is_spread(spec, mesh)):  # axis 0 of experts' weights counts the experts
        split.append((0, group_of(mesh, "data")))
    if spec.tensor_axis is not None and mesh.size("tensor") > 1:
        split.append((spec.tensor_axis, group_of(mesh, "tensor")))
    return tuple(split)
