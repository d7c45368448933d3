"""Run folders as a training leaves them, written without one."""

from __future__ import annotations

import json
import os
import time

import psutil
import pytest

from pangu_lab.presets import preset


def write_run(folder, losses, **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(preset("debug").replace(**changes).to_yaml())
    with open(folder / "events.jsonl", "w") as handle:
        for step, loss in enumerate(losses, 1):
            handle.write(
                json.dumps(
                    {
                        "v": 1,
                        "kind": "step",
                        "time": 1000.0 + step,
                        "step": step,
                        "loss": loss,
                        "lr": 1e-3,
                        "tokens_per_second": 900.0,
                    }
                )
                + "\n"
            )
        handle.write(
            json.dumps({"v": 1, "kind": "eval", "time": 2000.0, "step": len(losses), "loss": 4.5, "perplexity": 90.0})
            + "\n"
        )
    (folder / "status.json").write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "started": psutil.Process().create_time(),
                "state": "finished",
                "step": len(losses),
                "steps": len(losses),
                "reason": "finished",
                "heartbeat": time.time(),
            }
        )
    )
    return folder


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "a", [6.0 - 0.1 * step for step in range(20)])
    write_run(tmp_path / "runs" / "b", [6.0 - 0.2 * step for step in range(10)], **{"train.start_lr": 0.001})
    return tmp_path / "runs"
