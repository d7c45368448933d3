"""Which part of which parameter a rank holds: the link between the table of parameters and the mesh.

Pipeline stages hold whole layers, tensor ranks slices along one axis, data ranks copies. The word embedding is held by
the first stage (input) and the last (head). With ``parallel.optimizer`` a rank's optimizer moments are further sliced
along axis 0 over the data dimension, where that divides; with ``parallel.optimizer: parameters`` the matrices
themselves are too, and their gradients. Expert parallelism spreads axis 0 of the experts' parameters over ranks of the
data dimension, which then hold no copies of one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pangu_lab.parallel.mesh import Mesh

WORD = "backbone.word_embedding.embedding_table"


@dataclass(frozen=True)
class Shard:
    """A region of a whole tensor."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The region of ``array``."""
        return array[tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape))]

    def slice(self, axis: int, index: int, parts: int) -> Shard:
        """Part ``index`` of ``parts`` equal ones along ``axis``."""
        size = self.shape[axis] // parts
        offset = tuple(o + (index * size if a == axis else 0) for a, o in enumerate(self.offset))
        return Shard(self.whole, offset, tuple(size if a == axis else n for a, n in enumerate(self.shape)))


def on_stage(spec, mesh: Mesh, num_layers: int) -> bool:
    """Whether this rank's pipeline stage holds the parameter."""
    if spec.name == WORD:
        return mesh.is_first_stage or mesh.is_last_stage
    return mesh.is_first_stage if spec.layer < 0 else spec.layer in mesh.layers(num_layers)


def is_plain(layer: int, num_layers: int) -> bool:
    """Whether a layer is only a block: no embedding before it, no last norm after it, not the query layer."""
    return 0 < layer < num_layers - 2


def parameter_shards(specs: Mapping, mesh: Mesh, num_layers: int) -> dict[str, Shard]:
    """This rank's parameters by name, and the region of each that it holds."""
    shards = {}
    for name, spec in specs.items():
        if not on_stage(spec, mesh, num_layers):
            continue
        shard = Shard(spec.shape, (0,) * len(spec.shape), spec.shape)
        if spec.tensor_axis is not None:
            shard = shard.slice(spec.tensor_axis, mesh.index("tensor"), mesh.size("tensor"))
        if spec.expert:
            shard = shard.slice(0, mesh.index("expert"), mesh.size("expert"))
        if is_spread(spec, mesh):
            shard = shard.slice(0, mesh.index("data"), mesh.size("data"))
        shards[name] = shard
    return shards


def is_spread(spec, mesh: Mesh) -> bool:
    """Whether each data rank holds a slice of the parameter instead of a copy (``parallel.optimizer: parameters``).

    Vectors stay whole: they are small, and gathering each would cost a message.
    """
    rows = spec.shape[0] // (mesh.size("tensor") if spec.tensor_axis == 0 else 1)
    return (
        mesh.parallel.slices_parameters
        and mesh.size("data") > 1
        and len(spec.shape) == 2
        and rows % mesh.size("data") == 0
    )


def gradient_dimensions(spec, mesh: Mesh) -> tuple[str, ...]:
    """The dimensions of the mesh over which a parameter's gradient is summed after the backward pass."""
    copies = "replica" if spec.expert else "data"
    over_data = mesh.size(copies) > 1 and not is_spread(spec, mesh)  # a gather's gradient is already summed
    over_tensor = mesh.parallel.sequence and mesh.size("tensor") > 1 and spec.tensor_axis is None
    return (copies,) * over_data + ("tensor",) * over_tensor


def moment_shard(spec, shard: Shard, mesh: Mesh) -> Shard:
    """The region of a parameter whose optimizer moments this rank keeps and updates."""
    parts = mesh.size("data")
    spread = is_spread(spec, mesh) or spec.expert and mesh.size("expert") > 1
    if not mesh.parallel.optimizer or spread or parts == 1 or shard.shape[0] % parts:
        return shard
    return shard.slice(0, mesh.index("data"), parts)


def is_owner(spec, mesh: Mesh) -> bool:
    """Whether this rank counts for its part in norms and checkpoints: of the ranks with copies, one does."""
    return is_first_copy(spec, mesh) and (is_first_replica(spec, mesh) or is_spread(spec, mesh))


def is_first_replica(spec, mesh: Mesh) -> bool:
    """Whether this rank is the first of the data dimension that holds its part of the parameter."""
    return mesh.index("replica" if spec.expert else "data") == 0


def is_first_copy(spec, mesh: Mesh) -> bool:
    """Whether this rank is the first of the pipeline and tensor dimensions that holds its part of the parameter."""
    if spec.tensor_axis is None and mesh.index("tensor") > 0:
        return False
    return spec.name != WORD or mesh.is_first_stage
