"""Reading a run folder: its events, state and curves, comparing runs, and whether their processes are alive.

Nothing here trains or needs MindSpore. ``train/`` writes what is read here, with the same classes.
"""

from pangu_lab.runs.curves import plot_curves, smoothed, text_curve
from pangu_lab.runs.events import EventLog, read_curves, read_events
from pangu_lab.runs.pipeline_log import plot_schedule
from pangu_lab.runs.ranks import RankSeen, read_ranks
from pangu_lab.runs.routing import plot_load
from pangu_lab.runs.status import RunSummary, list_runs, read_status, request_stop

__all__ = [
    "EventLog",
    "RankSeen",
    "RunSummary",
    "list_runs",
    "plot_curves",
    "plot_load",
    "plot_schedule",
    "read_curves",
    "read_events",
    "read_ranks",
    "read_status",
    "request_stop",
    "smoothed",
    "text_curve",
]
