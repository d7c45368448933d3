"""The notebook interface: what a person sees and turns in JupyterLab. It uses pangu_lab's public functions alone.

Every class derived from ``LabWidget`` is public: a new widget needs no list.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from widgets.progress import notebook_progress

_PLACES = {
    "monitor_all": "monitor",
    "start_run": "launching",
    "resume_run": "launching",
    "wait_for": "launching",
    "set_language": "base",
    "LaunchPanel": "launch_panel",
    "StartForm": "start_form",
    **{
        name: path.stem
        for path in sorted(Path(__file__).parent.glob("*.py"))
        for name in re.findall(r"^class (\w+)\(LabWidget\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    },
}

__all__ = ["notebook_progress", *_PLACES]


def __getattr__(name: str) -> Any:
    """The widgets are imported when they are first asked for: each brings only what it needs."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"widgets.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'widgets' has no attribute '{name}'")
