"""Agreement between the ranks of a run: summed gradients, one loss, one norm, one decision to stop.

With a single process every method returns what it was given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from pangu_lab.parallel.collectives import AllReduce, group_of
from pangu_lab.parallel.gradients import SumGradients, sum_gradients_over
from pangu_lab.parallel.mesh import Mesh


class Ranks:
    """This rank's collectives with all the others."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.is_first = mesh.rank == 0
        self._everyone = AllReduce(group_of(mesh, "pipeline", "data", "tensor"))
        self._losses = AllReduce(group_of(mesh, "pipeline", "data"))
        self._messages: list[tuple[list[int], SumGradients]] = []
        self.seconds = 0.0  # spent in gradient sums, including waiting for other ranks

    def prepare_gradients(self, shapes: list[tuple[int, ...]], dimensions: list[tuple[str, ...]]) -> None:
        """Build the all-reduces for gradients of these shapes, each summed over its dimensions of the mesh."""
        for over in sorted(set(dimensions) - {()}):
            chosen = [i for i, own in enumerate(dimensions) if own == over]
            message = sum_gradients_over(group_of(self.mesh, *over), [shapes[i] for i in chosen])
            self._messages.append((chosen, message))

    def sum_gradients(self, gradients):
        """Sum each gradient over the ranks that computed a part of it."""
        started = time.perf_counter()
        result = list(gradients)
        for chosen, message in self._messages:
            for i, total in zip(chosen, message(*[gradients[i] for i in chosen])):
                result[i] = total
        self.seconds += time.perf_counter() - started
        return tuple(result)

    def sum_over_all(self, value: float) -> float:
        """Sum over all ranks: for squared norms, of which each rank counts its own part."""
        return self._sum(self._everyone, ("pipeline", "data", "tensor"), [value])[0]

    def by_rank(self, values: list[float]) -> list[list[float]]:
        """The values of every rank, in the order of the ranks."""
        world, mine = self.mesh.parallel.world_size, self.mesh.rank
        own = [value if rank == mine else 0.0 for rank in range(world) for value in values]
        flat = self._sum(self._everyone, ("pipeline", "data", "tensor"), own)
        return [flat[rank * len(values) : (rank + 1) * len(values)] for rank in range(world)]

    def sum_over_records(self, values: list[float]) -> list[float]:
        """Sum over pipeline and data ranks: for counts over each rank's records and each stage's blocks."""
        return self._sum(self._losses, ("pipeline", "data"), values)

    def sum_loss(self, value: float) -> float:
        """Sum over pipeline and data ranks: only the last stage has a loss, and each data rank that of its records."""
        return self._sum(self._losses, ("pipeline", "data"), [value])[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; all ranks must call it, and get the same answer."""
        return self._sum(self._everyone, ("pipeline", "data", "tensor"), [float(flag)])[0] > 0

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self.any(False)

    def _sum(self, cell: AllReduce, dimensions: Sequence[str], values: list[float]) -> list[float]:
        if all(self.mesh.size(name) == 1 for name in dimensions):
            return values
        # a double is sent as two singles, so that sums over ranks keep their precision
        exact = np.array(values, np.float64)
        high = exact.astype(np.float32)
        with np.errstate(invalid="ignore"):
            low = np.where(np.isfinite(high), exact - high, 0.0).astype(np.float32)
        total = cell(Tensor(np.concatenate([high, low]))).asnumpy().astype(np.float64)
        return [float(value) for value in total[: len(values)] + total[len(values) :]]
