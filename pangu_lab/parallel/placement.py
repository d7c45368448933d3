"""Which part of which parameter lives on a rank: the link between the table of parameters and the mesh.

Pipeline stages hold whole layers, tensor ranks slices along one axis, data ranks copies. The word embedding is held by
the first stage (input) and the last (head). With ``parallel.optimizer`` the optimizer's moments of a rank are further
sliced along axis 0 over the data dimension, where that divides. Expert parallelism spreads axis 0 of the experts'
parameters over ranks of the data dimension, which then hold no copies of one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pangu_lab.parallel.mesh import Mesh

WORD = "backbone.word_embedding.embedding_table"


@dataclass(frozen=True)
class Place:
    """A region of a whole tensor."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The region of ``array``."""
        return array[tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape))]

    def slice(self, axis: int, index: int, parts: int) -> Place:
        """Part ``index`` of ``parts`` equal ones along ``axis``."""
        size = self.shape[axis] // parts
        offset = tuple(o + (index * size if a == axis else 0) for a, o in enumerate(self.offset))
        return Place(self.whole, offset, tuple(size if a == axis else n for a, n in enumerate(self.shape)))


def on_stage(spec, mesh: Mesh, num_layers: int) -> bool:
    """Whether this rank's pipeline stage holds the parameter."""
    if spec.name == WORD:
        return mesh.is_first_stage or mesh.is_last_stage
    return mesh.is_first_stage if spec.layer < 0 else spec.layer in mesh.layers(num_layers)


def parameter_places(specs: Mapping, mesh: Mesh, num_layers: int) -> dict[str, Place]:
    """This rank's parameters by name, and the region of each that it holds."""
    places = {}
    for name, spec in specs.items():
        if not on_stage(spec, mesh, num_layers):
            continue
        place = Place(spec.shape, (0,) * len(spec.shape), spec.shape)
        if spec.tensor_axis is not None:
            place = place.slice(spec.tensor_axis, mesh.index("tensor"), mesh.size("tensor"))
        if spec.expert:
            place = place.slice(0, mesh.index("expert"), mesh.size("expert"))
        places[name] = place
    return places


def moment_place(place: Place, mesh: Mesh, sliced: bool) -> Place:
    """The region of a parameter whose optimizer moments this rank keeps and updates."""
    parts = mesh.size("data")
    if not sliced or parts == 1 or place.shape[0] % parts:
        return place
    return place.slice(0, mesh.index("data"), parts)


def slices_moments(spec, mesh: Mesh) -> bool:
    """Whether optimizer parallelism slices the parameter's moments: not those of experts that are spread already."""
    return mesh.parallel.optimizer and not (spec.expert and mesh.size("expert") > 1)


def is_first_replica(spec, mesh: Mesh) -> bool:
    """Whether this rank is the first of the data dimension that holds its part of the parameter."""
    return mesh.index("replica" if spec.expert else "data") == 0


def counts_in_norm(spec, mesh: Mesh) -> bool:
    """Whether this rank adds the parameter's gradient to the global norm, so that each element counts once.

    The norm is summed over pipeline, expert and tensor ranks.
    """
    return is_first_copy(spec, mesh) and (spec.expert or mesh.index("expert") == 0)


def is_first_copy(spec, mesh: Mesh) -> bool:
    """Whether this rank is the first of the pipeline and tensor dimensions that holds its part of the parameter."""
    if spec.tensor_axis is None and mesh.index("tensor") > 0:
        return False
    return spec.name != WORD or mesh.is_first_stage
