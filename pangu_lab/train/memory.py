"""Memory of each rank of a run: its peak as the system reports it, and the parts that can be computed.

The peak is the process's largest resident size since it began (compilation included); on GPU and Ascend also the
device's. A ``memory`` event at the end of each run has one entry per rank.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil

MB = 2**20


def peak_mb() -> float:
    """This process's largest resident size so far; the current one if the system does not report it."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024
    except (OSError, TypeError):
        return psutil.Process().memory_info().rss / MB


def device_peak_mb() -> float:
    """Largest memory in use on the accelerator; 0 on a CPU."""
    import mindspore as ms

    return 0.0 if ms.get_context("device_target") == "CPU" else ms.runtime.max_memory_allocated() / MB


def by_rank(values: list[list[float]]) -> list[dict[str, Any]]:
    """Entries of a ``memory`` event from each rank's (peak, device peak, weights, optimizer states) in MB."""
    names = ("peak_mb", "device_peak_mb", "weights_mb", "optimizer_mb")
    return [
        {"rank": rank, **{name: round(value, 1) for name, value in zip(names, row)}} for rank, row in enumerate(values)
    ]
