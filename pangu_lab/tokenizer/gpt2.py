"""GPT-2's tokenizer: byte-level BPE from local ``vocab.json`` and ``merges.txt``, through ``tokenizers``.

Every byte has a printable stand-in (a space is Ġ), so any text can be encoded and is decoded exactly. GPT-2 has one
special piece, ``<|endoftext|>``; it serves as PanGu's ``<eot>``, ``<eod>`` and ``<pad>``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.reading import parse_json
from pangu_lab.tokenizer.base import Tokenizer

VOCABULARY, MERGES = "vocab.json", "merges.txt"
END = "<|endoftext|>"


class GPT2Tokenizer(Tokenizer):
    """Byte-level BPE. ``vocabulary`` and ``merges`` are the contents of the two files."""

    kind = "gpt2"

    def __init__(
        self,
        vocabulary: bytes,
        merges: bytes,
        eod: str | int = END,
        pad: str | int = END,
        name: str = "GPT-2 vocabulary",
    ) -> None:
        self._content = {VOCABULARY: vocabulary, MERGES: merges}
        ids = _read_vocabulary(vocabulary, name)
        self._engine = _engine(ids, _read_merges(merges, name), name)
        pieces = sorted(ids, key=ids.__getitem__)
        stand_in = byte_stand_ins()
        piece_bytes = [b"" if piece == END else bytes(stand_in[c] for c in piece if c in stand_in) for piece in pieces]
        super().__init__(pieces, piece_bytes, eod, pad, aliases=dict.fromkeys(("<eot>", "<eod>", "<pad>"), END))

    def is_special(self, index: int) -> bool:
        return self._pieces[index] == END

    def words(self, text: str) -> list[str]:
        spans = self._engine.pre_tokenizer.pre_tokenize_str(text)
        return [text[begin:end] for _, (begin, end) in spans]

    def encode(self, text: str) -> list[int]:
        return self._engine.encode(_valid(text)).ids

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        return [self._engine.encode(_valid(word)).ids for word in words]

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"gpt2")
        for name in (VOCABULARY, MERGES):
            digest.update(hashlib.sha256(self._content[name]).digest())
        return digest.hexdigest()

    def _files(self) -> dict[str, bytes]:
        return self._content


def byte_stand_ins() -> dict[str, int]:
    """Printable character → the byte it stands for: itself if printable in Latin-1, else a character from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _read_vocabulary(content: bytes, name: str) -> dict[str, int]:
    where = str(Path(name) / VOCABULARY)
    ids = parse_json(content, where)
    valid = isinstance(ids, dict) and all(type(index) is int for index in ids.values())
    if not valid or not ids or sorted(ids.values()) != list(range(len(ids))):
        raise InputError(f"{where}: must be JSON of pieces with the ids 0, 1, 2 … each once")
    return ids


def _read_merges(content: bytes, name: str) -> list[tuple[str, str]]:
    merges = []
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{Path(name) / MERGES}: not readable as UTF-8") from None
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if line.startswith("#version") or pair == [""]:
            continue
        if len(pair) != 2:
            raise InputError(f"{Path(name) / MERGES}: line {number} must be two pieces with a space between")
        merges.append((pair[0], pair[1]))
    return merges


def _engine(ids: dict[str, int], merges: list[tuple[str, str]], name: str) -> Any:
    import tokenizers

    try:
        engine = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{name}: {MERGES} does not fit {VOCABULARY} ({str(error)[:200]})") from None
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def _valid(text: str) -> str:
    """Halves of surrogate pairs become U+FFFD; the library refuses them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
