"""A vocabulary of single characters: one token each, nothing is cut into words, nothing is put between.

It is stored as a SentencePiece model like the others, and known by what it holds: no piece is longer than a character.
For regulated verse it says what matters: a line of five characters has five tokens. Encoding is a look-up in a table of
all of Unicode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from pangu_lab.tokenizer.sentence_piece import DOCUMENT_MARK, LINE_MARK, SPACE_MARK, SentencePieceTokenizer, encodable

CODES = 0x110000  # characters of Unicode
_BYTES = -1  # in the table: a character that is spelled in byte pieces
_END = -2  # … and the end of a document


class CharacterTokenizer(SentencePieceTokenizer):
    """``SentencePieceTokenizer`` of a vocabulary without longer pieces."""

    speed = 20_000_000

    def words(self, text: str) -> list[str]:
        return list(text)

    def encode(self, text: str) -> list[int]:
        return self._encoded(text.replace(DOCUMENT_MARK, "\ufffd")).tolist()

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        inside = [document.replace(DOCUMENT_MARK, "\ufffd") for document in documents]
        return self._encoded("".join(document + DOCUMENT_MARK for document in inside))

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        return [self.encode(word) for word in words]

    def _encoded(self, text: str) -> np.ndarray:
        """Ids, (tokens,) int32; a zero character ends a document."""
        text = encodable(text)
        ids = self._table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        ids[ids == _END] = self.eod_id
        spelled = np.flatnonzero(ids == _BYTES)
        if not len(spelled):
            return ids
        pieces, start = [], 0
        for place in spelled:
            pieces += [ids[start:place], self._byte_ids[np.frombuffer(text[place].encode(), np.uint8)]]
            start = place + 1
        return np.concatenate([*pieces, ids[start:]])

    @cached_property
    def _byte_ids(self) -> np.ndarray:
        """The id of each byte, (256,) int32; empty where the vocabulary has no byte pieces."""
        ids = [self.id_of(f"<0x{byte:02X}>") for byte in range(256)]
        return np.array([] if None in ids else ids, np.int32)

    @cached_property
    def _table(self) -> np.ndarray:
        """The id of every character, (CODES,) int32."""
        table = np.full(CODES, _BYTES if len(self._byte_ids) else (self.unknown_ids or (self.pad_id,))[0], np.int32)
        for index, piece in enumerate(self._pieces):
            if len(piece) == 1:
                table[ord(piece)] = index
        for mark, character in ((SPACE_MARK, " "), (LINE_MARK, "\n")):
            table[ord(character)] = table[ord(mark)]
        table[ord(DOCUMENT_MARK)] = _END
        return table

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"characters sentencepiece {self.model_sha256}".encode()).hexdigest()


def sentence_piece_tokenizer(model: bytes, *choices: str | int, **named: str) -> SentencePieceTokenizer:
    """The tokenizer of a ``.model`` file's content: by characters where no piece is longer.

    Arguments as of ``SentencePieceTokenizer``.
    """
    made = SentencePieceTokenizer(model, *choices, **named)
    if made.longest_piece > 1:
        return made
    return CharacterTokenizer(model, *choices, **named)
