"""A SentencePiece vocabulary from the user's own text, with PanGu's special pieces and ids.

The text is split into the same words as at encoding, so the pieces are learnt on what they will encode. Unlike
the released vocabulary nothing is normalised: "，" stays "，", and decoding gives back the text exactly
(characters too rare for a small vocabulary become <unk>).
"""

from __future__ import annotations

import collections
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_lab.corpus import Corpus, Inputs, Reading
from pangu_lab.errors import InputError
from pangu_lab.files import check_destination
from pangu_lab.progress import Progress, silent
from pangu_lab.tokenizer import segment
from pangu_lab.tokenizer.base import Tokenizer
from pangu_lab.tokenizer.characters import sentence_piece_tokenizer
from pangu_lab.tokenizer.sentence_piece import MARKS, SPECIAL_PIECES, WORD_MARK, encodable

KINDS = ("bpe", "unigram", "char")
CHARACTER_SHARE = 0.75  # of the vocabulary at most; the rest is for pieces of several characters
THREADS = 2  # fixed: the unigram trainer's sums, and so its pieces, depend on it
EVERY = 200_000  # characters between two calls of progress
LEARNT_FROM = 60_000_000  # characters at most: SentencePiece holds in memory what it learns from


def train_vocabulary(
    inputs: Inputs,
    out: str | Path,
    vocab_size: int,
    kind: str = "bpe",
    progress: Progress = silent,
    byte_fallback: bool = False,
    how: Reading = Reading(),
) -> Tokenizer:
    """Train a vocabulary and write it to a folder.

    Args:
        inputs: files, glob patterns, folders, archives.
        out: the folder to make; must not exist yet.
        vocab_size: number of pieces, the ten special ones among them.
        kind: ``bpe`` (as PanGu's), ``unigram``, or ``char``: the commonest single characters, as many as there are up to
            ``vocab_size``, without any cutting into words.
        progress: called with characters read, of how many, and what is being done.
        byte_fallback: spend 256 pieces on bytes, so that characters the vocabulary lacks survive too.
        how: how files become documents. Of more than ``LEARNT_FROM`` characters every n-th document is used.

    Returns:
        The tokenizer, loaded.

    Raises:
        InputError: unreadable or too little text for this many pieces (the largest possible is named), a size
            too small for the special pieces, or ``out`` exists.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    fixed = len(SPECIAL_PIECES) + 256 * byte_fallback
    if vocab_size < fixed + 8:
        raise InputError(
            f"a vocabulary of {vocab_size} is too small: {fixed} pieces are special, give {fixed + 8} or more"
        )
    check_destination(out)
    corpus = Corpus(inputs, how, progress)
    characters = _characters(corpus)
    if not characters:
        raise InputError("the input holds no text to learn from")
    if kind == "char":
        kept = characters[: vocab_size - fixed]
        rare = dict.fromkeys(map(ord, characters[len(kept) :]))
        lines = (line.translate(MARKS).translate(rare) for line in _lines(corpus, progress))
        model = _train(lines, fixed + len(kept), kind, byte_fallback)
    else:
        model = _train_pieces(corpus, characters, vocab_size, fixed, kind, byte_fallback, progress)
    progress(corpus.characters, corpus.characters, "saving")
    tokenizer = sentence_piece_tokenizer(model)
    inputs_note = [{"name": source.path.name, "sha256": source.sha256} for source in corpus.sources]
    tokenizer.save(
        out,
        {"training": {"kind": kind, "vocab_size": vocab_size, "byte_fallback": byte_fallback, "inputs": inputs_note}},
    )
    return tokenizer


def _train_pieces(
    corpus: Corpus,
    characters: list[str],
    vocab_size: int,
    fixed: int,
    kind: str,
    byte_fallback: bool,
    progress: Progress,
) -> bytes:
    room = vocab_size - fixed - 1  # beside the special pieces and ▁
    try:
        rare = characters[int(room * CHARACTER_SHARE) :]
        return _train(_words(_lines(corpus, progress), rare), vocab_size, kind, byte_fallback)
    except InputError:  # too little text for so many longer pieces: then more characters
        return _train(_words(_lines(corpus, progress), characters[room:]), vocab_size, kind, byte_fallback)


def _characters(corpus: Corpus) -> list[str]:
    """The characters of the text, the most frequent first; of equally frequent ones those first in Unicode."""
    counts: collections.Counter[str] = collections.Counter()
    for document in corpus.documents():
        counts.update(document)
    for mark in (" ", "\n", WORD_MARK, *SPECIAL_PIECES):
        counts.pop(mark, None)  # they have pieces of their own
    return [character for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _lines(corpus: Corpus, progress: Progress) -> Iterator[str]:
    """The lines to learn from. Of a large corpus, those of every n-th document."""
    every, shown = max(1, -(-corpus.characters // LEARNT_FROM)), 0
    for number, document in enumerate(corpus.documents()):
        if number % every == 0:
            yield from map(encodable, document.split("\n"))
        if corpus.read - shown >= EVERY:
            progress(corpus.read, corpus.characters, "reading")
            shown = corpus.read
    progress(corpus.read, corpus.characters, "training")


def _words(lines: Iterator[str], rare: list[str]) -> Iterator[str]:
    """Lines as SentencePiece shall see them: words joined by spaces, and gaps where rare characters were."""
    gaps = dict.fromkeys(map(ord, rare), " ")
    for line in lines:
        yield " ".join(word.translate(MARKS) for word in segment.words(line + "\n")).translate(gaps)


def _train(sentences: Iterator[str], vocab_size: int, kind: str, byte_fallback: bool) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    settings: dict[str, Any] = dict(
        model_type=kind,
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        user_defined_symbols=list(SPECIAL_PIECES[3:]),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        normalization_rule_name="identity",
        character_coverage=1.0,
        max_sentence_length=1 << 30,
        num_threads=THREADS,
        shuffle_input_sentence=False,
        minloglevel=2,
        add_dummy_prefix=kind != "char",
    )
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **settings)
    except RuntimeError as error:
        raise _explained(str(error), vocab_size) from None
    return model.getvalue()


def _explained(message: str, vocab_size: int) -> Exception:
    """SentencePiece's complaint in the user's words."""
    largest = re.search(r"set it to a value <= (\d+)", message)
    if largest:
        return InputError(
            f"the text is too short for a vocabulary of {vocab_size}: it supports at most "
            f"{largest.group(1)} pieces; ask for fewer or give more text"
        )
    return RuntimeError(f"SentencePiece: {message}")
