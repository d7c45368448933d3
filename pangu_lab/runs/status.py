"""Run folders seen from outside: which there are, what state each is in, and how to ask one to stop.

Whether the process of a run is alive is decided by its identity and its lock (``pangu_lab.locking``). For a process on
another host these may not be enough; then the number of beats in its status is compared with the last one read. The
first read has nothing to compare with, so it uses the time of the last beat, and allows ten minutes because the
clocks of two hosts may differ.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import Field

from pangu_lab.errors import InputError
from pangu_lab.identity import lives, own_identity, parse_identity
from pangu_lab.locking import Lock, holder_lives, read_record
from pangu_lab.reading import read_json
from pangu_lab.runs.events import read_curves
from pangu_lab.schema import Count, Schema, Seconds

STATUS = "status.json"
STOP = "stop"
LOCK = "lock"
ENDED = ("finished", "stopped", "failed", "died")
SILENT_SECONDS = 30.0  # without a beat (one every 5 s), by our clock, before another host's run counts as dead
LONG_AGO = 600.0
PACE = 50  # steps from which the speed is taken
_beats: dict[str, tuple[Any, float]] = {}  # run → the number of beats last read, and when by our clock it changed


class _Status(Schema):
    """``status.json``; older versions wrote fewer fields."""

    state: str
    step: Count = 0
    steps: Count = 0
    reason: str = ""
    pid: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    started: Seconds = 0.0
    heartbeat: Seconds = 0.0
    beats: Count = 0
    process: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunSummary:
    """The state of a run in one line.

    ``state`` is what the run last wrote, "died" when its process ended without writing how, or "damaged" when its
    status cannot be read; ``reason`` then says why. ``damaged_events`` counts skipped lines.
    """

    name: str
    folder: Path
    state: str
    step: int
    steps: int
    loss: float | None
    eval_perplexity: float | None
    tokens_per_second: float | None
    heartbeat: float
    reason: str
    damaged_events: int = 0
    eval_bits_per_character: float | None = None
    epochs: float | None = None  # how often the training data was gone through
    tokens_per_parameter: float | None = None  # tokens of training, repetitions included
    seconds_left: float | None = None  # of a run that goes on, as far as it can be known


def read_status(run_folder: Path | str) -> dict[str, Any]:
    """``status.json`` of a run, with ``state`` corrected to "died" when its process no longer exists."""
    folder = Path(run_folder)
    status = _read(folder)
    if status["state"] not in ENDED and (gone := _gone(folder, status)):
        status["state"] = "died"
        status["reason"] = f"{gone} (last heard of at step {status.get('step', 0)})"
    return status


def _read(folder: Path) -> dict[str, Any]:
    """``status.json`` as it was written."""
    return read_json(folder / STATUS, "the run's status", _Status, "remove it if the run has ended")


def _gone(folder: Path, status: dict[str, Any]) -> str:
    """How the process of an unfinished run ended; empty while it is alive or may be."""
    process = parse_identity(status.get("process"))
    alive = _old_process_lives(status) if process is None else lives(process)
    record = read_record(folder / LOCK)
    if process is not None and alive is None and record is not None:
        alive = False if record.process != process else holder_lives(folder / LOCK, record)
    if alive is None:
        return f"no sign of life from host {process.host}" if process and _silent(folder, status) else ""
    return "" if alive else "the process ended without a word"


def _silent(folder: Path, status: dict[str, Any]) -> bool:
    key, now, beats = str(folder.absolute()), time.monotonic(), status.get("beats")
    last, since = _beats.get(key, (None, now))
    if last != beats:
        _beats[key] = (beats, now)
        return last is None and time.time() - float(status.get("heartbeat", 0.0)) > LONG_AGO
    return now - since > SILENT_SECONDS or time.time() - float(status.get("heartbeat", 0.0)) > LONG_AGO


def _old_process_lives(status: dict[str, Any]) -> bool:
    """For a status of an older version, which has a pid and a start time (pids are reused)."""
    try:
        process = psutil.Process(int(status["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - float(status.get("started", 0))) < 5
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False


def run_lock(run_folder: Path | str) -> Lock:
    """The lock of a run, held by the process that trains in it."""
    folder = Path(run_folder)
    return Lock(folder / LOCK, str(folder), "is training here", f"stop it first (create the file {folder / STOP})")


def refuse_living(run_folder: Path | str) -> None:
    """Refuse a folder in which another process trains, by its status and lock; does not wait.

    Raises:
        InputError: such a process is known to be alive.
    """
    folder = Path(run_folder)
    record = read_record(folder / LOCK)
    if record is not None and record.process != own_identity() and holder_lives(folder / LOCK, record):
        raise run_lock(folder).refusal(record)
    if not (folder / STATUS).exists():
        return
    status = _read(folder)
    process = parse_identity(status.get("process"))
    if status["state"] in ENDED or process == own_identity():
        return
    if lives(process) if process is not None else _old_process_lives(status):
        raise InputError(
            f"{folder}: process {status.get('pid', 0)} is training here; stop it first (create the file "
            f"{folder / STOP})"
        )


def summarise(run_folder: Path | str) -> RunSummary:
    """The summary of a run."""
    folder = Path(run_folder)
    status, curves = read_status(folder), read_curves(folder)
    last = curves.steps[-1] if curves.steps else {}
    evaluation = curves.evals[-1] if curves.evals else {}
    pace = seconds_a_step(curves.start, *([event[key] for event in curves.steps[-PACE:]] for key in ("time", "step")))
    left = seconds_left(curves.start, last, status.get("steps", 0), pace, time.time())
    return RunSummary(
        folder.name,
        folder,
        status["state"],
        last.get("step", status.get("step", 0)),
        status.get("steps", 0),
        last.get("loss"),
        evaluation.get("perplexity"),
        last.get("tokens_per_second"),
        float(status.get("heartbeat", 0.0)),
        status.get("reason", ""),
        curves.damaged,
        evaluation.get("bits_per_character"),
        *seen(last, curves.start),
        None if status["state"] in ENDED else left,
    )


def seen(step: Mapping[str, Any], start: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Epochs, and tokens a parameter, of a run's last ``step`` and its ``start``; None where they do not tell."""
    tokens, parameters = step.get("tokens"), start.get("parameters")
    numbers = all(isinstance(value, (int, float)) and value > 0 for value in (tokens, parameters))
    epoch = step.get("epoch")
    return (epoch if isinstance(epoch, (int, float)) else None), (tokens / parameters if numbers else None)


