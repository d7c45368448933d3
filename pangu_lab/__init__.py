"""PanGu-α lab: the whole life of a PanGu-α language model in MindSpore, from text to a served page.

    from pangu_lab import PanguLM

    print(PanguLM.load("runs/first").generate("春天来了，"))

Importing this package is quick: MindSpore, Gradio and the like are imported where they are used, and ``PanguLM``
is looked up when it is first asked for.
"""

import importlib
import os

__version__ = "0.1.0"
__all__ = ["PanguLM", "__version__"]

# MindSpore's log level is read once, when it is first imported; its warnings would drown the program's own words.
os.environ.setdefault("GLOG_v", "3")

_LAZY = {"PanguLM": "pangu_lab.lm"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pangu_lab' has no attribute '{name}'")


def __dir__():
    return sorted({*globals(), *_LAZY})
