"""From a pair of texts to tokens: where the context ends and the scored continuation begins.

To the model the two texts are one, so they are tokenised as one, and the boundary, a position between two characters,
is then located among the pieces. Words may cross it: "他喝" + "水果茶" is cut 喝水|果茶 in some contexts. A piece with
characters of both sides belongs to the continuation, whose probability it decides; only pieces that lie wholly inside
the context count as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer

CUTS = ("context", "continuation")


@dataclass(frozen=True)
class TokenPair:
    """Tokens of one request, ready for the network.

    Attributes:
        ids: context and continuation; the last one is only predicted, never read.
        start: index of the first scored token, at least 1, since the first token has nothing to be predicted from.
        cut: tokens that were left out because the model's window is shorter.
    """

    ids: tuple[int, ...]
    start: int
    cut: int = 0

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.ids[:-1]

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[self.start :]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], int]:
    """Tokens of ``context + continuation``, and how many of them lie wholly inside the context."""
    whole = tokenizer.encode(context + continuation)
    if not context:
        return whole, 0
    alone = tokenizer.encode(context)
    if whole[: len(alone)] == alone:
        return whole, len(alone)
    return whole, _boundary(tokenizer, context, continuation, whole, alone)


def _boundary(tokenizer: Tokenizer, context: str, continuation: str, whole: Sequence[int], alone: Sequence[int]) -> int:
    """The number of pieces inside the context, when a word crosses its end or the context alone is cut otherwise."""
    words = tokenizer.words(context + continuation)
    pieces = tokenizer.encode_words(words)
    if [index for word in pieces for index in word] != list(whole):
        return common_prefix(whole, alone)  # words and pieces do not line up: count only what certainly agrees
    count, position = 0, 0
    for word, ids in zip(words, pieces):
        if position + len(word) > len(context):
            return count + _pieces_inside(tokenizer, word, len(context) - position, ids)
        count, position = count + len(ids), position + len(word)
    return count


def _pieces_inside(tokenizer: Tokenizer, word: str, characters: int, ids: Sequence[int]) -> int:
    """How many pieces of ``word`` lie inside its first ``characters``, compared as the tokenizer spells them."""
    inside = tokenizer.decode(tokenizer.encode_words([word[:characters]])[0]) if characters else ""
    return pieces_within([tokenizer.decode([index]) for index in ids], inside)


def pieces_within(texts: Sequence[str], whole: str) -> int:
    """How many pieces, given by their texts, ``whole`` begins with; a last one without text is not counted."""
    position = count = 0
    for number, text in enumerate(texts, 1):
        if not whole.startswith(text, position):
            break
        position += len(text)
        count = number if text else count
    return count


def common_prefix(left: Sequence, right: Sequence) -> int:
    """Length of the longest common prefix."""
    length = min(len(left), len(right))
    if tuple(left[:length]) == tuple(right[:length]):
        return length
    for index in range(length):
        if left[index] != right[index]:
            return index
    return length


def fit(ids: Sequence[int], context_tokens: int, longest: int, cut: str = "context") -> TokenPair:
    """Shorten a request to ``longest`` tokens: one more than the model can read, since the last is only predicted.

    Args:
        cut: what loses tokens first: "context" from its left, or "continuation" from its right. At least one token
            of it stays; only after that is the other shortened as well.

    Raises:
        InputError: ``cut`` is neither.
    """
    if cut not in CUTS:
        raise InputError(f"cut={cut!r} must be 'context' or 'continuation'")
    over = max(0, len(ids) - longest)
    continuation_tokens = len(ids) - context_tokens
    if cut == "context":
        left = min(over, max(0, context_tokens - 1))
        right = over - left
    else:
        right = min(over, max(0, continuation_tokens - 1))
        left = over - right
    kept = tuple(ids[left : len(ids) - right])
    return TokenPair(kept, max(1, context_tokens - left), over)
