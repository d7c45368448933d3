"""How long work tells the world where it stands.

The library prints nothing. A function whose work can take more than a few seconds takes ``progress``, a callable
``progress(done, total, text)``; the command line draws a bar with the time left from it, a notebook a widget, a
test nothing. ``total`` is None while it is unknown, ``text`` a few words of news ("12 345 tokens/s").

What shows the time left may have a method ``until(seconds)``: work with a time budget calls it (through ``tell_budget``),
so that no more time is promised than the budget has left.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None, str], None]


def silent(done: int, total: int | None, text: str = "") -> None:
    """The default: say nothing."""


def tell_budget(progress: Progress, seconds: float | None) -> None:
    """Say that the work ends in so many seconds at the latest; None: there is no such budget."""
    until = getattr(progress, "until", None)
    if until is not None and seconds is not None:
        until(seconds)
