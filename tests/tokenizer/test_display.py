"""Words, pieces and ids side by side."""

from __future__ import annotations

from pathlib import Path

from pangu_lab.tokenizer import Tokenizer, load_tokenizer, show


def test_rows_of_pangu() -> None:
    rows = show(load_tokenizer("pangu"), "今天 iPhone15\n")
    assert rows[0] == ("今天", ["▁今天"], [465])
    assert rows[1] == ("␣", ["▁", "▂"], [13, 4])
    assert rows[2] == ("iPhone15", ["▁iPhone", "15"], [7596, 10427])
    assert rows[3] == ("↵", ["▁", "▃"], [13, 3])
    assert show(load_tokenizer("pangu"), "") == []


def test_the_ids_of_all_rows_are_those_of_the_text(trained: Tokenizer, gpt2_folder: Path, text: str) -> None:
    for tokenizer in (trained, load_tokenizer(gpt2_folder)):
        rows = show(tokenizer, text)
        assert [index for row in rows for index in row.ids] == tokenizer.encode(text)
        assert all(tokenizer.id_of(piece) == index for row in rows for piece, index in zip(row.pieces, row.ids))
