"""Finding the heads that look at something, by a score: on verse, at the line above, at the rhyme, at the title.

A relation says, for a place that a poem asks about, which earlier places are the related ones. After the token at place i
the network predicts the one at i + 1, so row i of every layer's attention is about place i + 1: "the same place one line
above" means above the character to come, for the blocks as for the query layer, whose query of position i asks nothing else.

A head's score is its attention to the related places, beside what a head would give them that looks at all places alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_lab.corpus.verse import FORMS
from pangu_lab.errors import InputError
from pangu_lab.interpret.activations import Attention
from pangu_lab.tokenizer.sentence_piece import LINE_MARK

RELATIONS = {
    "line above": "the same place one line above",
    "couplet": "the same place in the first line of the couplet",
    "rhyme": "the ends of the earlier even lines, where the next rhyme is due",
    "other ends": "from the same places the ends of the odd lines, which need not rhyme: is it the rhyme, or any end of a line?",
    "previous": "the token before the newest",
    "title": "the characters of the title",
}


@dataclass(frozen=True)
class HeadScore:
    """What one head gives to one relation, mean over poems, each the mean over its places that have related ones.

    Attributes:
        relation: a name from ``RELATIONS``.
        layer, head: ``blocks.0`` … or ``query_layer``, and the head's number.
        mass: attention to the related places, 0 … 1.
        uniform: the same of a head that looks at all visible places alike.
    """

    relation: str
    layer: str
    head: int
    mass: float
    uniform: float

    @property
    def ratio(self) -> float:
        """How many times as much as a head that looks at all places alike."""
        return self.mass / self.uniform


@dataclass(frozen=True)
class VersePlaces:
    """Where the parts of a poem stand among its tokens.

    Attributes:
        title: places of the characters between 《 and 》.
        lines: (lines, characters) places.
    """

    title: tuple[int, ...]
    lines: np.ndarray


def verse_places(tokens: Sequence[str]) -> VersePlaces:
    """The places of a poem in the form ``《title》``, line end, poem; the title may be missing.

    Raises:
        InputError: not regulated verse, or not one token a character.
    """
    start = tokens.index(LINE_MARK) + 1 if "《" in tokens[:1] and LINE_MARK in tokens else 0
    lines: list[list[int]] = [[]]
    for place, token in enumerate(tokens[start:], start):
        if token in ("，", "。"):
            lines.append([])
        elif token != LINE_MARK:
            lines[-1].append(place)
    if lines.pop() or (len(lines), *{len(line) for line in lines}) not in FORMS:
        raise InputError(
            f"{''.join(tokens)[:20]!r} is not 4 or 8 lines of 5 or 7 characters, a token each, that end with ， or 。"
        )
    return VersePlaces(tuple(place for place in range(1, start - 1) if tokens[place] != "》"), np.array(lines))


def verse_relations(tokens: Sequence[str]) -> dict[str, np.ndarray]:
    """Which places are related to which, by the names of ``RELATIONS``: (seq, seq) of bool, [row, place looked at].

    Row i is about the token at place i + 1; a row without related places does not count.

    Raises:
        InputError: as ``verse_places``.
    """
    places, seq = verse_places(tokens), len(tokens)
    lines = places.lines
    found = {name: np.zeros((seq, seq), bool) for name in RELATIONS}
    found["line above"][lines[1:] - 1, lines[:-1]] = True
    found["couplet"][lines[1::2] - 1, lines[::2]] = True
    ends = lines[1::2, -1]
    for number in range(1, len(ends)):
        found["rhyme"][ends[number] - 1, ends[:number]] = True
        found["other ends"][ends[number] - 1, lines[: 2 * number + 1 : 2, -1]] = True
    newest = lines.ravel()[1:] - 1
    found["previous"][newest, newest - 1] = True
    found["title"][np.ix_(lines.ravel() - 1, places.title)] = True
    return found


def score_heads(looks: Sequence[Attention]) -> list[HeadScore]:
    """Every head of every layer on every relation that the poems have, the best of each relation first.

    Args:
        looks: of some poems, ``lm.attention([poem, …])``.

    Raises:
        InputError: there is none, or one is not verse.
    """
    if not looks:
        raise InputError("no poems: heads are found by their attention in some")
    relations = [verse_relations(look.tokens) for look in looks]
    scores = []
    for name in RELATIONS:
        shares = [
            _shares(look.probabilities, related[name]) for look, related in zip(looks, relations) if related[name].any()
        ]
        if shares:
            mass, uniform = np.mean([mass for mass, _ in shares], 0), float(np.mean([even for _, even in shares]))
            of_name = [
                HeadScore(name, layer, head, float(mass[place, head]), uniform)
                for place, layer in enumerate(looks[0].layers)
                for head in range(mass.shape[1])
            ]
            scores += sorted(of_name, key=lambda score: -score.mass)
    return scores


def best_heads(scores: Sequence[HeadScore]) -> dict[str, HeadScore]:
    """The head that looks most at it, for each relation."""
    found: dict[str, HeadScore] = {}
    for score in scores:
        if score.relation not in found or score.mass > found[score.relation].mass:
            found[score.relation] = score
    return found


def _shares(probabilities: np.ndarray, related: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean attention (layers, heads) to what is related, and that of a head that looks at all alike."""
    rows = np.flatnonzero(related.any(1))
    mass = np.where(related[rows], probabilities[:, :, rows], 0).sum(-1).mean(-1)
    return mass, float((related[rows].sum(1) / (rows + 1)).mean())
