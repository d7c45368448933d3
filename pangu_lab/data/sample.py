"""The texts that come with the package, enough to try everything without your own data."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from pangu_lab.errors import InputError

PARTS = ("train", "heldout")


def sample_folder() -> Path:
    """The folder of the sample corpus: the parts ``train`` and ``heldout``, and ``questions``, a dozen in C3's format.

    ``verse`` has poems in the public domain, in the form of ``corpus verse``: ``famous.jsonl`` of Tang and Song, which the
    model ``verse`` has most likely read, and ``later.jsonl`` of Yuan, Ming and Qing, which it cannot have; and
    ``couplets.json``, in C3's format: which of four lines is the second of the couplet, for couplets of the later poems.
    """
    return Path(str(importlib.resources.files("pangu_lab") / "sample"))


def sample_files(part: str) -> list[Path]:
    """The text files of one part, in order; documents are blocks between blank lines.

    Raises:
        InputError: there is no such part.
    """
    if part not in PARTS:
        raise InputError(f"the sample corpus has no part '{part}': {' and '.join(PARTS)}")
    return sorted((sample_folder() / part).glob("*.txt"))
