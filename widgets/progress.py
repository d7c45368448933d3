"""A progress bar with the time left, for the library's ``progress`` callbacks.

Shown as an ipywidgets bar; where no widget can be drawn its text representation says the same.
"""

from __future__ import annotations

import time

from pangu_lab.progress import Progress


def notebook_progress(title: str) -> Progress:
    """Display a bar and return the callable that moves it.

    Args:
        title: a word or two before the bar ("training").
    """
    import ipywidgets
    from IPython.display import display

    bar = ipywidgets.IntProgress(description=title, layout=ipywidgets.Layout(width="50%"))
    news = ipywidgets.Label()
    display(ipywidgets.HBox([bar, news]))
    started = time.monotonic()

    def progress(done: int, total: int | None, text: str = "") -> None:
        bar.max, bar.value = total or max(done, 1), done
        news.value = " · ".join(part for part in (text, time_left(done, total, time.monotonic() - started)) if part)

    return progress


def time_left(done: int, total: int | None, elapsed: float) -> str:
    """``1:05 left``, or an empty string while nothing can be said."""
    if not total or not done:
        return ""
    if done >= total:
        return f"done in {_clock(elapsed)}"
    return f"{_clock(elapsed / done * (total - done))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
