"""``train.optimizer: muon``: Muon for the matrices of the layers, AdamW for embeddings, norms, biases and routers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import dtype as mstype

from pangu_lab.config import TrainConfig
from pangu_lab.model.parameters import ParameterSpec, is_matrix
from pangu_lab.ops.backend import Backend
from pangu_lab.ops.muon import Matrix, MuonUpdate, momentum_of
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import Group, group_of
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import is_spread
from pangu_lab.train.step import AdamW, GatherWeights, own_rows


class Muon:
    """Same interface as ``AdamW``, which updates the parameters that are no matrices of a layer.

    Args:
        specs: of the weights, in the same order.
        moments: initial states by name, as ``moments`` gives them; zeros where absent.
        rows: for each weight, the rows of it that this rank updates; None for all.
    """

    masters: dict[str, np.ndarray] = {}

    def __init__(self, weights: list[Parameter], specs: list[ParameterSpec], config: TrainConfig,
                 moments: Mapping[str, np.ndarray] | None = None, steps: int = 0, rows=None, mesh: Mesh = Mesh(),
                 backend: Backend = Portable()):
        self.config = config
        rows = rows or [None] * len(weights)
        moments = moments or {}
        self.is_matrix = [is_matrix(spec.name) for spec in specs]
        rest = [i for i, chosen in enumerate(self.is_matrix) if not chosen]
        group = group_of(mesh, "data")
        self.adamw = AdamW([weights[i] for i in rest], [specs[i].decay for i in rest], config, moments, steps,
                           [rows[i] for i in rest], group, backend)
        self.matrices, pairs = [], []
        for weight, spec, part in zip(weights, specs, rows):
            if is_matrix(spec.name):
                own = own_rows(weight, part)
                momentum = momentum_of(own, moments.get(f"muon_m.{spec.name}"))
                self.matrices.append(Matrix(own, momentum, part, _split(spec, part is not None, mesh)))
                if part is not None:
                    pairs.append((weight, own))
        self.apply = MuonUpdate(self.matrices, config.muon_momentum)
        self.gather = GatherWeights(group, pairs) if pairs else None

    def update(self, gradients, norm: float, inverse_scale: float, lr: float) -> None:
        """Apply one step. ``norm`` is the global norm of the unscaled gradients."""
        config = self.config
        clip = min(1.0, config.clip_norm / (norm + 1e-6))
        scalars = (clip * inverse_scale, lr * config.muon_lr, 1.0 - lr * config.muon_lr * config.weight_decay)
        self.apply(*[Tensor(value, mstype.float32) for value in scalars],
                   *[gradient for gradient, chosen in zip(gradients, self.is_matrix) if chosen])
        if self.gather is not None:
            self.gather()
        self.adamw.update([gradient for gradient, chosen in zip(gradients, self.is_matrix) if not chosen], norm,
                          inverse_scale, lr)

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
