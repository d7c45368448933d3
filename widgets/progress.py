"""A progress bar with the time left, for the library's ``progress`` callbacks.

Shown as an ipywidgets bar from the first update on: without work there is no bar. Where no widget can be drawn
its text says the same; a saved notebook keeps the final text.
"""

from __future__ import annotations

import math
import time
from typing import Any

from pangu_lab.progress import Progress


def notebook_progress(title: str) -> Progress:
    """A callable that displays a bar and moves it.

    Args:
        title: a word or two before the bar ("training").
    """
    from IPython.display import display

    box, started = _bar(title), time.monotonic()
    handle: Any | None = None
    ended = False
    deadline = math.inf

    def until(seconds: float) -> None:
        nonlocal deadline
        deadline = time.monotonic() + seconds

    def progress(done: int, total: int | None, text: str = "") -> None:
        nonlocal handle, ended
        bar, news = box.children
        bar.max, bar.value = total or max(done, 1), done
        news.value = " · ".join(
            part
            for part in (text, time_left(done, total, time.monotonic() - started, deadline - time.monotonic()))
            if part
        )
        if handle is None:
            handle = display(box, display_id=True)
        if total and done >= total and not ended and handle is not None:
            ended = True
            handle.update(box)  # what is kept with the notebook says how it ended

    progress.until = until
    return progress


def _bar(title: str) -> Any:
    """An ipywidgets bar and the news beside it, which say in characters what they show."""
    import ipywidgets

    class Bar(ipywidgets.HBox):
        def __repr__(self) -> str:
            bar, news = self.children
            return f"{bar.description}: {news.value or f'{bar.value} of {bar.max}'}"

    return Bar([ipywidgets.IntProgress(description=title, layout=ipywidgets.Layout(width="50%")), ipywidgets.Label()])


def time_left(done: int, total: int | None, elapsed: float, budget: float = math.inf) -> str:
    """``1:05 left``, or an empty string while nothing can be said; no more than the seconds of the budget."""
    if not total or not done:
        return ""
    if done >= total:
        return f"done in {_clock(elapsed)}"
    return f"{_clock(min(elapsed / done * (total - done), max(0.0, budget)))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
