"""``TokenView``: how a text is cut, live: words, the pieces each is made of, and their ids.

Below stand what a newcomer asks next: does the text come back unchanged, how many characters does a token hold, which
pieces are unknown to the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Union

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
    """

    _script = "token_view"
    _sections = ("tokens",)
    text = traitlets.Unicode().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)

    def __init__(self, text: str = "白日依山尽，黄河入海流。", tokenizer: Union[Tokenizer, Path, str] = "pangu",
                 **values: Any) -> None:
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
        super().__init__(text=text, **values)
        self.observe(lambda change: self._cut(), "text")
        self._cut()

    def _cut(self) -> None:
        try:
            self.rows, self.facts = cut(self.tokenizer, self.text)
        except InputError as error:
            self.facts = {"refused": str(error)}

    def still_text(self) -> str:
        words = "  ".join(f"{row['word']} [{' '.join(map(str, row['ids']))}]" for row in self.rows)
        return f"{words}\n{self.facts.get('characters', 0)} characters, {self.facts.get('tokens', 0)} tokens"

    def still_html(self) -> str:
        style = "display:inline-block;margin:2px;padding:2px 6px;border-radius:4px;color:#fff;background:"
        words = "".join(f'<span style="{style}{COLORS[number % len(COLORS)]}">{escape(" ".join(row["pieces"]))}'
                        f'<br><small>{" ".join(map(str, row["ids"]))}</small></span>' for number, row in enumerate(self.rows))
        return f"<div>{words}</div>{still_block(self.still_text().splitlines()[-1])}"


def cut(tokenizer: Tokenizer, text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows {"word", "pieces", "ids", "unknown"} and figures of a text; plain values.

    Raises:
        InputError: the text is too long to be shown.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"the text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are shown")
    unknown = tokenizer.id_of("<unk>")
    rows = [{"word": row.word, "pieces": row.pieces, "ids": row.ids,
             "unknown": [index == unknown for index in row.ids]} for row in show(tokenizer, text)]
    ids = [index for row in rows for index in row["ids"]]
    back = tokenizer.decode(ids)
    tokens = max(1, len(ids))
    facts = {"characters": len(text), "bytes": len(text.encode()), "tokens": len(ids), "words": len(rows),
             "characters_a_token": len(text) / tokens, "bytes_a_token": len(text.encode()) / tokens,
             "unknown": sum(flag for row in rows for flag in row["unknown"]), "same": back == text, "back": back,
             "vocabulary": tokenizer.vocab_size, "kind": tokenizer.kind}
    return rows, facts
