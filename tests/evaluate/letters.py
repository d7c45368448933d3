"""A tokenizer, a model and real sentences small enough for tests that run in seconds."""

from __future__ import annotations

import zlib

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.model.parameters import initial_weights
from pangu_lab.presets import preset
from pangu_lab.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]


class LetterTokenizer(Tokenizer):
    """Two characters a word, where the first is even in code, and most words one piece: so pieces straddle.

    Where a boundary falls changes how the text after it is cut, as with a real segmenter. Pieces are hashes, as
    many as the debug model knows; what they decode to is the text of the latest word that had the id.
    """

    kind = "letters"

    def __init__(self, vocab_size: int = 512) -> None:
        self.texts: dict[int, str] = {}
        pieces = SPECIAL + [f"w{i}" for i in range(vocab_size - len(SPECIAL))]
        super().__init__(pieces, [b""] * vocab_size, "<eot>", "<pad>")

    def words(self, text: str) -> list[str]:
        found, place = [], 0
        while place < len(text):
            size = 2 if ord(text[place]) % 2 == 0 else 1
            found.append(text[place : place + size])
            place += size
        return found

    def encode_words(self, words):
        return [self._pieces_of(word) for word in words]

    def _pieces_of(self, word: str) -> list[int]:
        parts = [word] if sum(map(ord, word)) % 3 else list(word)  # every third word is two pieces
        ids = []
        for part in parts:
            index = len(SPECIAL) + zlib.crc32(part.encode()) % (self.vocab_size - len(SPECIAL))
            self.texts[index] = part
            ids.append(index)
        return ids

    def encode(self, text: str) -> list[int]:
        return [index for ids in self.encode_words(self.words(text)) for index in ids]

    def decode(self, ids, special: bool = False) -> str:
        return "".join(self.texts.get(index, "") for index in ids)

    def is_special(self, index: int) -> bool:
        return index < len(SPECIAL)

    @property
    def fingerprint(self) -> str:
        return "letters"

    def _files(self):
        return {}


def debug_model(seed: int = 7) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The debug preset with weights large enough that tokens differ in probability."""
    config = preset("debug").replace(**{"model.dropout_rate": 0.0}).model
    weights = initial_weights(config, seed)
    return config, {name: value * 4 if value.ndim == 2 else value for name, value in weights.items()}


def sample_lines(limit: int = 60) -> list[str]:
    """Real sentences: the first lines of the held-out sample."""
    from pangu_lab.data import sample_files

    lines = [line for file in sample_files("heldout") for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if len(line) > 8][:limit]
