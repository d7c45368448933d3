"""Kernel time of one new point of a run of 100,000 steps in the monitor; the peer reads the whole event file again.

The monitor's promise is under 5 ms a point; ``within_limit`` says whether it was kept.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from pangu_lab.presets import preset
from pangu_lab.runs.events import read_curves

STEPS, LIMIT_SECONDS = 100_000, 0.005


def _line(step: int) -> str:
    return (
        json.dumps(
            {
                "v": 1,
                "kind": "step",
                "time": 1e9 + step,
                "step": step,
                "loss": 3.0,
                "lr": 1e-3,
                "tokens": 256 * step,
                "tokens_per_second": 1000.0,
            }
        )
        + "\n"
    )


def run(rounds: int = 7) -> dict[str, dict]:
    from widgets.monitor import RunMonitor

    ours, peer = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(preset("debug").to_yaml())
        (folder / "events.jsonl").write_text("".join(map(_line, range(1, STEPS + 1))))
        monitor = RunMonitor(folder)
        monitor._closed.set()  # ticked here alone
        for number in range(STEPS + 1, STEPS + 1 + max(rounds, 3)):
            with open(folder / "events.jsonl", "a", encoding="utf-8") as handle:
                handle.write(_line(number))
            started = time.process_time()
            monitor.tick()
            ours.append(time.process_time() - started)
            started = time.process_time()
            read_curves(folder)
            peer.append(time.process_time() - started)
        monitor.close()
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return {
        "monitor, a point at 100,000": {
            "ours_seconds": mine,
            "peer_seconds": theirs,
            "ratio": theirs / mine,
            "within_limit": mine < LIMIT_SECONDS,
        }
    }
