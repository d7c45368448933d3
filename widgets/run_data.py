"""A run as the monitor sees it: its files read incrementally, its curves kept small enough to draw.

``RunFollower.poll`` reads what was added to ``events.jsonl`` since the last call. Every step is kept (a few dozen
bytes), but the page gets at most ``MAX_BUCKETS`` rows: neighbouring steps become one row with mean, minimum
and maximum. Rows hold 1, 2, 4, 8 … steps, so adding a step only changes the last row, whatever the length.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.runs.events import EventReader
from pangu_lab.runs.status import PACE, seconds_a_step
from pangu_lab.runs.units import Vocabulary, bits_per_character

MAX_BUCKETS = 512
PLACES = ("step", "time", "tokens")  # what a curve can be drawn over
EVALUATION = ("step", "time", "loss", "perplexity", "bits_per_character", "records", "of_records")
METRICS = ("loss", "lr", "grad_norm", "loss_scale", "tokens_per_second", "memory_mb", "aux_loss", "drop_rate")


class StepTable:
    """Steps of a run as columns, and the rows drawn from them.

    Attributes:
        columns: name → float64 values, one a step; NaN where a step did not tell.
        generation: changes when steps were taken back, so that rows sent earlier are known to be stale.
    """

    def __init__(self) -> None:
        self.columns = {name: array("d") for name in (*PLACES, *METRICS)}
        self.loads: list[list[float]] = []  # of experts, a list a step; empty for a model without them
        self.generation = 0

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def width(self) -> int:
        """Steps a row."""
        width = 1
        while len(self) > width * MAX_BUCKETS:
            width *= 2
        return width

    def add(self, event: Mapping[str, Any]) -> None:
        for name, column in self.columns.items():
            value = event.get(name)
            column.append(float(value) if isinstance(value, (int, float)) else np.nan)
        load = event.get("expert_load")
        if isinstance(load, list) and load:
            self.loads += [[]] * (len(self) - 1 - len(self.loads))
            self.loads.append(np.mean(np.atleast_2d(load), axis=0).tolist())  # over the blocks

    def take_back(self, step: int) -> None:
        """Forget the steps after ``step``: a resumed run does them again."""
        kept = bisect.bisect_right(self.columns["step"], step)
        if kept == len(self):
            return
        for column in self.columns.values():
            del column[kept:]
        del self.loads[kept:]
        self.generation += 1

    def last(self, name: str) -> float | None:
        """The newest number that is there, None where there is none."""
        for value in reversed(self.columns[name][-50:]):
            if not np.isnan(value):
                return value
        return None

    def rows(self, first: int = 0) -> dict[str, np.ndarray]:
        """Rows from number ``first`` on: ``step``, ``time``, ``tokens`` of each row's last step (float64), ``count``,
        every metric that was told as its mean, with ``NAME.low`` and ``NAME.high`` where a row holds several steps
        (float32); ``expert_load`` (rows, experts)."""
        width = self.width
        begin, length = first * width, len(self)
        starts = np.arange(begin, length, width)
        if not starts.size:
            return {}
        ends = np.minimum(starts + width, length)
        result = {name: np.frombuffer(self.columns[name])[ends - 1].astype(np.float64) for name in PLACES}
        result["count"] = (ends - starts).astype(np.float32)
        for name in METRICS:
            values = np.array(self.columns[name][begin:])
            if not np.isnan(values).all():
                result.update(_summary(name, values, starts - begin, width))
        if self.loads:
            result["expert_load"] = self._load_rows(starts, ends)
        return result

    def _load_rows(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        experts = max(len(load) for load in self.loads)
        rows = np.full((starts.size, experts), np.nan, np.float32)
        for row, (start, end) in enumerate(zip(starts, ends)):
            loads = [load for load in self.loads[start:end] if len(load) == experts]
            if loads:
                rows[row] = np.mean(loads, 0)
        return rows


def _summary(name: str, values: np.ndarray, starts: np.ndarray, width: int) -> dict[str, np.ndarray]:
    if width == 1:
        return {name: values.astype(np.float32)}
    good = np.isfinite(values)
    counts = np.add.reduceat(good, starts).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(good, values, 0.0), starts) / counts
    low = np.minimum.reduceat(np.where(good, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(good, values, -np.inf), starts)
    empty = counts == 0
    return {
        key: np.where(empty, np.nan, column).astype(np.float32)
        for key, column in ((name, mean), (f"{name}.low", low), (f"{name}.high", high))
    }


class RunFollower:
    """One run, followed.

    Attributes:
        steps: its curves.
        evals: {"step", "time", "tokens", "loss", "perplexity", "bits_per_character", "records", "of_records"} of every
            evaluation; the last three are None where they were not told.
        marks: {"kind", "step", "time", …} of overflows, resumes, checkpoints and warnings.
        samples: {"step", "prompt", "text"} of every continuation of ``train.sample_prompts``.
        facts: of the last start: preset, parameters, device …
        last_event: the newest event, None before the first. ``last_step`` is the newest step, empty before the first.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self._begin()

    def _begin(self) -> None:
        self._reader = EventReader(self.folder)
        self.steps = StepTable()
        self.evals: list[dict[str, Any]] = []
        self.marks: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.last_event: dict[str, Any] | None = None
        self.last_step: dict[str, Any] = {}
        self._identity: tuple[int, int] | None = None

    def poll(self) -> bool:
        """Read what is new; whether there was anything. A run begun anew in the same folder is read from its start."""
        self._look_at_file()
        events = self._reader.new()
        for event in events:
            self._add(event)
        return bool(events)

    def _look_at_file(self) -> None:
        try:
            status = self._reader.path.stat()
        except FileNotFoundError:
            return
        if self._identity is not None and (self._identity[0] != status.st_ino or status.st_size < self._identity[1]):
            generation = self.steps.generation
            self._begin()
            self.steps.generation = generation + 1
        self._identity = (status.st_ino, status.st_size)

    def _add(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.last_event = event
        if event.get("steps"):
            self.facts = {**self.facts, "steps": event["steps"]}
        if kind == "step":
            self.steps.add(event)
            self.last_step = event
        elif kind == "eval":
            self.evals.append(
                {**{key: event.get(key) for key in EVALUATION}, "tokens": self.steps.last("tokens") or 0.0}
            )
        elif kind == "sample":
            self.samples.append({key: event[key] for key in ("step", "prompt", "text")})
        elif kind in ("overflow", "checkpoint", "warning", "compile"):
            self.marks.append(
                {
                    key: event.get(key)
                    for key in ("kind", "step", "time", "text", "seconds", "loss_scale")
                    if key in event
                }
            )
        elif kind == "start":
            self._start(event)

    def _start(self, event: dict[str, Any]) -> None:
        step = int(event.get("resumed_from", 0))
        self.facts = event
        self.steps.take_back(step)
        self.evals = [item for item in self.evals if item["step"] <= step]
        self.samples = [item for item in self.samples if item["step"] <= step]
        self.marks = [mark for mark in self.marks if mark.get("step") is None or mark["step"] <= step]
        if step or len(self.steps):
            self.marks.append({"kind": "resume", "step": step, "time": event.get("time")})

    # ---------------------------------------------------------------- what follows from it

    @property
    def overflows(self) -> int:
        return sum(mark["kind"] == "overflow" for mark in self.marks)

    @property
    def compile_seconds(self) -> float | None:
        """Of the newest compilation, None while there was none."""
        return next((mark.get("seconds") for mark in reversed(self.marks) if mark["kind"] == "compile"), None)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.facts, int(self.facts.get("vocab_size", 0)))

    def bits(self, loss: float) -> float:
        """A training loss as bits per character; NaN where the characters are not known."""
        found = bits_per_character(float(loss), self.vocabulary.characters_per_token)
        return np.nan if found is None else found

    def seconds_a_step(self) -> float | None:
        """See ``pangu_lab.runs.status.seconds_a_step``."""
        return seconds_a_step(self.facts, *(self.steps.columns[name][-PACE:] for name in ("time", "step")))

    def csv(self) -> str:
        """Every step, and the evaluations in a column beside them; numbers in full, as told."""
        evals = {item["step"]: item for item in self.evals}
        names = (
            [name for name in (*PLACES, *METRICS) if not np.isnan(np.frombuffer(self.steps.columns[name])).all()]
            if len(self.steps)
            else list(PLACES)
        )
        told = [
            key
            for key in ("loss", "perplexity", "bits_per_character")
            if key != "bits_per_character" or any(item.get(key) is not None for item in self.evals)
        ]
        lines = [",".join(["run", *names, *(f"eval_{key}" for key in told)])]
        columns = [self.steps.columns[name] for name in names]
        if 0 in evals:
            lines.append(self._csv_line([0.0 if name == "step" else np.nan for name in names], told, evals[0]))
        for values in zip(*columns):
            lines.append(self._csv_line(values, told, evals.get(int(values[0]), {})))
        return "\n".join(lines) + "\n"

    def _csv_line(self, values, told: Sequence[str], evaluation: Mapping[str, Any]) -> str:
        cells = [_csv_number(value) for value in values]
        cells += [_csv_number(evaluation.get(key)) for key in told]
        name = '"' + self.name.replace('"', '""') + '"' if set(self.name) & set(',"\n') else self.name
        return ",".join([name, *cells])


def _csv_number(value: float | None) -> str:
    if value is None or np.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
