"""Run folders seen from outside: which there are, what state each is in, and how to ask one to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import psutil

from pangu_lab.errors import InputError
from pangu_lab.files import read_json
from pangu_lab.train.events import read_curves

STATUS = "status.json"
STOP = "stop"


@dataclass(frozen=True)
class RunSummary:
    """One line about a run. ``state`` is its own word, or "died" when its process is gone without a last word."""

    name: str
    folder: Path
    state: str
    step: int
    steps: int
    loss: Optional[float]
    eval_perplexity: Optional[float]
    tokens_per_second: Optional[float]
    heartbeat: float
    reason: str


def read_status(run_folder: Path | str) -> dict[str, Any]:
    """``status.json`` of a run, with ``state`` corrected to "died" when its process no longer exists."""
    status = read_json(Path(run_folder) / STATUS, "the run's status")
    if status["state"] not in ("finished", "stopped", "failed") and not _alive(status):
        status["state"] = "died"
        status["reason"] = f"the process ended without a word (last heard of at step {status.get('step', 0)})"
    return status


def _alive(status: dict[str, Any]) -> bool:
    """Whether the very process that wrote the status still runs (a pid alone may have been given to another)."""
    try:
        process = psutil.Process(int(status["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - float(status.get("started", 0))) < 5
    except psutil.NoSuchProcess:
        return False


def summarise(run_folder: Path | str) -> RunSummary:
    """What a run says of itself."""
    folder = Path(run_folder)
    status, curves = read_status(folder), read_curves(folder)
    last = curves.steps[-1] if curves.steps else {}
    evaluation = curves.evals[-1] if curves.evals else {}
    return RunSummary(folder.name, folder, status["state"], int(last.get("step", status.get("step", 0))),
                      int(status.get("steps", 0)), last.get("loss"), evaluation.get("perplexity"),
                      last.get("tokens_per_second"), float(status.get("heartbeat", 0.0)), status.get("reason", ""))


def list_runs(folder: Path | str = "runs") -> list[RunSummary]:
    """All runs below ``folder``, the one heard of last first."""
    folder = Path(folder)
    found = [summarise(path.parent) for path in folder.glob(f"*/{STATUS}")] if folder.is_dir() else []
    return sorted(found, key=lambda run: -run.heartbeat)


def request_stop(run_folder: Path | str) -> None:
    """Ask a run to finish its step, save and end; works from any process that sees the folder.

    Raises:
        InputError: there is no run.
    """
    folder = Path(run_folder)
    if not (folder / STATUS).exists():
        raise InputError(f"{folder}: no run here to stop")
    (folder / STOP).write_text(f"{time.time()}\n", encoding="utf-8")
