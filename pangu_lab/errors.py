"""``InputError``, the one kind of error that the user can fix.

It is raised for anything the user did or gave: a wrong setting, a damaged file, a folder that
already exists. Its text is one line that names what is wrong and what to do about it; the command line prints
only that line and exits with 2. Every other error keeps its traceback and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input from outside the program: one line that says what is wrong and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to ``name``, or an empty string if none is close."""
    if len(name) > 100:  # no typing mistake, and comparing takes the square of the length
        return ""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
