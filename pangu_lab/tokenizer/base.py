"""The interface of every tokenizer: text ↔ ids, pieces by name, streaming, saving.

A vocabulary is a table of pieces, and each piece stands for some bytes of UTF-8 text (none, for the special
ones). Decoding joins those bytes, so a mark like ▁ ▂ ▃ can never reach the text, and a character split over
several pieces comes out whole or, in a stream, later.
"""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder, write_json_atomic

METADATA = "tokenizer.json"
FORMAT = "pangu-lab tokenizer"
UNKNOWN_TEXT = "⁇"  # what SentencePiece shows for an unknown piece


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        kind: ``pangu`` (the released vocabulary), ``sentencepiece`` or ``gpt2``.
        vocab_size: number of pieces; ids are 0 to vocab_size − 1.
        eod_id: the piece that ends a document.
        pad_id: the piece that fills a record.
        unknown_ids: the piece that stands for characters which the vocabulary lacks, if there is one.
        fingerprint: sha256 of everything that decides which ids a text gives; equal on every machine. The
            choice of eod and pad is not in it: that is compared by id.
        speed: characters encoded per second on one core, roughly; for planning.
    """

    kind: str
    speed = 1_000_000

    def __init__(
        self,
        pieces: list[str],
        piece_bytes: list[bytes],
        eod: str | int,
        pad: str | int,
        aliases: dict[str, str] | None = None,
    ) -> None:
        """``piece_bytes``: what each piece adds to a text. ``aliases``: other names for special pieces."""
        self._pieces = pieces
        self._ids = {piece: index for index, piece in enumerate(pieces)}
        self._bytes = piece_bytes
        self._aliases = aliases or {}
        self.vocab_size = len(pieces)
        self.eod_id = self._special("eod", eod)
        self.pad_id = self._special("pad", pad)
        unknown = (i for i, text in enumerate(piece_bytes) if text == UNKNOWN_TEXT.encode())
        self.unknown_ids = tuple(i for i in unknown if i not in (self.eod_id, self.pad_id))
        self._silent = {self.eod_id, self.pad_id}  # chosen by the caller, so perhaps ordinary pieces

    # ------------------------------------------------------------------------------------------ text and ids

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; no end of document is added."""

    @abstractmethod
    def words(self, text: str) -> list[str]:
        """The words that ``text`` is cut into before its pieces are looked up; joined they are ``text``."""

    @abstractmethod
    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word by itself."""

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """Ids of several texts one after the other, each followed by the end of document; (ids,) int32."""
        ids: list[int] = []
        for document in documents:
            ids += self.encode(document)
            ids.append(self.eod_id)
        return np.array(ids, np.int32)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ``ids``. Special pieces (padding, end of document …) give nothing, or with ``special`` their names.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        return b"".join(self._text_bytes(index, special) for index in ids).decode("utf-8", "replace")

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time, for text that is shown while it is generated."""
        return TextStream(self)

    def text_bytes(self, index: int) -> bytes:
        """What this piece adds to a text, in UTF-8, possibly part of a character; empty for special pieces."""
        return self._text_bytes(index)

    def _text_bytes(self, index: int, special: bool = False) -> bytes:
        if not 0 <= index < self.vocab_size:
            raise InputError(f"id {index} is outside the vocabulary: this tokenizer has 0 to {self.vocab_size - 1}")
        text = b"" if index in self._silent else self._bytes[index]
        return text or (self._pieces[index].encode() if special and self.is_special(index) else b"")

    # ------------------------------------------------------------------------------------------------ pieces

    def piece(self, index: int) -> str:
        """The piece with this id, as the vocabulary spells it (▁ begins a word, ▂ is a space, ▃ a line end)."""
        if not 0 <= index < self.vocab_size:
            raise InputError(f"id {index} is outside the vocabulary: this tokenizer has 0 to {self.vocab_size - 1}")
        return self._pieces[index]

    def id_of(self, piece: str) -> int | None:
        """The id of a piece; None when the vocabulary has no such piece."""
        return self._ids.get(piece)

    @abstractmethod
    def is_special(self, index: int) -> bool:
        """Whether this id is a special piece, which stands for no text."""

    def resolve(self, name_or_id: str | int) -> int:
        """The id of a piece given by name or id.

        Raises:
            InputError: there is no such piece, or the id is outside the vocabulary.
        """
        if isinstance(name_or_id, str):
            index = self._ids.get(name_or_id, self._ids.get(self._aliases.get(name_or_id, "")))
            if index is None and not name_or_id.isdecimal():
                special = [self._pieces[i] for i in range(min(16, self.vocab_size)) if self.is_special(i)]
                hint = f": its special pieces are {' '.join(special)}" if special else ""
                raise InputError(f"the vocabulary has no piece '{name_or_id}'{hint}")
            name_or_id = int(name_or_id) if index is None else index
        if isinstance(name_or_id, bool) or not 0 <= name_or_id < self.vocab_size:
            raise InputError(f"id {name_or_id} is outside the vocabulary: give 0 to {self.vocab_size - 1}")
        return int(name_or_id)

    def _special(self, role: str, name_or_id: str | int) -> int:
        try:
            return self.resolve(name_or_id)
        except InputError as error:
            raise InputError(f"tokenizer.{role}: {error}") from None

    # ------------------------------------------------------------------------------------- identity and saving

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """See the class."""

    @abstractmethod
    def _files(self) -> dict[str, bytes]:
        """File name → content, of everything that is needed to make this tokenizer again."""

    def describe(self) -> dict[str, Any]:
        """Plain values for a data set's or bundle's metadata."""
        return {
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "eod_id": self.eod_id,
            "pad_id": self.pad_id,
        }

    def save(self, folder: str | Path, notes: dict[str, Any] | None = None) -> None:
        """Write a folder from which ``load_tokenizer`` makes this tokenizer on any machine.

        Args:
            folder: must not exist yet.
            notes: plain values to keep with it, such as how it was trained.

        Raises:
            InputError: the folder exists.
        """
        with whole_folder(folder) as temporary:
            files = self._files()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            metadata = {
                "format": FORMAT,
                "version": 1,
                **self.describe(),
                "eod": self.piece(self.eod_id),
                "pad": self.piece(self.pad_id),
                "files": hashes,
                **(notes or {}),
            }
            write_json_atomic(temporary / METADATA, metadata)


class TextStream:
    """Text from ids one at a time. What was returned is final, and a character is never split."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The text that this id completes: often one word; empty while a character is unfinished."""
        return self._decoder.decode(self._tokenizer.text_bytes(index))

    def flush(self) -> str:
        """The rest at the end; bytes of an unfinished character become U+FFFD, as in ``decode``."""
        return self._decoder.decode(b"", final=True)
