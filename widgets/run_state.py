"""The state of a run: what it is doing, since when, how much longer, and why it ended.

``status.json`` describes the run's training process, ``launch.json`` the launcher before there is one
(and a run that failed before it wrote a status). Both may be stale: a process that is gone cannot correct them, so
they are checked against the processes that exist.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import psutil

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.identity import lives, parse_identity
from pangu_lab.launch.logs import useful_lines
from pangu_lab.presets import load_yaml
from pangu_lab.reading import read_json
from pangu_lab.runs.status import STATUS, read_status, seconds_left, seen
from pangu_lab.schema import Count, Schema, Seconds
from widgets.run_data import RunFollower

ENDED = ("finished", "stopped", "failed", "died", "none")
LOG_BYTES = 32_768
LOG_LINES = 200


class _Launch(Schema):
    """``launch.json``, as a launcher writes it."""

    state: str
    pid: Count
    time: Seconds = 0.0
    reason: str = ""
    process: dict[str, Any] | None = None


def state_of(folder: Path) -> tuple[str, str]:
    """A word for what the run is doing ("none", "starting", "compiling", "training", "evaluating", "saving",
    "finished", "stopped", "failed", "died"), and the reason of the end."""
    launch = _launch(folder)
    status: dict[str, Any] = {}
    with contextlib.suppress(InputError, KeyError):
        status = read_status(folder)
    launched_later = launch and launch.get("time", 0.0) > status.get("heartbeat", 0.0)
    if launched_later and launch["state"] == "running":
        if _lives(launch):
            return "starting", ""
        return "died", "the launcher ended without a word"
    if launched_later and launch["state"] == "failed":
        return "failed", str(launch.get("reason", ""))
    if not status:
        return "none", ""
    if status["state"] == "failed" and launch and launch.get("state") == "failed":
        return "failed", str(launch.get("reason", "")) or status.get("reason", "")
    return status["state"], str(status.get("reason", ""))


def _launch(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(InputError):
        return read_json(folder / "launch.json", "the launcher's note", _Launch)
    return {}


def _lives(launch: dict[str, Any]) -> bool:
    """Whether a launcher lives; one on another host does as far as is known here."""
    process = parse_identity(launch.get("process"))
    return psutil.pid_exists(int(launch["pid"])) if process is None else lives(process) is not False


def launched_by(folder: Path) -> str:
    """The back end that started a run on one machine alone; "local" for any other, and for a run that tells none."""
    launch = _launch(folder)
    alone = isinstance(hosts := launch.get("hosts"), list) and len(hosts) == 1
    return str(launch["backend"]) if alone and launch.get("backend") in ("msrun", "mpirun") else "local"


def heard_of(folder: Path) -> float:
    """When the run or its launcher last wrote how it stands (seconds since 1970); 0 when never."""
    status: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        status = read_status(folder)
    return max(float(status.get("heartbeat", 0.0)), float(_launch(folder).get("time", 0.0)))


def settings_of(folder: Path) -> RunConfig | None:
    """The run's configuration; None while it has none that can be read."""
    for name in ("config.yaml", "launch.yaml"):
        with contextlib.suppress(InputError):
            return load_yaml(folder / name)
    return None


def logs_of(folder: Path) -> list[str]:
    """Names of the logs there are: ranks in their order, then the others."""
    names = [path.stem for path in (folder / "logs").glob("*.log")]
    ranks = sorted(
        (name for name in names if name.startswith("rank_") and name[5:].isdecimal()), key=lambda name: int(name[5:])
    )
    return ranks + sorted(set(names) - set(ranks))


def log_tail(folder: Path, name: str) -> list[str]:
    """The last lines of one log; none when there is no such log."""
    if name not in logs_of(folder):
        return []
    with open(folder / "logs" / f"{name}.log", "rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - LOG_BYTES))
        lines = handle.read().decode("utf-8", "replace").splitlines()
    return (lines if size <= LOG_BYTES else lines[1:])[-LOG_LINES:]


def why_it_ended(folder: Path) -> list[str]:
    """The lines that help after a run failed or died: those the launcher found, else those of the logs."""
    lines = _launch(folder).get("lines")
    if isinstance(lines, list) and lines:
        return [str(line) for line in lines]
    for name in logs_of(folder):
        if found := useful_lines(folder / "logs" / f"{name}.log"):
            return found
    return []


def head_of(run: RunFollower, config: RunConfig | None) -> dict[str, Any]:
    """Everything the monitor writes about a run in words and figures; plain values."""
    now = time.time()
    state, reason = state_of(run.folder)
    ended = state in ENDED
    last = run.last_event or {}
    step = int(run.steps.last("step") or last.get("step") or run.facts.get("step") or 0)
    steps = int(run.facts.get("steps") or (config.train.steps if config else 0))
    left = seconds_left(run.facts, run.last_step, steps, run.seconds_a_step(), now)
    head = {
        "name": run.name,
        "folder": str(run.folder),
        "state": state,
        "reason": reason,
        "step": step,
        "steps": steps,
        "now": now,
        "ended": ended,
        "since": last.get("time") or now,
        "left": None if ended else left,
        "overflows": run.overflows,
        "compile_seconds": run.compile_seconds,
        "logs": logs_of(run.folder),
        "lines": why_it_ended(run.folder) if state in ("failed", "died") else [],
        "evaluation": run.evals[-1] if run.evals else None,
        "seen": dict(zip(("epochs", "tokens_per_parameter"), seen(run.last_step, run.facts))),
        "warning": next((str(mark.get("text")) for mark in reversed(run.marks) if mark["kind"] == "warning"), ""),
        "scaled": bool(config and config.model.compute_dtype == "float16"),
        "facts": {
            key: run.facts[key]
            for key in ("preset", "parameters", "processes", "device", "mindspore")
            if key in run.facts
        },
    }
    head["last"] = {
        name: run.steps.last(name)
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "memory_mb", "loss_scale")
    }
    return head


def state_file_there(folder: Path) -> bool:
    """Whether there is anything of a run in the folder."""
    return (folder / STATUS).exists() or bool(_launch(folder))
