"""Checks whether a training fits in this machine's memory, before anything is loaded.

The estimates are the planner's, calibrated on measured CPU processes. Accelerators have their own memory; use
``pangu-lab plan`` for them.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Optional

from pangu_lab import memory
from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.memory import Need, available, size
from pangu_lab.planner import estimate


def memory_line(config: RunConfig) -> str:
    """The memory that this machine's ranks need, in a line; one of them calls it.

    Raises:
        InputError: one line with what is needed, what is there, and what would fit.
    """
    here = max(1, int(os.environ.get("PANGU_LAB_LOCAL_RANKS", config.parallel.world_size)))
    each = estimate(config, hardware="cpu")
    need = Need({kind: here * amount for kind, amount in each.memory.items() if amount})
    what = "training" + (f" with {here} processes here" if here > 1 else "")
    return memory.estimate(what, need, lambda model: _need_of(config, model), _split(config))


def _need_of(config: RunConfig, model: ModelConfig) -> Need:
    """What one process would need for another network, all else equal."""
    data = dataclasses.replace(config.data, seq_length=min(config.data.seq_length, model.num_positions))
    other = dataclasses.replace(config, model=model, parallel=ParallelConfig(), data=data)
    return Need(estimate(other, hardware="cpu").memory)


def _split(config: RunConfig):
    """The advice, in words: tensor parallelism over machines like this one; computed only when needed."""
    def words() -> str:
        found = _tensor(config)
        split = f"parallel.tensor={found[0]} would need {size(found[1])} on each of {found[0]} machines, " if found else ""
        return f"{split}a smaller data.batch_size less of activations (`pangu-lab plan` goes through the layouts)"

    return words


def _tensor(config: RunConfig) -> Optional[tuple[int, int]]:
    """The smallest tensor dimension whose ranks fit, and the memory one needs."""
    for ranks in (2, 4, 8, 16, 32):
        layout = dataclasses.replace(config.parallel, tensor=ranks, data=1, pipeline=1, micro_batches=1, optimizer=False)
        try:
            total = estimate(dataclasses.replace(config, parallel=layout), hardware="cpu").total
        except InputError:  # it does not divide the heads or the vocabulary
            continue
        if total <= available():
            return ranks, total
    return None
