"""Regulated verse from the collection chinese-poetry, as a corpus to learn from.

Regulated here means a shape that can be counted: 4 or 8 lines of 5 or of 7 characters, all of the same length. That lets
in old-style poems of this shape; tones and rhyme are not looked at. Characters become simplified ones (OpenCC).

Held-out poems are chosen by a hash, so that a poem's side never depends on what else is in the collection's files or on
their order. Poems that differ in some characters (the collection has many twice, under other names) are put on one side:
two poems belong together when a couplet of theirs agrees in every other character, which one changed character per
couplet cannot hide.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.corpus.corpus import Corpus, simplifier
from pangu_lab.corpus.finding import Inputs
from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder, write_json_atomic
from pangu_lab.progress import Progress, silent

FORMS = {(4, 5): "wujue", (4, 7): "qijue", (8, 5): "wulü", (8, 7): "qilü"}  # (lines, characters): the form's name
TEMPLATE = "《{title}》\n{text}"  # how the recipe writes a poem
SOURCES = (
    "the collection chinese-poetry is not part of the lab: `npm pack chinese-poetry` gives an archive to name here, or "
    "`git clone https://github.com/chinese-poetry/chinese-poetry`, whose folder 全唐诗 has poems of Tang and Song"
)
_STOPS = re.compile("[，。！？；：、,.!?;:\\s]+")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_NOTE = re.compile(r"[（(〈<\[【〖《].*?[）)〉>\]】〗》]")


@dataclass(frozen=True)
class Poem:
    """A poem of a regulated shape, in simplified characters."""

    title: str
    author: str
    lines: tuple[str, ...]

    @property
    def form(self) -> str:
        return FORMS[len(self.lines), len(self.lines[0])]

    @property
    def text(self) -> str:
        """Two lines to a line of text, with the comma and the full stop that every edition has there."""
        return "\n".join(f"{first}，{second}。" for first, second in zip(self.lines[::2], self.lines[1::2]))

    def to_dict(self) -> dict[str, Any]:
        return {"title": self.title, "author": self.author, "form": self.form, "text": self.text}


@dataclass(frozen=True)
class VerseCorpus:
    """What ``make_verse`` made: poems on each side, by form, and what was left out, by reason."""

    folder: str
    train: int
    heldout: int
    forms: dict[str, int]
    left_out: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make_verse(inputs: Inputs, out: Path | str, share: float = 0.02, progress: Progress = silent) -> VerseCorpus:
    """Write ``train.jsonl`` and ``heldout.jsonl`` with fields title, author, form and text, and ``verse.json`` about them.

    Args:
        inputs: files, folders or archives of the collection's JSON (``title`` or ``rhythmic``, ``author``, ``paragraphs``).
        share: of the poems that are held out, roughly.

    Raises:
        InputError: nothing of the kind there, ``out`` exists, or OpenCC is not installed.
    """
    if not 0 < share < 0.5:
        raise InputError(f"heldout={share} must be above 0 and below 0.5")
    with whole_folder(out) as folder:
        left_out: collections.Counter[str] = collections.Counter()
        poems = list(_without_doubles(read_poems(inputs, left_out, progress), left_out))
        if not poems:
            raise InputError(f"no regulated poem in {inputs}: {SOURCES}")
        held = held_out(poems, share)
        for name, side in (("train", False), ("heldout", True)):
            with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(poem.to_dict(), ensure_ascii=False) + "\n"
                    for poem, is_held in zip(poems, held)
                    if is_held is side
                )
        forms = dict(collections.Counter(poem.form for poem in poems))
        made = VerseCorpus(str(out), held.count(False), held.count(True), forms, dict(left_out))
        write_json_atomic(
            folder / "verse.json", {"format": "pangu-lab verse", "version": 1, "share": share, **made.to_dict()}
        )
    return made


def read_poems(inputs: Inputs, left_out: collections.Counter[str], progress: Progress = silent) -> Iterator[Poem]:
    """The regulated poems of the collection's files, in order; ``left_out`` counts the others by reason."""
    corpus, convert = Corpus(inputs, progress=progress), simplifier()
    shown = 0
    for _, row in corpus.rows():
        if corpus.read - shown > 1_000_000:
            progress(corpus.read, corpus.characters, "reading poems")
            shown = corpus.read
        paragraphs = row.get("paragraphs") if isinstance(row, dict) else None
        if not isinstance(paragraphs, list) or not all(isinstance(line, str) for line in paragraphs):
            left_out["no poem"] += 1
            continue
        poem, reason = _poem(row, paragraphs, convert)
        if poem is None:
            left_out[reason] += 1
        else:
            yield poem
    left_out.update(corpus.report.left_out)


def _poem(row: dict[str, Any], paragraphs: list[str], convert: Any) -> tuple[Poem | None, str]:
    lines = [line for paragraph in paragraphs for line in _STOPS.split(_NOTE.sub("", paragraph)) if line]
    lengths = {len(line) for line in lines}
    if (len(lines), *lengths) not in FORMS:
        return None, "another shape"
    if not all(_HAN.fullmatch(line) for line in lines):
        return None, "gaps or signs in a line"
    title, author = (
        convert(value) if isinstance(value := row.get(key) or row.get(other), str) else ""
        for key, other in (("title", "rhythmic"), ("author", "author"))
    )
    lines = convert("\n".join(lines)).split("\n")
    if (
        len(lines),
        *{len(line) for line in lines},
    ) not in FORMS:  # a conversion keeps the number of characters; be sure
        return None, "another shape"
    return Poem(_NOTE.sub("", title).strip() or "无题", author.strip(), tuple(lines)), ""


def _without_doubles(poems: Iterator[Poem], left_out: collections.Counter[str]) -> Iterator[Poem]:
    known: set[bytes] = set()
    for poem in poems:
        key = hashlib.sha256("".join(poem.lines).encode()).digest()
        if key in known:
            left_out["the same text again"] += 1
        else:
            known.add(key)
            yield poem


def held_out(poems: list[Poem], share: float) -> list[bool]:
    """Whether each poem is held out. Poems that are nearly the same are so together."""
    group = list(range(len(poems)))

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = group[group[number]]
            number = group[number]
        return number

    first: dict[tuple[int, str], int] = {}
    for number, poem in enumerate(poems):
        for upper, lower in zip(poem.lines[::2], poem.lines[1::2]):
            for parity in (0, 1):
                other = first.setdefault((parity, (upper + lower)[parity::2]), number)
                group[root(number)] = root(other)
    lowest: dict[int, int] = {}
    for number, poem in enumerate(poems):
        value = int.from_bytes(hashlib.sha256("".join(poem.lines).encode()).digest()[:4], "big")
        lowest[root(number)] = min(value, lowest.get(root(number), value))
    return [lowest[root(number)] < share * 2**32 for number in range(len(poems))]
