"""``events.jsonl``: what happened in a run, one JSON object a line, only ever appended to.

Every line has ``v`` (schema version), ``time`` (seconds since 1970) and ``kind``; kinds are ``start``, ``compile``,
``step``, ``overflow``, ``eval``, ``checkpoint``, ``memory``, ``sample``, ``schedule``, ``warning`` and ``end``. A
reader copes with a last line that is still being written, and with a run that died and was resumed: a ``start`` with
``resumed_from`` voids the steps after that number, which the resumed run repeats.

A ``start`` has the ``budget`` of seconds after which the run ends, where it has one. ``train.minutes`` fits the number of
``steps`` to it: a ``step`` then tells how many are expected in all, and a ``schedule`` how many were chosen.

A ``start`` names the vocabulary (its fingerprint) and the characters of the training text that a token stands for. An
``eval`` has the held-out ``loss`` (nats a token), its ``perplexity`` and ``bits_per_character``, measured on the first
``records`` of the data set's ``of_records``. Runs of older versions lack these, and data sets may not know their
characters.

A ``step`` of a model with experts also has ``expert_load``, one list per block with experts (in the order of
``model.moe_layers``): the share of that block's tokens that its router sent to each expert (each list sums to 1; in an
even one all entries are 1 / experts). ``drop_rate`` is the share of all tokens that were dropped because their expert
was full. ``aux_loss`` is the weighted load-balancing and z-losses that were added to the loss, summed over all blocks;
``loss`` excludes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from pangu_lab.errors import InputError
from pangu_lab.reading import checked, parse_json
from pangu_lab.schema import Count, Schema, Seconds

VERSION = 1
FILE = "events.jsonl"
LINE_LIMIT = 1 << 20  # bytes; the step of a model with 1000 experts in 60 blocks needs that many


class _Event(Schema):
    kind: str
    v: int = VERSION
    time: Seconds


class _Start(_Event):
    resumed_from: Count = 0
    budget: Seconds | None = None
    vocabulary: str = ""
    characters_per_token: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class _Step(_Event):
    """A step, or an overflow, which has no loss."""

    step: Count
    steps: Count = 0
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    loss_scale: float = 1.0
    tokens_per_second: float | None = None
    expert_load: list[list[float]] | list[float] = []  # older versions wrote one list, the mean over the blocks
    drop_rate: float = 0.0
    aux_loss: float = 0.0

    @field_validator("expert_load")
    @classmethod
    def _rectangular(cls, load: list[Any]) -> list[Any]:
        if len({len(block) for block in load if isinstance(block, list)}) > 1:
            raise ValueError("its blocks have different numbers of experts")
        return load


class _LoggedStep(_Step):
    loss: float


class _Evaluation(_Event):
    step: Count
    loss: float
    perplexity: float | None = None
    bits_per_character: float | None = None
    records: Count | None = None
    of_records: Count | None = None


class _RankMemory(Schema):
    rank: Count
    peak_mb: float
    device_peak_mb: float | None = None
    weights_mb: float
    optimizer_mb: float


class _Memory(_Event):
    ranks: list[_RankMemory]


class _Sample(_Event):
    step: Count
    prompt: str
    text: str


class _Schedule(_Event):
    """``train.minutes`` has set the last step."""

    step: Count
    steps: Count


class _Warning(_Event):
    text: str


_KINDS: dict[str, type[_Event]] = {
    "start": _Start,
    "step": _LoggedStep,
    "overflow": _Step,
    "eval": _Evaluation,
    "memory": _Memory,
    "warning": _Warning,
    "sample": _Sample,
    "schedule": _Schedule,
}


class EventLog:
    """Appends events to a run; each line is written in a single call."""

    def __init__(self, run_folder: Path | str):
        path = Path(run_folder) / FILE
        self._end_broken_line(path)
        self._handle = open(path, "ab", buffering=0)

    @staticmethod
    def _end_broken_line(path: Path) -> None:
        """End a line that a killed run left unfinished, so that our first event starts on a new line."""
        if path.exists() and path.stat().st_size:
            with open(path, "r+b") as handle:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":
                    handle.write(b"\n")

    def write(self, kind: str, **fields: Any) -> None:
        event = {"v": VERSION, "time": round(time.time(), 3), "kind": kind, **fields}
        self._handle.write((json.dumps(event, ensure_ascii=False, allow_nan=True) + "\n").encode())

    def close(self) -> None:
        os.fsync(self._handle.fileno())
        self._handle.close()


class EventReader:
    """Reads a run's events incrementally: each ``new()`` gives the events since the last one.

    Attributes:
        damaged: lines skipped so far because they are not events: half-written by a run that was killed, or broken.
    """

    def __init__(self, run_folder: Path | str):
        self.path = Path(run_folder) / FILE
        self.damaged = 0
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call.

        Raises:
            InputError: the file is there but cannot be read.
        """
        try:
            with open(self.path, "rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path}: the run's events cannot be read ({error.strerror})") from None
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = [_parse(line) for line in whole.split(b"\n") if line.strip()]
        self.damaged += events.count(None)
        return [event for event in events if event is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None when the line is damaged."""
    if len(line) > LINE_LIMIT:
        return None
    with contextlib.suppress(InputError):
        event = parse_json(line, FILE, _Event)
        return checked(event, _KINDS.get(event["kind"], _Event), FILE)
    return None


def read_events(run_folder: Path | str) -> Iterator[dict[str, Any]]:
    """All complete events of a run, in order."""
    yield from EventReader(run_folder).new()


@dataclass
class Curves:
    """The curves of a run so far, without steps that a resume voided."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    overflows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0  # lines that were skipped

    def add(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "start":
            self._discard_after(event.get("resumed_from", 0))
        {"step": self.steps, "eval": self.evals, "overflow": self.overflows, "sample": self.samples}.get(
            kind, self.others
        ).append(event)

    @property
    def start(self) -> dict[str, Any]:
        """The newest ``start``; empty before there is one."""
        return next((event for event in reversed(self.others) if event["kind"] == "start"), {})

    def _discard_after(self, step: int) -> None:
        for events in (self.steps, self.evals, self.overflows, self.samples):
            while events and events[-1]["step"] > step:
                events.pop()


def read_curves(run_folder: Path | str) -> Curves:
    """Steps, evaluations and overflows of a run, with resumes accounted for."""
    curves, reader = Curves(), EventReader(run_folder)
    for event in reader.new():
        curves.add(event)
    curves.damaged = reader.damaged
    return curves
