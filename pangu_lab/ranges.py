"""Checks of single settings: a value in its range, and a number that means the same in fp32 as it does in Python.

A setting that is refused is named with its value and its range in one line, whoever gave it (a file, the command line,
a request over HTTP, a control of a page), since all of them come through ``config.py``.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from pangu_lab.errors import InputError, nearest

SMALLEST = (
    2.0**-126
)  # of fp32's normal numbers; smaller ones (subnormal) may be 0 by the time something is divided by them


def check(good: bool, message: str) -> None:
    if not good:
        raise InputError(message)


def check_range(section: str, config: Any, **ranges: tuple[float | None, float | None]) -> None:
    """Refuse fields of ``config`` outside their inclusive range; None leaves a side open."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        inside = (low is None or value >= low) and (high is None or value <= high)
        check(inside, f"{section}.{name}={value} must be {range_text(low, high)}")


def range_text(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    check(
        value in choices,
        f"{key}={shown(value, repr)} must be one of {', '.join(choices)}{nearest(str(value), choices)}",
    )


def number(key: str, value: Any, low: float, high: float) -> Any:
    """``value`` as a plain number between ``low`` and ``high`` that means the same in fp32; whole where ``low`` is.

    Raises:
        InputError: it is none; names setting, value and range.
    """
    whole, expected = isinstance(low, int), f"between {low} and {high}"
    kind = "a whole number " if whole else "a number "
    check(
        isinstance(value, numbers.Real) and not isinstance(value, bool),
        f"{key}={shown(value)} must be {kind}{expected}",
    )
    check(low <= value <= high, f"{key}={shown(value)} must be {expected}")
    check(not whole or value == int(value), f"{key}={shown(value)} must be {kind}{expected}")
    check(
        whole or value == 0 or abs(value) >= SMALLEST,
        f"{key}={shown(value)} is too small for fp32: give 0, or a number of at least {SMALLEST:.3g}, {expected}",
    )
    return int(value) if whole else float(value)


def shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """``value`` for a message of one line, however long it is and whatever is in it."""
    try:
        text = form(value)
    except ValueError:  # Python does not write more than 4300 digits
        return "(thousands of digits)"
    if not text.isprintable():
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= 40 else f"{text[:20]}…({len(text)} characters)"
