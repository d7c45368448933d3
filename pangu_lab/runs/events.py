"""``events.jsonl``: what happened in a run, one JSON object a line, only ever appended to.

Every line has ``v`` (schema version), ``time`` (seconds since 1970), ``kind``; kinds are ``start``, ``compile``,
``step``, ``overflow``, ``eval``, ``checkpoint``, ``memory``, ``warning`` and ``end``. A reader copes with a last line that is
still being written, and with a run that died and was resumed: a ``start`` with ``resumed_from`` voids the
steps after that number, which the resumed run repeats.

A ``step`` of a model with experts also has ``expert_load``, one list per block with experts (in the order of
``model.moe_layers``) of the share of that block's tokens that its router sent to each expert (each sums to 1; even
is 1 / experts); ``drop_rate``, the share of all those whose expert was full; and ``aux_loss``, the weighted
load-balancing and z-losses as they were added to the loss, summed over all blocks. ``loss`` excludes them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
FILE = "events.jsonl"


class EventLog:
    """Appends events to a run; each line is written in a single call."""

    def __init__(self, run_folder: Path | str):
        path = Path(run_folder) / FILE
        self._end_broken_line(path)
        self._handle = open(path, "ab", buffering=0)

    @staticmethod
    def _end_broken_line(path: Path) -> None:
        """A run killed in the middle of a line left no newline: end the line, so that ours starts on its own."""
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
    """Reads a run's events incrementally: each ``new()`` gives the events since the last one."""

    def __init__(self, run_folder: Path | str):
        self.path = Path(run_folder) / FILE
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, "rb") as handle:
            handle.seek(self._offset)
            data = handle.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """An event, or None for a line that a killed run left unfinished."""
    try:
        event = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def read_events(run_folder: Path | str) -> Iterator[dict[str, Any]]:
    """All whole events of a run, in order."""
    yield from EventReader(run_folder).new()


@dataclass
class Curves:
    """The curves of a run so far, without steps that a resume voided."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    overflows: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "start":
            self._take_back(int(event.get("resumed_from", 0)))
        {"step": self.steps, "eval": self.evals, "overflow": self.overflows}.get(kind, self.others).append(event)

    def _take_back(self, step: int) -> None:
        for events in (self.steps, self.evals, self.overflows):
            while events and events[-1]["step"] > step:
                events.pop()


def read_curves(run_folder: Path | str) -> Curves:
    """Steps, evaluations and overflows of a run, with resumes accounted for."""
    curves = Curves()
    for event in read_events(run_folder):
        curves.add(event)
    return curves
