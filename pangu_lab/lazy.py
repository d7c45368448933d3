"""Lazily imported names of a package, so that importing the package stays fast.

A package whose modules need MindSpore or matplotlib declares where its public names are defined; nothing is imported
before one of them is used:

    __getattr__, __dir__, __all__ = lazy_names(__name__, {"activations": ["trace"], "pictures": ["plot_attention"]})
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's ``__init__`` assigns to ``__getattr__``, ``__dir__`` and ``__all__``.

    Args:
        package: its ``__name__``.
        homes: the public names of each module, which is named relative to the package.
    """
    home = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get, lambda: sorted(home), sorted(home)
