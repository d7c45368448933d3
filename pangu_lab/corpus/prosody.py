"""The form of a poem, measured: lines and characters, rhyme, tones.

Rhyme and tone are those of the Pingshui rhyme book (``pingshui.json``), which poets of the time wrote by. Modern readings
would not do: the characters of the entering tone have spread over all four modern tones, two of which count as level. A
character that the book has under several rhymes may be read either way, and one that it lacks fits everywhere.

A rhyme is strict when the even lines end in one rhyme of the book, and loose when they end in one of the wider classes that
Song lyrics use (neighbours such as 东 and 冬, 庚 and 青; a rhyme that is split between two of them counts in both).

The collection itself (Tang and Song; ``corpus verse`` takes in old-style poems and songs of the same shape) reaches 89 %
strict and 94 % loose rhymes; 95 % of the tones fit, and in 71 % of the poems all do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.corpus.verse import FORMS
from pangu_lab.reading import read_json

LEVEL, OBLIQUE = "level", "oblique"
_LEVEL = "东冬江支微鱼虞齐佳灰真文元寒删先萧肴豪歌麻阳庚青蒸尤侵覃盐咸"
# Neighbouring rhymes: level tone, rising and falling tone, entering tone.
_WIDER = (
    "东冬",
    "江阳",
    "支微齐灰",
    "鱼虞",
    "佳灰",
    "真文元",
    "寒删先元",
    "萧肴豪",
    "歌",
    "麻佳",
    "庚青蒸",
    "尤",
    "侵",
    "覃盐咸",
    "董肿送宋",
    "讲养绛漾",
    "纸尾荠贿寘未霁泰队",
    "语麌御遇",
    "蟹贿泰卦队",
    "轸吻阮震问愿",
    "旱潸铣阮翰谏霰愿",
    "筱巧皓啸效号",
    "哿个",
    "马祃卦",
    "梗迥敬径",
    "有宥",
    "寝沁",
    "感俭豏勘艳陷",
    "屋沃",
    "觉药",
    "质陌锡职缉",
    "物月曷黠屑叶",
    "合洽",
)
_LINE_ENDS = re.compile("([，。？！])")


@functools.cache
def rhymes() -> dict[str, frozenset[str]]:
    """The rhymes of each character, named by the first character of the rhyme in the book."""
    table = read_json(Path(__file__).parent / "pingshui.json", "the rhyme book")["rhymes"]
    found: dict[str, set[str]] = {}
    for rhyme, characters in table.items():
        for character in characters:
            found.setdefault(character, set()).add(rhyme)
    return {character: frozenset(names) for character, names in found.items()}


def wider_rhymes(character: str) -> frozenset[str]:
    """The wider classes of a character, each named by its members."""
    return frozenset(names for names in _WIDER if rhymes().get(character, frozenset()) & set(names))


def tones(character: str) -> frozenset[str]:
    """``LEVEL``, ``OBLIQUE``, or both where the book has both or lacks the character."""
    names = rhymes().get(character)
    if names is None:
        return frozenset((LEVEL, OBLIQUE))
    return frozenset(LEVEL if name in _LEVEL else OBLIQUE for name in names)


def lines_of(text: str) -> tuple[str, ...] | None:
    """The lines of a poem in the form of the corpus (``上句，下句。`` to a line of text); None for another form.

    The number of lines and of characters must be right too: 4 or 8 lines of 5 or of 7.
    """
    lines: list[str] = []
    for row in text.strip("\n").split("\n"):
        parts = _LINE_ENDS.split(row)
        if len(parts) != 5 or parts[1] != "，" or parts[3] != "。" or parts[4]:
            return None
        lines += [parts[0], parts[2]]
    right = (len(lines), *{len(line) for line in lines}) in FORMS
    return (
        tuple(lines)
        if right and all("\u3400" <= character <= "\U0003ffff" for line in lines for character in line)
        else None
    )


@dataclass(frozen=True)
class Prosody:
    """Of a poem whose form is right.

    Attributes:
        rhyme, loose_rhyme: whether all even lines rhyme; a character that the book lacks rhymes with nothing.
        tones: share of the positions 2, 4 (and 6) whose tone fits the better of the two patterns.
        pattern: whether all of them fit.
    """

    rhyme: bool
    loose_rhyme: bool
    tones: float

    @property
    def pattern(self) -> bool:
        return self.tones == 1.0


def prosody_of(lines: Sequence[str]) -> Prosody:
    """Measure a poem, given as its lines."""
    ends = [line[-1] for line in lines[1::2]]
    strict = frozenset.intersection(*(rhymes().get(end, frozenset()) for end in ends))
    loose = frozenset.intersection(*map(wider_rhymes, ends))
    return Prosody(bool(strict), bool(loose), max(_fitting(lines, first) for first in (0, 1)))


def _fitting(lines: Sequence[str], first: int) -> float:
    """Share of the positions that fit a pattern: tones alternate in a line, are opposed in a couplet, and the second
    character has the same tone on both sides of the border between two couplets."""
    wanted = (LEVEL, OBLIQUE)
    fits = [
        wanted[(first + (number % 4 in (1, 2)) + place // 2) % 2] in tones(line[place])
        for number, line in enumerate(lines)
        for place in range(1, len(line) - 1, 2)
    ]
    return sum(fits) / len(fits)
