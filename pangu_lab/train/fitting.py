"""Checks whether a training fits in this machine's memory, before anything is loaded.

The estimates are the planner's, calibrated on measured CPU processes. Accelerators have their own memory; use
``pangu-lab plan`` for them.
"""

from __future__ import annotations

import dataclasses
import os

from pangu_lab import memory
from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.memory import Need, available, size
from pangu_lab.planner import estimate


def memory_line(config: RunConfig) -> str:
    """One line about the memory that this machine's ranks need, and what ``top`` will show; called by one of them.

    Raises:
        InputError: they need too much; one line says how much they need, how much there is, and what would fit.
    """
    here = max(1, int(os.environ.get("PANGU_LAB_LOCAL_RANKS", config.parallel.world_size)))
    per_rank = estimate(config, hardware="cpu")
    need = Need({kind: here * amount for kind, amount in per_rank.memory.items() if amount})
    what = "training" + (f" with {here} processes here" if here > 1 else "")
    line = memory.estimate(what, need, lambda model: _need_of(config, model), _split(config))
    return f"{line}; {shown_in_top(per_rank.total, 'each process' if here > 1 else 'the process')}"


def shown_in_top(estimated: int, who: str = "each process") -> str:
    """What a process that needs so much will show, in words: the estimate does not count what MindSpore itself takes."""
    return f"{who} will show about {size(estimated + memory.IDLE)} in `top`, {size(memory.IDLE)} of it MindSpore itself"


def _need_of(config: RunConfig, model: ModelConfig) -> Need:
    """What one process would need for another network, all else equal."""
    data = dataclasses.replace(config.data, seq_length=min(config.data.seq_length, model.num_positions))
    other = dataclasses.replace(config, model=model, parallel=ParallelConfig(), data=data)
    return Need(estimate(other, hardware="cpu").memory)


def _split(config: RunConfig):
    """A function that gives advice: tensor parallelism over machines like this one. Called only when needed."""

    def advice() -> str:
        fitting = _tensor(config)
        split = (
            ""
            if fitting is None
            else (f"parallel.tensor={fitting[0]} would need {size(fitting[1])} on each of {fitting[0]} machines, ")
        )
        return f"{split}a smaller data.batch_size less of activations (`pangu-lab plan` goes through the layouts)"

    return advice


def _tensor(config: RunConfig) -> tuple[int, int] | None:
    """The smallest tensor dimension whose ranks fit, and the memory that each needs."""
    for ranks in (2, 4, 8, 16, 32):
        layout = dataclasses.replace(
            config.parallel, tensor=ranks, data=1, pipeline=1, micro_batches=1, optimizer=False
        )
        try:
            total = estimate(dataclasses.replace(config, parallel=layout), hardware="cpu").total
        except InputError:  # it does not divide the heads or the vocabulary
            continue
        if total <= available():
            return ranks, total
    return None
