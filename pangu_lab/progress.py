"""How long work tells the world where it stands.

The library prints nothing. A function whose work can take more than a few seconds takes ``progress``, a callable
``progress(done, total, text)``; the command line draws a bar with the time left from it, a notebook a widget, a
test nothing. ``total`` is None while it is unknown, ``text`` a few words of news ("12 345 tokens/s").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

Progress = Callable[[int, Optional[int], str], None]


def silent(done: int, total: int | None, text: str = "") -> None:
    """The default: say nothing."""
