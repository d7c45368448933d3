"""Training: the step, the loop around it, the events it writes, and the run folder that everything else reads."""

from pangu_lab.train.events import EventLog, read_curves, read_events
from pangu_lab.train.runs import RunSummary, list_runs, request_stop

__all__ = ["EventLog", "RunSummary", "TrainResult", "list_runs", "read_curves", "read_events", "request_stop", "train"]


def __getattr__(name: str):
    """``train`` and ``TrainResult`` need MindSpore, which is imported when they are first asked for."""
    if name in ("train", "TrainResult"):
        from pangu_lab.train import loop

        return getattr(loop, name)
    raise AttributeError(name)
