"""What memory each rank of a run took, in words, from the run's last ``memory`` event (``train/memory.py`` writes it)."""

from __future__ import annotations

from pathlib import Path

from pangu_lab.runs.events import read_events


def memory_lines(run: Path | str) -> list[str]:
    """The run's last ``memory`` event, a line for each rank; none when it ended without one."""
    events = [event for event in read_events(run) if event["kind"] == "memory"]
    lines = []
    for entry in events[-1]["ranks"] if events else ():
        device = f", device {entry['device_peak_mb']:,.0f} MB" if entry.get("device_peak_mb") else ""
        lines.append(f"memory of rank {entry['rank']}: {entry['peak_mb']:,.0f} MB at its peak{device} (weights "
                     f"{entry['weights_mb']:,.1f} MB, optimizer states {entry['optimizer_mb']:,.1f} MB)")
    return lines
