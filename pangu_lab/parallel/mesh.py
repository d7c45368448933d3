"""The mesh: world = pipeline × data × tensor, and the coordinates of one rank in it.

Ranks are numbered with the tensor dimension fastest, so that the ranks that communicate most are neighbours:
``rank = (pipeline · data_size + data) · tensor_size + tensor``. The data dimension is itself two: ``expert`` (the
faster) spreads experts over ranks, ``replica`` holds copies of them: data = replica · expert_size + expert. Nothing
here talks to another process; the collectives ask the mesh for the members of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_lab.config import ParallelConfig, RunConfig
from pangu_lab.errors import InputError

DIMENSIONS = ("pipeline", "data", "tensor")
_GRID = ("pipeline", "replica", "expert", "tensor")


@dataclass(frozen=True)
class Mesh:
    """Sizes of the three dimensions and the coordinates of this rank.

    Args:
        parallel: the layout.
        rank: this process, 0 … world size − 1.
    """

    parallel: ParallelConfig = ParallelConfig()
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.parallel.world_size:
            raise InputError(f"rank {self.rank} is outside a world of {self.parallel.world_size} processes")

    def size(self, dimension: str) -> int:
        if dimension == "replica":
            return self.parallel.data // self.parallel.expert
        return int(getattr(self.parallel, dimension))

    @property
    def coordinates(self) -> dict[str, int]:
        """This rank's coordinate along each dimension."""
        shape = tuple(self.size(name) for name in DIMENSIONS)
        return dict(zip(DIMENSIONS, (int(i) for i in np.unravel_index(self.rank, shape))))

    def index(self, dimension: str) -> int:
        if dimension in ("replica", "expert"):
            return divmod(self.coordinates["data"], self.size("expert"))[dimension == "expert"]
        return self.coordinates[dimension]

    def group(self, *dimensions: str) -> list[int]:
        """The ranks that differ from this one only along ``dimensions``, in order."""
        free = {*dimensions, *(("replica", "expert") if "data" in dimensions else ())}
        grid = np.arange(self.parallel.world_size).reshape([self.size(name) for name in _GRID])
        place = tuple(slice(None) if name in free else self.index(name) for name in _GRID)
        return [int(rank) for rank in np.atleast_1d(grid[place]).ravel()]

    def rank_at(self, **coordinates: int) -> int:
        """The rank whose coordinates are this rank's, with those given replaced."""
        place = {**self.coordinates, **coordinates}
        shape = tuple(self.size(name) for name in DIMENSIONS)
        return int(np.ravel_multi_index(tuple(place[name] for name in DIMENSIONS), shape))

    def layers(self, num_layers: int) -> range:
        """The layers this pipeline stage holds: as even as possible, with the remainder on the earlier stages."""
        stages, stage = self.size("pipeline"), self.index("pipeline")
        base, extra = divmod(num_layers, stages)
        start = stage * base + min(stage, extra)
        return range(start, start + base + (1 if stage < extra else 0))

    @property
    def row_parts(self) -> int:
        """Into how many parts the tensor ranks split the rows of activations between layers."""
        return self.size("tensor") if self.parallel.sequence else 1

    @property
    def is_first_stage(self) -> bool:
        return self.index("pipeline") == 0

    @property
    def is_last_stage(self) -> bool:
        return self.index("pipeline") == self.size("pipeline") - 1


def check_layout(config: RunConfig, powers_of_two: bool = False) -> None:
    """Refuse an impossible layout, in one line that names the key.

    Args:
        config: complete settings.
        powers_of_two: whether data and expert parallelism must be powers of two, as tensor parallelism always is:
            Ascend's collectives and the reference require it.

    Raises:
        InputError: a dimension does not divide what it splits, or there is too little to split.
    """
    parallel, model = config.parallel, config.model
    tensor = parallel.tensor
    for what, amount in (("model.num_heads", model.num_heads), ("model.vocab_size", model.vocab_size)):
        if amount % tensor:
            raise InputError(f"parallel.tensor={tensor} must divide {what}={amount}")
    for name in ("tensor", "data", "expert") if powers_of_two else ("tensor",):
        size = getattr(parallel, name)
        if size & (size - 1):
            where = "" if name == "tensor" else " on Ascend"
            raise InputError(
                f"parallel.{name}={size} must be a power of two{where}: take {1 << size.bit_length() - 1} or "
                f"{1 << size.bit_length()}"
            )
    if parallel.sequence and config.data.seq_length % tensor:
        raise InputError(
            f"parallel.tensor={tensor} must divide data.seq_length={config.data.seq_length} with parallel.sequence"
        )
    if parallel.pipeline > model.num_layers:
        raise InputError(
            f"parallel.pipeline={parallel.pipeline} is more stages than model.num_layers={model.num_layers}"
        )
    if parallel.pipeline > 1 and parallel.micro_batches < parallel.pipeline:
        raise InputError(
            f"parallel.micro_batches={parallel.micro_batches} must be at least "
            f"parallel.pipeline={parallel.pipeline}, or stages would idle"
        )
