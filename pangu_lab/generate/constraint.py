"""Constraints: which tokens may come next, given the tokens so far. The first step of the sampling chain applies them.

A constraint is an object with ``start``; see ``Constraint``. ``Verse`` is one: it holds a poem to the form of regulated verse,
whatever the model would have written.

    lm.generate("《四季》\\n", constraint=Verse(lines=4, length=7, rhyme=True, acrostic="春夏秋冬"), max_new_tokens=80)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from pangu_lab.corpus.prosody import rhymes
from pangu_lab.corpus.verse import FORMS
from pangu_lab.errors import InputError
from pangu_lab.generate.text import TokenizerLike

Allowed = Callable[
    [Sequence[int]], np.ndarray
]  # ids generated so far → ids that may come next, (n,) int64, at least one


class Constraint(Protocol):
    """What ``generate`` takes as ``constraint``. One object serves any number of texts: it keeps no state of them."""

    def start(self, tokenizer: TokenizerLike, limit: int) -> Allowed:
        """The rule for texts of this tokenizer of at most ``limit`` new tokens.

        Raises:
            InputError: it cannot be kept with this tokenizer or in so many tokens.
        """


@dataclass(frozen=True)
class Verse:
    """A poem of 4 or 8 lines of 5 or 7 characters, two to a line of text with ， and 。, then the end of the document.

    Each character is a token, and the prompt is what stands before the poem, such as its title.

    Attributes:
        rhyme: the even lines end in one rhyme of the Pingshui book, in different characters where it has enough.
        acrostic: the first characters of the lines, from the first on; empty: free.
    """

    lines: int = 4
    length: int = 7
    rhyme: bool = False
    acrostic: str = ""

    def __post_init__(self) -> None:
        if (self.lines, self.length) not in FORMS:
            raise InputError(
                f"verse of {self.lines} lines of {self.length} characters: there are 4 or 8 lines, of 5 or 7"
            )
        if len(self.acrostic) > self.lines:
            raise InputError(f"acrostic={self.acrostic!r} has {len(self.acrostic)} characters for {self.lines} lines")

    @property
    def tokens(self) -> int:
        """How many a poem has, with punctuation and the end."""
        return self.lines * (self.length + 1) + self.lines // 2

    def start(self, tokenizer: TokenizerLike, limit: int) -> Allowed:
        if limit < self.tokens:
            raise InputError(
                f"verse of {self.lines} lines of {self.length} characters needs {self.tokens} tokens and has room "
                f"for {limit}: set sampling.max_new_tokens, or shorten the prompt"
            )
        ids = _characters(tokenizer)
        lacking = [sign for sign in ("，", "。", "\n", *self.acrostic) if sign not in ids]
        if lacking:
            raise InputError(f"the vocabulary has no token for {lacking[0]!r} alone, which this verse needs")
        return functools.partial(
            self._allowed, ids, np.array([ids[sign] for sign in ids if _is_han(sign)], np.int64), tokenizer.eod_id
        )

    def _allowed(self, ids: Mapping[str, int], han: np.ndarray, end: int, new: Sequence[int]) -> np.ndarray:
        row = 2 * self.length + 3  # a row of text: two lines, ， 。 and the line break
        number, place = divmod(len(new), row)
        if len(new) >= self.tokens - 1:
            return np.array([end])
        signs = {self.length: "，", row - 2: "。", row - 1: "\n"}
        if place in signs:
            return np.array([ids[signs[place]]])
        line, place = (2 * number + 1, place - self.length - 1) if place > self.length else (2 * number, place)
        if place == 0 and line < len(self.acrostic):
            return np.array([ids[self.acrostic[line]]])
        if self.rhyme and line % 2 and place == self.length - 1:
            before = [new[row * earlier + row - 3] for earlier in range(number)]
            return self._rhyming(ids, before)
        return han

    def _rhyming(self, ids: Mapping[str, int], before: Sequence[int]) -> np.ndarray:
        """Characters that end an even line, after those that ended the earlier ones."""
        known = {index: rhymes()[sign] for sign, index in ids.items() if sign in rhymes()}
        common = functools.reduce(frozenset.intersection, (known[index] for index in before)) if before else None
        found = [index for index, names in known.items() if common is None or names & common]
        others = [index for index in found if index not in before]
        return np.array(others or found, np.int64)


def _is_han(sign: str) -> bool:
    return "\u3400" <= sign <= "\u9fff" or "\U00020000" <= sign <= "\U0003ffff"


@functools.lru_cache(maxsize=4)
def _characters(tokenizer: TokenizerLike) -> Mapping[str, int]:
    """The id of each character that is a token of its own."""
    found: dict[str, int] = {}
    for index in range(tokenizer.vocab_size):
        piece = tokenizer.text_bytes(index)
        if 0 < len(piece) <= 4:
            text = piece.decode("utf-8", "ignore")
            if len(text) == 1 and len(text.encode()) == len(piece):
                found.setdefault(text, index)
    return MappingProxyType(found)
