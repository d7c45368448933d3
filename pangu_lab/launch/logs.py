"""Finds the lines of a rank's log that explain why it ended.

The last lines rarely do. MindSpore ends an error message with pages of C++ call stack; the useful parts are the
exception's first line, the numbered reasons that may follow it, and the line of Python that raised it. If there is no
Python error (a crash in native code), the first ``[ERROR]`` or ``[CRITICAL]`` lines are used.
"""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 1 << 19
_RULE = re.compile(r"^-{10,}$")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Failed|Interrupt|Exit|Warning|Timeout|Iteration)\b.*")
_NATIVE = re.compile(r"\[(ERROR|CRITICAL)\]|^Fatal Python error|^terminate called|Segmentation fault|^Aborted")
_NOISE = re.compile(r"^\[(INFO|WARNING|DEBUG)\] |^\s*$")


def useful_lines(path: Path | str, limit: int = 12) -> list[str]:
    """At most ``limit`` lines of the log at ``path``; none when there is no log."""
    try:
        with open(path, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL_BYTES))
            lines = handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = _from_traceback(lines, limit) or [line for line in lines if _NATIVE.search(line)][:limit]
    return [line[:400] for line in found or _last(lines, limit)]


def _from_traceback(lines: list[str], limit: int) -> list[str]:
    """The last traceback's exception with the start of its message, the network's code, and the frame it came from."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return []
    begin = starts[-1]
    end = next((i for i in range(begin + 1, len(lines)) if _EXCEPTION.match(lines[i])), None)
    if end is None:
        return []
    frame = _own_frame(lines[begin + 1 : end])
    message = _message(lines[end:])
    code = _network_code(lines[end:])
    message_limit = max(1, limit - len(frame) - len(code))
    return (message[:message_limit] + code + frame)[:limit]


def _own_frame(lines: list[str]) -> list[str]:
    """The innermost frame of the traceback that is not inside an installed package."""
    frames = [i for i, line in enumerate(lines) if line.startswith("  File ")]
    own = [i for i in frames if "site-packages" not in lines[i]] or frames
    return [line for line in lines[own[-1] : own[-1] + 2] if line.strip(" ^~")] if own else []


def _message(lines: list[str]) -> list[str]:
    """The exception's text up to MindSpore's first ruled section."""
    end = next((i for i, line in enumerate(lines) if _RULE.match(line)), len(lines))
    return [line for line in lines[:end] if not _NOISE.match(line)]


def _network_code(lines: list[str]) -> list[str]:
    """The innermost frame in MindSpore's section about the network's code: two lines, or none."""
    title = next((i for i, line in enumerate(lines) if "Traceback of Net Construct Code" in line), None)
    if title is None:
        return []
    section = lines[title + 2 :]
    frames = [i for i, line in enumerate(section) if re.match(r"^# \d+ In file ", line)]
    return list(section[frames[-1] : frames[-1] + 2]) if frames else []


def _last(lines: list[str], limit: int) -> list[str]:
    return [line for line in lines if not _NOISE.match(line)][-limit:]
