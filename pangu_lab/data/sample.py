"""The texts that come with the package, enough to try everything without your own data."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from pangu_lab.errors import InputError

PARTS = ("train", "heldout")


def sample_folder() -> Path:
    """The folder of the sample corpus: the parts ``train`` and ``heldout``, and ``questions``, a dozen in C3's format."""
    return Path(str(importlib.resources.files("pangu_lab") / "sample"))


def sample_files(part: str) -> list[Path]:
    """The text files of one part, in order; documents are blocks between blank lines.

    Raises:
        InputError: there is no such part.
    """
    if part not in PARTS:
        raise InputError(f"the sample corpus has no part '{part}': {' and '.join(PARTS)}")
    return sorted((sample_folder() / part).glob("*.txt"))
