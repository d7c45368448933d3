"""How a text is tokenized: words, pieces and ids side by side."""

from __future__ import annotations

from typing import NamedTuple

from pangu_lab.tokenizer.base import Tokenizer

VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\u3000": "□"})


class Row(NamedTuple):
    """One word; blanks in ``word`` are drawn as ␣ ↵ ␍ ⇥ □, ``pieces`` are spelled as in the vocabulary."""

    word: str
    pieces: list[str]
    ids: list[int]


def show(tokenizer: Tokenizer, text: str) -> list[Row]:
    """A row for each word of ``text``, in order; the ids of all rows are those of the text."""
    words = tokenizer.words(text)
    return [
        Row(word.translate(VISIBLE), [tokenizer.piece(index) for index in ids], ids)
        for word, ids in zip(words, tokenizer.encode_words(words))
    ]
