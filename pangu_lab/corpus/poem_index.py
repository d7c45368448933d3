"""Poems to compare with: which spans were copied from them, which of them is nearest, and what a bigram model would write.

All poems stand in one array of characters, without titles and punctuation. A span is known by a 64-bit hash of its
characters, so that the spans of 220,000 poems take 65 MB.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pangu_lab.errors import InputError

SPAN = 7  # characters: a whole line of the longer kind
_MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's; odd, so that no character is lost
_SIGNS = re.compile(r"[，。？！；、\s]+")
_CANDIDATES = 50  # poems with the most bigrams in common that are looked at closely
_LONGEST = 120  # characters of a sampled poem


def read_poems(path: Path | str) -> list[tuple[str, str]]:
    """(title, text) of each poem of a file that ``corpus verse`` made.

    Raises:
        InputError: no such file, or not of this form; names the line.
    """
    poems = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                poems.append(_poem(line, f"{path}: line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    if not poems:
        raise InputError(f"{path} has no poems")
    return poems


def _poem(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON: name a file that `pangu-lab corpus verse` made") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("title", "text")):
        raise InputError(f"{where} has no title and text: name a file that `pangu-lab corpus verse` made")
    return row["title"], row["text"]


@dataclass(frozen=True)
class Nearest:
    """The poem that has most in common with another.

    Attributes:
        title, text: of the poem.
        span: the longest run of characters that both have, punctuation aside.
        jaccard: bigrams that both have, as a share of those that either has.
    """

    title: str
    text: str
    span: str
    jaccard: float


class PoemIndex:
    """An index of poems, (title, text) each."""

    def __init__(self, poems: list[tuple[str, str]]) -> None:
        self.poems = poems
        plain = [_SIGNS.sub("", text) for _, text in poems]
        self._codes = _codes("".join(plain))
        self._ends = np.cumsum([len(text) for text in plain])

    @cached_property
    def _spans(self) -> np.ndarray:
        """Hashes of all spans, sorted, (spans,) uint64."""
        starts = np.arange(max(len(self._codes) - SPAN + 1, 0))
        inside = np.searchsorted(self._ends, starts, "right") == np.searchsorted(self._ends, starts + SPAN - 1, "right")
        return np.unique(_hashes(self._codes, SPAN)[inside])

    def copied(self, text: str) -> tuple[int, int]:
        """(spans of ``SPAN`` characters that some poem has, all spans) of a text, punctuation aside."""
        wanted = _hashes(_codes(_SIGNS.sub("", text)), SPAN)
        places = np.searchsorted(self._spans, wanted)
        found = self._spans[np.minimum(places, len(self._spans) - 1)] == wanted if len(self._spans) else np.zeros(0)
        return int(found.sum()), len(wanted)

    @cached_property
    def _bigrams(self) -> np.ndarray:
        return _hashes(self._codes, 2)

    def nearest(self, text: str) -> Nearest:
        """The poem with the longest run in common; among equals the one with most bigrams in common."""
        plain = _SIGNS.sub("", text)
        own = np.unique(_hashes(_codes(plain), 2))
        hits = np.searchsorted(self._ends, np.flatnonzero(np.isin(self._bigrams, own)), "right")
        common = np.bincount(hits, minlength=len(self.poems))
        best = np.argsort(-common, kind="stable")[:_CANDIDATES]
        found = [
            (_longest_run(plain, other := _SIGNS.sub("", self.poems[number][1])), _jaccard(plain, other), number)
            for number in best
        ]
        span, jaccard, number = max(found, key=lambda item: (len(item[0]), item[1], -item[2]))
        return Nearest(*self.poems[number], span, jaccard)


class BigramModel:
    """Each character follows the last as often as in the poems, titles left out: what a model must beat."""

    def __init__(self, poems: list[tuple[str, str]]) -> None:
        self._codes = _codes("".join(f"\0{text}" for _, text in poems) + "\0")
        self._order = np.argsort(
            self._codes[:-1], kind="stable"
        )  # places of each character, one character after the other
        self._sorted = self._codes[self._order]

    def sample(self, random: np.random.Generator) -> str:
        """A poem of this model, of at most 120 characters."""
        written, last = [], np.uint32(0)
        while len(written) < _LONGEST:
            low, high = np.searchsorted(self._sorted, last, "left"), np.searchsorted(self._sorted, last, "right")
            last = self._codes[self._order[random.integers(low, high)] + 1]
            if not last:
                break
            written.append(chr(last))
        return "".join(written)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


def _hashes(codes: np.ndarray, length: int) -> np.ndarray:
    """A hash of each run of ``length`` characters, (len(codes) − length + 1,) uint64; none where the text is shorter."""
    count = max(len(codes) - length + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for place in range(length):
        hashes = hashes * _MULTIPLIER + codes[place : place + count]
    return hashes


def _longest_run(left: str, right: str) -> str:
    best = ""
    for start in range(len(left)):
        while start + len(best) < len(left) and left[start : start + len(best) + 1] in right:
            best = left[start : start + len(best) + 1]
    return best


def _jaccard(left: str, right: str) -> float:
    mine, other = ({text[place : place + 2] for place in range(len(text) - 1)} for text in (left, right))
    return len(mine & other) / max(len(mine | other), 1)
