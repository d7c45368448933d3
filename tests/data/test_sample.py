"""The sample corpus that comes with the package."""

from __future__ import annotations

import pytest

from pangu_lab.data import sample_files, sample_folder
from pangu_lab.errors import InputError


def test_both_parts_are_there_and_share_nothing() -> None:
    parts = {part: [path.read_text(encoding="utf-8") for path in sample_files(part)] for part in ("train", "heldout")}
    assert sample_folder().is_dir() and sum(map(len, parts["train"])) >= 40_000 and parts["heldout"]
    blocks = {part: {block.strip() for text in texts for block in text.split("\n\n") if block.strip()}
              for part, texts in parts.items()}
    assert not blocks["train"] & blocks["heldout"]


def test_another_part_is_refused() -> None:
    with pytest.raises(InputError, match="no part 'test'"):
        sample_files("test")
