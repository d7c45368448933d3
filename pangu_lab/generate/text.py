"""The text side of generation: what may be shown, where a stop string cuts, which tokens complete a bad word.

Token and character boundaries differ. A stop string may begin inside one token and end inside another, so text that
could still become a stop string is held back until that is decided; and a word can be split into tokens in many
ways, so bad words are searched for in the bytes of the text, not in the ids. A tokenizer may write a character in
another form than the user (PanGu's turns "，" into ","), hence both forms count.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TokenizerLike(Protocol):
    """What generation needs of a tokenizer (``pangu_lab.tokenizer.Tokenizer``, or a fake of ten lines)."""

    vocab_size: int
    eod_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def stream(self) -> TextStreamLike: ...

    def text_bytes(self, index: int) -> bytes: ...


class TextStreamLike(Protocol):
    """Text from ids one at a time; what was returned is final."""

    def push(self, index: int) -> str: ...

    def flush(self) -> str: ...


def unknown_ids(tokenizer: TokenizerLike) -> tuple[int, ...]:
    """Ids of the unknown piece; none for a vocabulary that can write everything."""
    return tuple(getattr(tokenizer, "unknown_ids", ()))


def written_forms(tokenizer: TokenizerLike, texts: Sequence[str]) -> tuple[str, ...]:
    """``texts`` and, where the tokenizer writes them otherwise, their other form."""
    forms = [*texts, *(tokenizer.decode(tokenizer.encode(text)) for text in texts)]
    return tuple(dict.fromkeys(form for form in forms if form))


class TextWriter:
    """Collects the text of one completion and says how much of it is safe to show.

    Attributes:
        text: the accepted text so far; cut at the stop string once one was found.
        stopped: whether a stop string was found.
        kept: how many of the pushed tokens begin before the cut.
    """

    def __init__(self, stream: TextStreamLike, stop: Sequence[str] = ()) -> None:
        self._stream, self._stop = stream, tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._starts: list[int] = []
        self._shown = 0
        self.text = ""
        self.stopped = False

    @property
    def kept(self) -> int:
        if not self.stopped:
            return len(self._starts)
        return sum(start < len(self.text) for start in self._starts)

    def push(self, index: int, may_stop: bool = True) -> str:
        """Add a token; returns the text that became safe to show. A stop string counts only where ``may_stop``."""
        self._starts.append(len(self.text))
        return self._append(self._stream.push(index), may_stop)

    def end(self) -> str:
        """No token will follow: returns the text that was held back."""
        rest = "" if self.stopped else self._append(self._stream.flush(), True)
        rest += self.text[self._shown :]
        self._shown = len(self.text)
        return rest

    def _append(self, piece: str, may_stop: bool) -> str:
        before = len(self.text)
        self.text += piece
        if may_stop and piece:  # a new stop string must end after the earlier text
            found = [
                place for stop in self._stop if (place := self.text.find(stop, max(0, before - len(stop) + 1))) >= 0
            ]
            if found:
                self.text, self.stopped = self.text[: min(found)], True
        safe = len(self.text) if self.stopped else len(self.text) - self._held_back()
        new, self._shown = self.text[self._shown : safe], max(self._shown, safe)
        return new

    def _held_back(self) -> int:
        """Length of the longest suffix of the text that a stop string begins with."""
        tail = self.text[-self._longest + 1 :] if self._longest > 1 else ""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(tail) + 1))
                if tail.endswith(stop[:length])
            ),
            default=0,
        )


class BadWords:
    """Which tokens would complete one of some words, given the text so far."""

    def __init__(self, tokenizer: TokenizerLike, words: Sequence[str]) -> None:
        self._words = [form.encode() for form in written_forms(tokenizer, words)]
        self._pieces = _sorted_pieces(tokenizer) if self._words else ()
        self._always = {index for piece, index in self._pieces for word in self._words if word in piece}
        self._longest = max(map(len, self._words), default=0)

    def banned(self, text: bytes) -> list[int]:
        """Ids that may not follow ``text`` (its last bytes are enough)."""
        ids = set(self._always)
        for word in self._words:
            for done in range(1, len(word)):
                if text.endswith(word[:done]):
                    ids.update(self._beginning_with(word[done:]))
        return sorted(ids)

    def tail(self, tokenizer: TokenizerLike, ids: Sequence[int]) -> bytes:
        """As much of the end of the text of ``ids`` as matters."""
        tail = b""
        for index in reversed(ids):
            if len(tail) >= self._longest:
                break
            tail = tokenizer.text_bytes(index) + tail
        return tail

    def _beginning_with(self, start: bytes) -> list[int]:
        first = bisect.bisect_left(self._pieces, (start, -1))
        last = first
        while last < len(self._pieces) and self._pieces[last][0].startswith(start):
            last += 1
        return [index for _, index in self._pieces[first:last]]


@functools.lru_cache(maxsize=4)
def _sorted_pieces(tokenizer: TokenizerLike) -> tuple[tuple[bytes, int], ...]:
    """The bytes of every piece that has any, sorted, each with its id."""
    pieces = ((tokenizer.text_bytes(index), index) for index in range(tokenizer.vocab_size))
    return tuple(sorted((piece, index) for piece, index in pieces if piece))


def top_tokens(logprobs: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest (id, log-probability), likeliest first."""
    if count == 0:
        return ()
    count = min(count, logprobs.size)
    some = np.sort(np.argpartition(-logprobs, count - 1)[:count])
    order = some[np.argsort(-logprobs[some], kind="stable")]
    return tuple((int(index), float(logprobs[index])) for index in order)
