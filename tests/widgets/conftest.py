"""Runs as files: what a training process leaves behind, written without one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from pangu_lab.presets import preset


class WrittenRun:
    """A run folder whose events the test writes."""

    def __init__(self, folder: Path, **changes) -> None:
        self.folder = folder
        (folder / "logs").mkdir(parents=True)
        (folder / "config.yaml").write_text(preset("debug").replace(**changes).to_yaml())
        self.events = folder / "events.jsonl"
        self.begun = time.time() - 1000
        self.write("start", step=0, resumed_from=0, steps=20, preset="debug", parameters=71360, processes=1)

    def write(self, kind: str, **fields) -> None:
        line = json.dumps({"v": 1, "time": self.begun + 10 * fields.get("step", 0), "kind": kind, **fields})
        with open(self.events, "a") as handle:
            handle.write(line + "\n")

    def step(self, step: int, loss: float = 5.0, **more) -> None:
        self.write(
            "step",
            step=step,
            loss=loss,
            lr=1e-3,
            grad_norm=1.0,
            loss_scale=1.0,
            tokens=256 * step,
            tokens_per_second=1000.0,
            memory_mb=500,
            **more,
        )

    def status(self, state: str, step: int, pid: int | None = None, reason: str = "") -> None:
        started = psutil.Process().create_time()
        (self.folder / "status.json").write_text(
            json.dumps(
                {
                    "pid": pid or os.getpid(),
                    "started": started,
                    "state": state,
                    "step": step,
                    "steps": 20,
                    "reason": reason,
                    "heartbeat": time.time(),
                }
            )
        )


@pytest.fixture
def written_run(tmp_path):
    return lambda name="first", **changes: WrittenRun(tmp_path / "runs" / name, **changes)
