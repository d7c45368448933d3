"""The memory that each rank of a run used, as text, from the run's last ``memory`` event (see ``train/memory.py``)."""

from __future__ import annotations

from pathlib import Path

from pangu_lab.runs.events import read_events


def memory_lines(run: Path | str) -> list[str]:
    """The run's last ``memory`` event, one line per rank; no lines when the run has none."""
    events = [event for event in read_events(run) if event["kind"] == "memory"]
    lines = []
    for entry in events[-1]["ranks"] if events else ():
        device = f", device {entry['device_peak_mb']:,.0f} MB" if entry.get("device_peak_mb") else ""
        lines.append(
            f"memory of rank {entry['rank']}: {entry['peak_mb']:,.0f} MB at its peak{device} (weights "
            f"{entry['weights_mb']:,.1f} MB, optimizer states {entry['optimizer_mb']:,.1f} MB)"
        )
    return lines
