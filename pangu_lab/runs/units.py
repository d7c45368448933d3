"""Losses in a unit that compares: bits per character.

A loss is in nats a token, and a token of a larger vocabulary stands for more text: between vocabularies, losses and
perplexities do not compare. Bits per character does: loss / ln 2 is the bits of a token, divided by the characters of
a token. A text's ends of documents are tokens without a character; what they cost counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOSS, BITS, NONE = "loss", "bits", "none"


def bits_per_character(loss: float | None, characters_per_token: float | None) -> float | None:
    """A loss (nats a token) as bits per character; None where one of the two is not known."""
    if loss is None or not characters_per_token or not math.isfinite(loss):
        return None
    return loss / math.log(2) / characters_per_token


@dataclass(frozen=True)
class Vocabulary:
    """What a run's loss is measured in: the vocabulary, and the text that a token of its training data stands for.

    Attributes:
        size: number of pieces.
        fingerprint: of the tokenizer; empty for runs of older versions, which did not record it.
        characters_per_token: of the training data; None where it is not known.
    """

    size: int
    fingerprint: str = ""
    characters_per_token: float | None = None

    @classmethod
    def of(cls, start: Mapping[str, Any], vocab_size: int) -> Vocabulary:
        """From a run's ``start`` event; ``vocab_size`` is that of its settings."""
        return cls(vocab_size, str(start.get("vocabulary", "")), start.get("characters_per_token"))


def common_unit(vocabularies: Sequence[Vocabulary]) -> str:
    """The unit in which runs compare: ``LOSS`` when all have one vocabulary, else ``BITS``; ``NONE`` when their
    vocabularies differ and one of them does not know its characters per token."""
    if len({one.size for one in vocabularies}) <= 1 and len({one.fingerprint for one in vocabularies} - {""}) <= 1:
        return LOSS
    return BITS if all(one.characters_per_token for one in vocabularies) else NONE
