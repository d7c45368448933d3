"""Texts to a data set: every document once, packed into records of ids, in MindRecord files.

The result depends only on the input and the options, never on the number of workers: documents are taken in the
order of the files, encoded anywhere, and packed in that same order. The folder appears when it is complete and
has been read back; an error before that leaves nothing behind.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_lab.corpus import Corpus, Inputs, Reading
from pangu_lab.data.encoding import encode_all
from pangu_lab.data.records import Packer, RecordWriter, WholeDocumentPacker
from pangu_lab.errors import InputError
from pangu_lab.files import check_destination, sha256_file, whole_folder, write_json_atomic
from pangu_lab.progress import Progress, silent
from pangu_lab.ranges import shown
from pangu_lab.tokenizer import Tokenizer

METADATA, CHECKSUMS = "dataset.json", "records.crc32"
TOKENIZER_FOLDER = "tokenizer"
FORMAT, VERSION = "pangu-lab data set", 1
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (
    *FULL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EIO,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)
WORKER_SECONDS = 1.0  # of work that justify starting a further worker
MOST_SHARDS = 1000
SHARD_RECORDS = 200_000  # in a file: MindRecord's index of them is made in memory, 1.4 kB for each
NAMED = 20  # unknown characters that are named, the commonest
UNKNOWN_SHARE = 0.01  # of tokens; above it the vocabulary does not fit the text


@dataclass(frozen=True)
class PreparedData:
    """What ``prepare`` did. ``tokens`` counts the ends of documents; ``tokens`` = records × record_length −
    padding_tokens + leftover_tokens."""

    folder: str
    documents: int
    characters: int
    tokens: int
    records: int
    leftover_tokens: int  # at the end, too few for a record: not in the data set
    padding_tokens: int
    record_length: int
    seconds: float
    unknown_tokens: int = 0  # of characters that the vocabulary lacks
    unknown_characters: dict[str, int] = field(default_factory=dict)  # the commonest, with how often each stands there
    left_out: dict[str, int] = field(default_factory=dict)  # rows and lines that were of no use, by reason
    notes: tuple[str, ...] = ()  # lines for a person: what was not read, what was left out and where

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def warnings(self) -> list[str]:
        """Lines for a person: the notes, and how much of the text the vocabulary does not know."""
        lines = list(self.notes)
        if self.unknown_tokens:
            share = self.unknown_tokens / max(self.tokens, 1)
            named = " ".join(f"{character}×{count:,}" for character, count in self.unknown_characters.items())
            advice = "; train a vocabulary on this text, or one with --byte-fallback" if share > UNKNOWN_SHARE else ""
            lines.append(f"{share:.2%} of the tokens are unknown characters, most often {named}{advice}")
        return lines


@dataclass(frozen=True)
class _Options:
    """The choices that decide the records."""

    record_length: int
    column: str
    pad_last: bool
    shards: int | None  # None: as many as the records ask for
    whole_documents: bool

    def __post_init__(self) -> None:
        if self.record_length < 2:
            raise InputError(f"a record of {self.record_length} tokens is too short: 2 are an input and its label")
        if not (self.column.isascii() and self.column.isidentifier() and len(self.column) <= 100):
            raise InputError(f"column '{shown(self.column)}' must be letters, digits and underscores, at most 100")
        if self.shards is not None and not 1 <= self.shards <= MOST_SHARDS:
            raise InputError(f"shards={self.shards} must be between 1 and {MOST_SHARDS}")

    def shards_for(self, tokens: int) -> int:
        """The number of files for about so many tokens."""
        return self.shards or min(MOST_SHARDS, 1 + tokens // (self.record_length * SHARD_RECORDS))


def prepare(
    inputs: Inputs,
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    record_length: int = 1025,
    workers: int | None = None,
    how: Reading | None = None,
    text_format: str = "auto",
    documents: str = "line",
    column: str = "input_ids",
    pad_last: bool = False,
    shards: int | None = None,
    whole_documents: bool = False,
    progress: Progress = silent,
) -> PreparedData:
    """Make a data set folder of texts.

    Args:
        inputs: paths, glob patterns (``**`` too), folders or archives; read in the order of their paths, each once.
        out: the folder to make; must not exist yet.
        tokenizer: is saved into the data set, with its choice of end of document and padding.
        record_length: tokens a record: the model's sequence length and one more.
        workers: processes that may encode, None for one a core; a text that is quicker done alone starts none.
        how: how files become documents, see ``corpus.Reading``; None makes one of the next two.
        text_format, documents: see there.
        column: the name of the MindRecord column.
        pad_last: fill the last record with padding instead of leaving the left-over tokens out.
        shards: number of MindRecord files; by default one for every 200,000 records, so that memory stays below 1 GB.
        whole_documents: never cut a document that fits into a record; padding fills what stays free. For documents
            shorter than a record, such as poems: what follows a cut is learned without what it depends on.
        progress: called with characters done, of how many, and the tokens a second.

    Raises:
        InputError: unreadable, empty or too little input; ``out`` exists; a worker died; the disk is full.
    """
    options = _Options(record_length, column, pad_last, shards, whole_documents)
    how = how or Reading(text_format, documents)
    check_destination(out)
    started = time.monotonic()
    corpus = Corpus(inputs, how, progress)
    count = _workers(workers, corpus, tokenizer)
    try:
        with whole_folder(out) as folder:
            tokenizer.save(folder / TOKENIZER_FOLDER)
            writer, counts, unknown = _write_records(corpus, folder, tokenizer, options, count, progress)
            corpus.check_unchanged()
            writer.write_checksums(folder / CHECKSUMS)
            write_json_atomic(folder / METADATA, _metadata(corpus, writer, tokenizer, options, counts, unknown))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        full = " (the disk is full: make room or choose another place)" if error.errno in FULL else ""
        raise InputError(f"{error.filename or out}: {error.strerror}{full}; nothing was kept") from None
    return PreparedData(
        str(out),
        **counts,
        record_length=record_length,
        seconds=time.monotonic() - started,
        unknown_characters=unknown,
        left_out=dict(corpus.report.left_out),
        notes=(*corpus.notes(), *corpus.report.lines()),
    )


def _workers(workers: int | None, corpus: Corpus, tokenizer: Tokenizer) -> int:
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= workers <= 1024:
        raise InputError(f"workers={workers} must be between 1 and 1024")
    return min(workers, max(1, round(corpus.characters / tokenizer.speed / WORKER_SECONDS)))


def _write_records(
    corpus: Corpus, folder: Path, tokenizer: Tokenizer, options: _Options, workers: int, progress: Progress
) -> tuple[RecordWriter, dict[str, int], dict[str, int]]:
    """Encode, pack and write everything; returns the closed writer, the counts of ``PreparedData``, and the commonest
    unknown characters."""
    total = corpus.characters
    packer = (
        WholeDocumentPacker(options.record_length, tokenizer.pad_id, tokenizer.eod_id)
        if options.whole_documents
        else Packer(options.record_length, tokenizer.pad_id)
    )
    shards = options.shards_for(total)  # a character gives about a token, or less
    writer = RecordWriter(folder, options.record_length, options.column, shards, 4 * total)
    counts = {"documents": 0, "characters": 0, "tokens": 0, "unknown_tokens": 0}
    letters: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    documents = _counted(corpus, letters if tokenizer.unknown_ids else None)
    for encoded in encode_all(documents, tokenizer, folder / TOKENIZER_FOLDER, workers):
        writer.write(packer.add(encoded.tokens))
        counts["documents"] += encoded.documents
        counts["characters"] += encoded.characters
        counts["tokens"] += len(encoded.tokens)
        counts["unknown_tokens"] += sum(int((encoded.tokens == index).sum()) for index in tokenizer.unknown_ids)
        rate = counts["tokens"] / max(1e-9, time.monotonic() - started)
        progress(min(total, corpus.read), total, f"{rate:,.0f} tokens/s")
    if not counts["documents"]:
        why = "; ".join(corpus.report.lines())
        raise InputError("no document in the input: " + (why or ", ".join(str(one.path) for one in corpus.sources[:3])))
    writer.write(packer.finish(options.pad_last))
    if counts["tokens"] + packer.padding < options.record_length:
        raise InputError(
            f"the text gives only {counts['tokens']} tokens, less than one record of "
            f"{options.record_length}: give more text, shorter records, or fill the last one (pad_last)"
        )
    writer.close()
    progress(total, total, f"{counts['tokens']:,} tokens")
    counts |= {"records": writer.records, "leftover_tokens": packer.leftover, "padding_tokens": packer.padding}
    return writer, counts, _unknown(tokenizer, letters) if counts["unknown_tokens"] else {}


def _counted(corpus: Corpus, letters: collections.Counter[str] | None) -> Iterator[str]:
    for document in corpus.documents():
        if letters is not None:
            letters.update(document)
        yield document


def _unknown(tokenizer: Tokenizer, letters: collections.Counter[str]) -> dict[str, int]:
    """The commonest characters that the vocabulary lacks."""
    unknown = set(tokenizer.unknown_ids)
    lacking = (
        (letter, count) for letter, count in letters.most_common() if unknown.intersection(tokenizer.encode(letter))
    )
    return dict(itertools.islice(lacking, NAMED))


def _metadata(
    corpus: Corpus,
    writer: RecordWriter,
    tokenizer: Tokenizer,
    options: _Options,
    counts: dict[str, int],
    unknown: dict[str, int],
) -> dict[str, Any]:
    files = [path for shard in writer.paths for path in (shard, shard.with_name(shard.name + ".db"))]
    return {
        "format": FORMAT,
        "version": VERSION,
        "column": options.column,
        "record_length": options.record_length,
        "whole_documents": options.whole_documents,
        **counts,
        "eod_id": tokenizer.eod_id,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.describe(),
        "reading": corpus.how.to_dict(),
        "unknown_characters": unknown,
        "left_out": dict(corpus.report.left_out),
        "rows": writer.rows,
        "files": [_described(path) for path in files],
        "checksums": _described(writer.folder / CHECKSUMS),
        "inputs": [
            {"name": str(source.path), "size": source.size, "encoding": source.encoding, "sha256": source.sha256}
            for source in corpus.sources
        ],
    }


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}
