"""PanGu's kind of tokenizer: jieba's words, a SentencePiece vocabulary, and marks for spaces and line ends.

A text becomes words joined by spaces; its own spaces and line ends become the pieces ▂ and ▃. SentencePiece puts ▁
before each word. In a vocabulary where no piece has ▁ anywhere but at its beginning (the released one and all trained
here), no piece crosses words: the ids of a text are those of its words, which are cached, and SentencePiece is called
once for each new word. The released vocabulary normalises (NFKC): "，" is decoded as ",".

▁, ▂ and ▃ in a text are replaced by ▄, which is decoded as ▄ or as unknown: as marks they would be decoded as nothing,
a space and a line end.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import lexicon, native, segment
from pangu_lab.tokenizer.base import UNKNOWN_TEXT, Tokenizer

MODEL_FILE = "vocab.model"
RELEASED_SHA256 = "18857e86783e50cfcaa0bc3c043fb4e9b5f240b885d2870ea593ee69b44f7a3a"
SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>")
WORD_MARK, SPACE_MARK, LINE_MARK = "\u2581", "\u2582", "\u2583"
DOCUMENT_MARK = "\0"  # ends each document when several are encoded at once; jieba makes it a word of its own
MARKS = str.maketrans(" \n", SPACE_MARK + LINE_MARK)
NO_MARKS = str.maketrans(dict.fromkeys(WORD_MARK + SPACE_MARK + LINE_MARK, "▄"))
REMEMBERED = 300_000  # words whose ids are kept, at most: about 60 MB


class _WordIds(dict):
    """Word → its ids, filled at the first look-up: the portable form of ``native.WordIds``."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= REMEMBERED:
            self.clear()
        ids = self[word] = self._tokenizer._word_ids(word)
        return ids


class SentencePieceTokenizer(Tokenizer):
    """jieba + SentencePiece. ``model`` is the content of a ``.model`` file."""

    def __init__(
        self, model: bytes, eod: str | int = "<eot>", pad: str | int = "<pad>", name: str = MODEL_FILE
    ) -> None:
        self.model = model
        self.model_sha256 = hashlib.sha256(model).hexdigest()
        self.kind = "pangu" if self.model_sha256 == RELEASED_SHA256 else "sentencepiece"
        self._processor = _processor(model, name)
        try:
            pieces = [self._processor.id_to_piece(index) for index in range(self._processor.get_piece_size())]
            piece_bytes = self._piece_bytes(pieces)
        except ValueError:  # a piece that is not UTF-8, or a byte piece that has no number
            raise InputError(f"{name}: a damaged SentencePiece vocabulary: take a fresh copy of it") from None
        super().__init__(pieces, piece_bytes, eod, pad)
        # No piece reaches across words, so words can be looked up one by one.
        self.word_local = not any(WORD_MARK in piece[1:] for piece in pieces)
        engine = native.segmenter() if self.word_local else None
        self._native = native.WordIds(engine, self._new_words) if engine else None
        self._ids_of = _WordIds(self)
        self.speed = 4_000_000 if self._native else 500_000

    def _piece_bytes(self, pieces: list[str]) -> list[bytes]:
        return [self._bytes_of(index, piece) for index, piece in enumerate(pieces)]

    def _bytes_of(self, index: int, piece: str) -> bytes:
        if self._processor.is_unknown(index):
            return UNKNOWN_TEXT.encode()
        if self._processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        if self.is_special(index):
            return b""
        text = piece.replace(WORD_MARK, "").replace(SPACE_MARK, " ").replace(LINE_MARK, "\n")
        return text.encode("utf-8")

    def is_special(self, index: int) -> bool:
        piece = self._processor.id_to_piece(index)
        named = index < len(SPECIAL_PIECES) and piece in SPECIAL_PIECES and piece not in (SPACE_MARK, LINE_MARK)
        return self._processor.is_control(index) or (named and not self._processor.is_unknown(index))

    @property
    def longest_piece(self) -> int:
        """Characters of the longest piece that stands for text."""
        return max(
            len(self._pieces[index])
            for index in range(self.vocab_size)
            if not (self.is_special(index) or self._processor.is_byte(index) or self._processor.is_unknown(index))
        )

    def words(self, text: str) -> list[str]:
        return segment.words(text)

    def encode(self, text: str) -> list[int]:
        text = encodable(text)
        if not self.word_local:
            return self._processor.encode(" ".join(word.translate(MARKS) for word in segment.words(text)))
        if self._native and DOCUMENT_MARK not in text:
            return self._native.ids(text).tolist()
        return list(itertools.chain.from_iterable(map(self._ids_of.__getitem__, segment.words(text))))

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        text = DOCUMENT_MARK.join([*documents, ""])
        if self._native and text.count(DOCUMENT_MARK) == len(documents):
            return self._native.ids(encodable(text))
        return super().encode_documents(documents)

    def _new_words(self, words: list[str]) -> list[list[int]]:
        ids = self._processor.encode([word.translate(MARKS) for word in words], num_threads=1)
        if DOCUMENT_MARK in words:
            ids[words.index(DOCUMENT_MARK)] = [self.eod_id]
        return ids

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        return [list(self._word_ids(encodable(word))) for word in words]

    def _word_ids(self, word: str) -> list[int]:
        return self._processor.encode(word.translate(MARKS))

    @functools.cached_property
    def fingerprint(self) -> str:
        content = f"jieba {lexicon.fingerprint()} sentencepiece {self.model_sha256}"
        return hashlib.sha256(content.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "vocabulary_sha256": self.model_sha256}

    def _files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.model}


def encodable(text: str) -> str:
    """The text with ▄ for the vocabulary's marks, and U+FFFD for lone surrogates, which come from broken JSON."""
    if text.isascii():
        return text
    if WORD_MARK in text or SPACE_MARK in text or LINE_MARK in text:
        text = text.translate(NO_MARKS)
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _processor(model: bytes, name: str) -> Any:
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        if processor.get_piece_size() > 0:
            return processor
    except (RuntimeError, ValueError, TypeError):
        pass
    raise InputError(f"{name}: not a SentencePiece vocabulary (or a damaged one)")
