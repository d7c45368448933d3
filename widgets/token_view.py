"""``TokenView``: live tokenization of a text: words, their pieces, and the ids.

Below are statistics: whether the text comes back unchanged, how many characters a token holds, which
pieces are unknown to the vocabulary. A second tokenizer can be compared: which of the two needs fewer tokens?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import traitlets

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import load_tokenizer, show
from pangu_lab.tokenizer.base import Tokenizer
from widgets.base import LabWidget, escape, still_block
from widgets.still import COLORS

MOST_CHARACTERS = 4000


class TokenView(LabWidget):
    """A text box and its tokens.

    Args:
        text: what to begin with.
        tokenizer: a tokenizer, or what ``load_tokenizer`` takes: ``"pangu"`` or a folder.
        other: another one to stand beside it; the page has a field for its name too.

    Attributes:
        cuts: for each tokenizer its "name", and "rows" and "facts" (see ``cut``; facts {"refused": why} of too long a text).
    """

    _script = "token_view"
    _sections = ("tokens",)
    text = traitlets.Unicode().tag(sync=True)
    cuts = traitlets.List().tag(sync=True)

    def __init__(
        self,
        text: str = "白日依山尽，黄河入海流。",
        tokenizer: Tokenizer | Path | str = "pangu",
        other: Tokenizer | Path | str | None = None,
        **values: Any,
    ) -> None:
        self._tokenizers = [_named(tokenizer)]
        super().__init__(text=text, **values)
        self.observe(lambda change: self._cut(), "text")
        self.compare(other)

    @property
    def tokenizer(self) -> Tokenizer:
        """The first."""
        return self._tokenizers[0][1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the first tokenizer, see ``cut``."""
        return self.cuts[0]["rows"]

    @property
    def facts(self) -> dict[str, Any]:
        """Of the first tokenizer, see ``cut``."""
        return self.cuts[0]["facts"]

    def compare(self, other: Tokenizer | Path | str | None) -> None:
        """Put another tokenizer beside the first; None or an empty name takes it away.

        Raises:
            InputError: there is no such tokenizer.
        """
        self._tokenizers = [self._tokenizers[0], *([_named(other)] if other else [])]
        self._cut()

    def _cut(self) -> None:
        self.cuts = [{"name": name, **_cut_or_refused(tokenizer, self.text)} for name, tokenizer in self._tokenizers]

    def _do_compare(self, content: dict[str, Any]) -> None:
        self.compare(str(content.get("name", "")).strip())

    def still_text(self) -> str:
        return "\n".join(f"{_words(one)}\n{self._told(one)}" for one in self.cuts)

    def _told(self, one: dict[str, Any]) -> str:
        """The figures that the page shows in tiles, the ones that say most; or why there are none."""
        facts = one["facts"]
        name = f"{one['name']}: " if len(self.cuts) > 1 else ""
        if "refused" in facts:
            return name + facts["refused"]
        told = {
            "characters": facts["characters"],
            "tokens": facts["tokens"],
            "unknown": facts["unknown"],
            "round_trip": self.word("tokens", "same" if facts["same"] else "differs"),
        }
        line = name + ", ".join(f"{self.word('tokens', key)} {value}" for key, value in told.items())
        return line if facts["same"] else f"{line}\n{self.word('tokens', 'comes_back', text=facts['back'])}"

    def still_html(self) -> str:
        style = "display:inline-block;margin:2px;padding:2px 6px;border-radius:4px;color:#fff;background:"
        parts = []
        for one in self.cuts:
            words = "".join(
                f'<span style="{style}{COLORS[number % len(COLORS)]}">{escape(" ".join(row["pieces"]))}'
                f"<br><small>{' '.join(map(str, row['ids']))}</small></span>"
                for number, row in enumerate(one["rows"])
            )
            parts.append(f"<div>{words}</div>{still_block(self._told(one))}")
        return "".join(parts)


def _named(tokenizer: Tokenizer | Path | str) -> tuple[str, Tokenizer]:
    """A tokenizer and what to call it: as it was asked for, or its kind."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.kind, tokenizer
    return str(tokenizer), load_tokenizer(tokenizer)


def _words(one: dict[str, Any]) -> str:
    return "  ".join(f"{row['word']} [{' '.join(map(str, row['ids']))}]" for row in one["rows"])


def _cut_or_refused(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    try:
        rows, facts = cut(tokenizer, text)
    except InputError as error:
        rows, facts = [], {"refused": str(error)}
    return {"rows": rows, "facts": facts}


def cut(tokenizer: Tokenizer, text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows {"word", "pieces", "ids", "unknown"} and figures of a text; plain values.

    Raises:
        InputError: the text is too long to be shown.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"the text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are shown")
    unknown = tokenizer.id_of("<unk>")
    rows = [
        {"word": row.word, "pieces": row.pieces, "ids": row.ids, "unknown": [index == unknown for index in row.ids]}
        for row in show(tokenizer, text)
    ]
    ids = [index for row in rows for index in row["ids"]]
    back = tokenizer.decode(ids)
    tokens = max(1, len(ids))
    facts = {
        "characters": len(text),
        "bytes": len(text.encode()),
        "tokens": len(ids),
        "words": len(rows),
        "characters_a_token": len(text) / tokens,
        "bytes_a_token": len(text.encode()) / tokens,
        "unknown": sum(flag for row in rows for flag in row["unknown"]),
        "same": back == text,
        "back": back,
        "vocabulary": tokenizer.vocab_size,
        "kind": tokenizer.kind,
    }
    return rows, facts
