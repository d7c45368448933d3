"""Two programs measured in turn: each waits in a process of its own and does one piece of work when told to.

Machines are noisy; what counts is the ratio of two programs that were measured in the same minutes, piece by piece in
turn, while the other waits and uses no processor.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def serve(work: Callable[[], float | None], **facts) -> None:
    """Be a measured program: say ready (with ``facts``), then do ``work`` for every line received.

    ``work`` may return the seconds to count when it knows better than the clock around it.
    """
    print(json.dumps({"ready": True, **facts}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        started = time.perf_counter()
        seconds = work()
        print(json.dumps({"seconds": seconds or time.perf_counter() - started}), flush=True)


class Program:
    """A measured program: ``python -m MODULE ARGUMENTS`` that calls ``serve``."""

    def __init__(self, name: str, module: str, *arguments: str, threads: int = 2):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOG_v": "3", "TOKENIZERS_PARALLELISM": "false"}
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name}: ended without an answer (exit code {self.process.wait()})")

    def work(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self.process.stdin.write("end\n")
        self.process.stdin.close()
        self.process.wait(timeout=60)


def compare(ours: Program, peer: Program, rounds: int) -> dict:
    """Medians of both, and the median over the rounds of peer seconds / our seconds (above 1: we are quicker)."""
    pairs = [(ours.work(), peer.work()) for _ in range(rounds)]
    for program in (ours, peer):
        program.close()
    return {
        "ours_seconds": statistics.median(pair[0] for pair in pairs),
        "peer_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "rounds": rounds,
        "ours": ours.facts,
        "peer": peer.facts,
    }
