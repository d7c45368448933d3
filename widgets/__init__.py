"""The notebook interface: interactive widgets for JupyterLab. They use only pangu_lab's public functions."""

from __future__ import annotations

import importlib
from typing import Any

from widgets.progress import notebook_progress

_PLACES = {"RunMonitor": "monitor", "monitor_all": "monitor", "start_run": "launching", "resume_run": "launching",
           "wait_for": "launching", "set_language": "base", "ConfigForm": "config_form",
           "LaunchPanel": "launch_panel", "TokenView": "token_view", "NextToken": "next_token",
           "AttentionView": "attention_view", "GenerationPad": "generation_pad", "LayoutPicker": "layout_picker"}

__all__ = ["notebook_progress", *_PLACES]


def __getattr__(name: str) -> Any:
    """The widgets are imported when they are first asked for: each brings only what it needs."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"widgets.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'widgets' has no attribute '{name}'")
