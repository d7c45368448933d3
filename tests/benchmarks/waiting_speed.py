"""How long one waits: the compilation and first step of a start, first and again; the import and the help text.

The first start of a run compiles its graphs, a second one takes those that were kept (``train/graph_cache.py``). Both
are processes of their own, timed from the building of the graphs to the end of the first step, at the yardstick.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

SIZE = "yardstick"


def start(size: str) -> None:
    """Print the seconds from the first graph to the end of the first step."""
    from tests.benchmarks.train_speed import first_step

    print(first_step(size)[2])


def seconds(words: list[str], cache: str) -> tuple[float, str]:
    """Of a whole process, and what it printed last."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PANGU_LAB_CACHE": cache},
    )
    return time.perf_counter() - began, (done.stdout.strip().splitlines() or [""])[-1]


def run(rounds: int = 3) -> dict:
    """Medians, in seconds: a second start beside a first one; whole processes that import, or print the help, beside one
    that does nothing."""
    first, second, imports, helps, bare = [], [], [], [], []
    for _ in range(min(rounds, 3)):
        with tempfile.TemporaryDirectory() as cache:
            for times in (first, second):
                times.append(float(seconds(["-m", "tests.benchmarks.waiting_speed", SIZE], cache)[1]))
            bare.append(seconds(["-c", ""], cache)[0])
            imports.append(seconds(["-c", "import pangu_lab"], cache)[0])
            helps.append(seconds(["-m", "pangu_lab.cli", "--help"], cache)[0])
    one, two, nothing = map(statistics.median, (first, second, bare))
    found = {
        "wait second start": (two, one),
        "wait import": (statistics.median(imports), nothing),
        "wait --help": (statistics.median(helps), nothing),
    }
    return {
        name: {
            "ours_seconds": round(ours, 3),
            "peer_seconds": round(peer, 3),
            "ratio": round(peer / ours, 2),
            "peer": "first start" if "start" in name else "python -c ''",
        }
        for name, (ours, peer) in found.items()
    }


if __name__ == "__main__":
    start(sys.argv[1])