def step_text(step: Mapping[str, Any], parameters: int) -> str:
    """What a progress bar says of a ``step``."""
    epochs, share = seen(step, {"parameters": parameters})
    speed = step.get("tokens_per_second")
    parts = (
        [f"loss {step['loss']:.3f}"],
        [f"{speed:,.0f} tokens/s"] if speed else [],
        [] if epochs is None else [f"epoch {epochs:.2f}"],
        [] if share is None else [f"{share:.2g} tokens/parameter"],
    )
    return " · ".join(itertools.chain(*parts))


def seconds_a_step(start: Mapping[str, Any], times: Sequence[float], steps: Sequence[float]) -> float | None:
    """Wall-clock seconds from step to step since the run (re)started, evaluations included; None while unknown."""
    pairs = [(when, step) for when, step in zip(times, steps) if when >= start.get("time", 0.0)]
    if len(pairs) < 2 or pairs[-1][1] <= pairs[0][1]:
        return None
    return (pairs[-1][0] - pairs[0][0]) / (pairs[-1][1] - pairs[0][1])


def seconds_left(
    start: Mapping[str, Any], last: Mapping[str, Any], steps: int, pace: float | None, now: float
) -> float | None:
    """Until the end of a run's ``steps`` or of its time budget, whichever comes first; None while unknown.

    Args:
        start, last: its newest ``start`` and ``step``.
        pace: seconds a step.
        now: seconds since 1970.
    """
    left = [] if pace is None or not (steps and last) else [pace * (steps - last["step"]) - (now - last["time"])]
    left += [] if start.get("budget") is None else [start["time"] + start["budget"] - now]
    return max(0.0, min(left)) if left else None


def list_runs(folder: Path | str = "runs") -> list[RunSummary]:
    """All runs below ``folder``, the latest heartbeat first; those that cannot be read are listed as damaged."""
    folder = Path(folder)
    found = [_summary(path.parent) for path in folder.glob(f"*/{STATUS}")] if folder.is_dir() else []
    return sorted(found, key=lambda run: -run.heartbeat)


def _summary(folder: Path) -> RunSummary:
    try:
        return summarise(folder)
    except InputError as error:
        return RunSummary(folder.name, folder, "damaged", 0, 0, None, None, None, _status_mtime(folder), str(error))


def _status_mtime(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / STATUS).stat().st_mtime
    return 0.0


def request_stop(run_folder: Path | str) -> None:
    """Ask a run to finish its step, save and end; any process that can write to the folder may do so.

    Raises:
        InputError: there is no run.
    """
    folder = Path(run_folder)
    if not (folder / STATUS).exists():
        raise InputError(f"{folder}: no run here to stop")
    (folder / STOP).write_text(f"{time.time()}\n", encoding="utf-8")
