"""Memory honesty: what a load needs is said before it begins, and one that cannot fit is refused.

The figures are for a CPU, where everything is kept in fp32, and were measured with 350M and 2.6B (MindSpore 2.10). A
graph there lets go of nothing between its operators, so a forward pass keeps, in each layer and for each token, ``ROWS``
rows of the hidden size and ``SCORES`` of attention scores; that is why long prompts of large models are fed in parts
(``tokens_at_once``). Training has its own, finer figures in ``pangu_lab.planner``, and comes here only to be checked.

Estimates go to the logger ``pangu_lab.memory``, which writes to standard error; raise its level to silence it. What any
machine has to spare is not worth a line, which a notebook would paint red: less than ``MUCH``, and a quarter of what is free.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.presets import PRESETS, preset

GIB = 1 << 30
ROWS, SCORES = 40.0, 4.2  # float32 numbers a layer and token: times hidden_size, and times heads · positions looked at
WORK = 2 * GIB  # what the forward pass of one call may keep
PROGRAM = GIB // 2  # MindSpore itself, and the compiled graphs
IDLE = 400 << 20  # what `top` shows of a process that has imported MindSpore and done nothing
MUCH = GIB
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Need:
    """Bytes that some work takes, by what they are for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size(amount)}" for name, amount in self.parts.items() if 100 * amount >= self.total)
        return f"{size(self.total)} of memory ({parts})"


def size(amount: float) -> str:
    """``12.3 GB`` (of 2³⁰ bytes), ``45 MB`` below one of them."""
    return f"{amount / GIB:.1f} GB" if amount >= GIB else f"{amount / (1 << 20):.0f} MB"


def available() -> int:
    """Bytes that this process may still take: of the machine, or of the container it is in.

    The files that a container has read count as its memory until others need it: the system takes that back first
    (``inactive_file``), so it is free.
    """
    rooms = (limit - used for limit, used in _limits())
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def total() -> int:
    """Bytes that this machine, or the container that this process is in, has altogether."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, what is used of it and cannot be taken back at once) of every control group that has one."""
    for folder in _groups():
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
                most = int((folder / limit).read_text())
                yield most, int((folder / used).read_text()) - _inactive(folder / "memory.stat")


def _groups() -> list[Path]:
    """Where the limits on this process may stand: its control group and those around it, of version 2 and 1."""
    folders = []
    with contextlib.suppress(OSError):
        for line in OWN_GROUP.read_text().strip().split("\n"):
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                root = CGROUP if number == "0" else CGROUP / "memory"
                own = root / path.lstrip("/")
                folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return list(dict.fromkeys([*folders, CGROUP, CGROUP / "memory"]))


def _inactive(statistics: Path) -> int:
    """``inactive_file`` of a container's statistics; in version 1 the total, with those of containers inside."""
    with contextlib.suppress(OSError, ValueError):
        values = dict(line.split() for line in statistics.read_text().strip().split("\n"))
        return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
    return 0


# -------------------------------------------------------------------------------------------------- what is needed


def forward_bytes(model: ModelConfig, tokens: int, span: int, layers: int | None = None) -> int:
    """What a forward pass of ``tokens`` new tokens keeps, each of which looks at ``span`` positions; through ``layers`` of
    the network's, all by default."""
    each = ROWS * model.hidden_size + SCORES * model.num_heads * span
    return int(4 * (layers or model.num_layers) * tokens * each + 8 * tokens * model.vocab_size)


def tokens_at_once(model: ModelConfig, limit: int = WORK) -> int:
    """Tokens that one call of the network may be fed so that it keeps no more than ``limit``; at least 16."""
    return max(16, limit // forward_bytes(model, 1, model.num_positions))


def weight_bytes(model: ModelConfig, dtype: str = "float32") -> int:
    return {"float32": 4, "int8": 1}.get(dtype, 2) * model.num_parameters


def generation_need(
    model: ModelConfig, slots: int | None = None, dtype: str = "float32", layers: int | None = None
) -> Need:
    """To hold a model and write with it: weights once in ``dtype``, cache, the work of one call (through ``layers``)."""
    slots = slots or max(model.num_positions, 1024)
    tokens = min(model.num_positions, tokens_at_once(model))
    return Need(
        {
            "weights": weight_bytes(model, dtype),
            "key-value cache": 8 * model.num_layers * slots * model.hidden_size,
            "work": forward_bytes(model, tokens, model.num_positions, layers) + 2 * _largest(model),
            "program": PROGRAM,
        }
    )


def scoring_need(model: ModelConfig, tokens: int) -> Need:
    """To score batches of ``tokens`` tokens: such graphs have fixed shapes and keep the weights once more."""
    tokens = max(tokens, model.num_positions)
    return Need(
        {
            "weights": 2 * weight_bytes(model),
            "work": forward_bytes(model, tokens, model.num_positions),
            "program": PROGRAM,
        }
    )


def conversion_need(shapes: Iterable[int], group: int) -> Need:
    """To convert parameters of these many elements: the largest in two forms, and a file's worth of others."""
    return Need({"largest parameter": 8 * max(shapes), "files being written": 2 * group, "program": PROGRAM // 2})


def _largest(model: ModelConfig) -> int:
    return 4 * max(model.vocab_size * model.hidden_size, 4 * model.hidden_size**2)


# ------------------------------------------------------------------------------------------------- said and checked


def check(what: str, need: Need, smaller: Callable[[ModelConfig], Need] | None = None) -> None:
    """Say what ``what`` needs if it is much, and refuse it when that is not there; as ``estimate``, which gives the words."""
    words = estimate(what, need, smaller)
    log.log(logging.INFO if need.total > min(MUCH, available() / 4) else logging.DEBUG, words)


def estimate(
    what: str, need: Need, smaller: Callable[[ModelConfig], Need] | None = None, more: Callable[[], str] = lambda: ""
) -> str:
    """What ``what`` needs and what is there, in a line.

    Args:
        smaller: what another network would need; gives the largest preset that would fit.
        more: what else would help, in words.

    Raises:
        InputError: one line with what is needed, what is there, and what would fit.
    """
    free = available()
    if need.total > free:
        hints = [hint for hint in (more(), _preset_that_fits(smaller, free) if smaller else "") if hint]
        hints = hints or [f"{size(need.total - free)} more are missing"]
        raise InputError(f"{what} needs {need}, and {size(free)} are free here: " + "; ".join(hints))
    return f"{what}: about {need}; {size(free)} are free"


def _preset_that_fits(need: Callable[[ModelConfig], Need], free: int) -> str:
    """The largest preset that would fit, in words."""
    sizes = {name: need(preset(name).model).total for name in PRESETS if name != "self_define"}
    fitting = [name for name, total in sizes.items() if total <= free]
    if not fitting:
        return "no preset would fit"
    largest = max(fitting, key=lambda name: preset(name).model.num_parameters)
    return f"preset {largest} would fit ({size(sizes[largest])})"


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment, which a notebook or a test may have changed."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(record.getMessage() + "\n")
        sys.stderr.flush()


def _logger() -> logging.Logger:
    logger = logging.getLogger("pangu_lab.memory")
    if not logger.handlers:
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


log = _logger()
