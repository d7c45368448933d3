"""A text in two parts: one to learn from, and one that is held out, so that no text stands in both.

Many documents are divided by a hash of their content: copies of a document fall on one side. Of few long ones, such as a
novel, stretches from several places are held out (the end alone may be notes or an afterword), in whole paragraphs; those
that also stand in the rest are left out of them.
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pangu_lab.corpus import Corpus, Inputs, Reading
from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder
from pangu_lab.progress import Progress, silent

PARTS = ("train", "heldout")
SHARE, FEWEST, MOST = (
    0.05,
    5_000,
    30_000,
)  # of the characters, but from so many to so many: an evaluation reads them all
LEAST = 200  # characters that a text has at least
MANY = 50  # documents that can be divided by their hash
STRETCH, STRETCHES = (
    2_000,
    8,
)  # characters of a held-out stretch of a long document at least, and how many of them at most
REPEATED = 16  # characters of a paragraph that is long enough to be a copy
SEEN = 1_500_000  # characters that are kept to be looked at closely
_SENTENCE = re.compile(r"[^。！？.!?]*[。！？.!?]+[”’」』\"']*|[^。！？.!?]+$")


@dataclass(frozen=True)
class Look:
    """What a first reading of a text finds.

    Attributes:
        identity: the same for the same files, read in the same way.
        letters: how often each character occurs.
        sample: (to learn from, held out): the first ``SEEN`` characters of the text, divided.
        notes: lines for a person.
    """

    identity: str
    characters: int
    documents: int
    longest: int
    border: int
    letters: collections.Counter[str]
    sample: tuple[list[str], list[str]]
    notes: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the characters, to be held out."""
        return held_out_share(self.characters)

    @property
    def by_hash(self) -> bool:
        return self.documents >= MANY and self.longest <= self.characters * self.share


@dataclass(frozen=True)
class Split:
    """The files ``train.jsonl`` and ``heldout.jsonl`` of a folder, with the characters in each."""

    folder: Path
    train: int
    heldout: int


def held_out_share(characters: int) -> float:
    """Of a text of so many characters."""
    return min(max(SHARE, min(2 * SHARE, FEWEST / characters)), MOST / characters)


def look_at(inputs: Inputs, how: Reading, progress: Progress = silent) -> Look:
    """Read a text once.

    Raises:
        InputError: it cannot be read, or there is too little of it.
    """
    corpus = Corpus(inputs, how, progress)
    letters: collections.Counter[str] = collections.Counter()
    hashes, lengths, kept, room = array("Q"), array("Q"), [], SEEN
    for document in corpus.documents():
        hashes.append(_hash(document))
        lengths.append(len(document))
        letters.update(document)
        if room > 0:
            kept.append(document[:room])
            room -= len(kept[-1])
        progress(min(corpus.read, corpus.characters), corpus.characters, "looking at the text")
    characters = sum(lengths)
    if characters < LEAST:
        raise InputError(f"the text has {characters} characters: give at least {LEAST}, and 50,000 to learn anything")
    digest = hashlib.sha256(json.dumps([sorted(source.sha256 for source in corpus.sources), how.to_dict()]).encode())
    border = _border(hashes, lengths, held_out_share(characters) * characters)
    look = Look(
        digest.hexdigest(),
        characters,
        len(lengths),
        max(lengths),
        border,
        letters,
        ([], []),
        (*corpus.notes(), *corpus.report.lines()),
    )
    for part, document in _divided(look, kept):
        look.sample[PARTS.index(part)].append(document)
    return look


def split_text(inputs: Inputs, out: Path, how: Reading, look: Look, progress: Progress = silent) -> Split:
    """Write ``train.jsonl`` and ``heldout.jsonl``, a document a line, into the new folder ``out``.

    Raises:
        InputError: it cannot be read, or nothing can be held out of it.
    """
    corpus = Corpus(inputs, how, progress)
    counts = dict.fromkeys(PARTS, 0)
    with whole_folder(out) as folder:
        with (
            open(folder / "train.jsonl", "w", encoding="utf-8") as train,
            open(folder / "heldout.jsonl", "w", encoding="utf-8") as heldout,
        ):
            files = dict(zip(PARTS, (train, heldout)))
            for part, document in _divided(look, corpus.documents()):
                _write(files[part], document)
                counts[part] += len(document)
                progress(min(corpus.read, corpus.characters), corpus.characters, "holding out a part")
        for part, count in counts.items():
            if not count:
                use = "held out" if part == "heldout" else "learned"
                raise InputError(f"no part of the text could be {use}: give a longer one")
    return Split(Path(out), counts["train"], counts["heldout"])


def _write(file: IO[str], document: str) -> None:
    file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")


def _hash(document: str) -> int:
    return int.from_bytes(hashlib.sha256(document.strip().encode("utf-8", "replace")).digest()[:8], "big")


def _border(hashes: array[Any], lengths: array[Any], wanted: float) -> int:
    """The hash up to which documents are held out, so that they have about ``wanted`` characters."""
    total = 0
    for value, length in sorted(zip(hashes, lengths)):
        total += length
        if total >= wanted:
            return value
    return 0


def _divided(look: Look, documents: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(part, text)"""
    if look.by_hash:
        for document in documents:
            yield PARTS[_hash(document) <= look.border], document
        return
    learned: set[int] = set()
    held_out = []
    for first, last in (cut for document in documents for cut in _cuts(document, look.share)):
        learned.update(hash(line) for line in first.split("\n") if len(line) >= REPEATED)
        held_out.append(last)
        yield "train", first
    for last in held_out:
        lines = [line for line in last.split("\n") if hash(line) not in learned]
        if any(line.strip() for line in lines):
            yield "heldout", "\n".join(lines)


def _cuts(document: str, share: float) -> Iterator[tuple[str, str]]:
    """Sections of a document, each as a first part and a last of about ``share``, in whole paragraphs; in sentences where it has
    but one."""
    joint, pieces = "\n", document.split("\n")
    if len(pieces) < 2 or len(pieces[-1]) > 4 * share * len(document) and len(pieces) < 10:
        joint, pieces = "", _SENTENCE.findall(document)
    groups: list[list[str]] = [[] for _ in range(max(1, min(STRETCHES, int(share * len(document) / STRETCH))))]
    done = 0
    for piece in pieces:
        groups[min(len(groups) - 1, done * len(groups) // max(1, len(document)))].append(piece)
        done += len(piece) + len(joint)
    yield from (_cut(joint, group, share) for group in groups if group)


def _cut(joint: str, pieces: list[str], share: float) -> tuple[str, str]:
    held, count, whole = 0, 0, sum(len(piece) + len(joint) for piece in pieces)
    while count < len(pieces) - 1 and held < share * whole:
        count += 1
        held += len(pieces[-count]) + len(joint)
    return joint.join(pieces[: len(pieces) - count]), joint.join(pieces[len(pieces) - count :]) if count else ""
