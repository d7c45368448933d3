"""A tokenizer of characters, a network of lookup tables, and the real network with small random weights."""

from __future__ import annotations

import codecs

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.generate.runner import Runner

LETTERS = "abcdefghijklmnopqrstuvwxyz。，!好的春天不行 \n"


class CharacterTokenizer:
    """Id 0 ends a document, 1 is unknown, then one piece for each letter, then pieces of several letters.

    ``encode`` uses single letters only; the longer pieces are for the model to write. The last two pieces are the
    halves of "é".
    """

    def __init__(self, longer: tuple[str, ...] = ("ab", "春天", "cde", "。好")) -> None:
        halves = list("é".encode())
        self.pieces = [
            b"",
            b"",
            *(letter.encode() for letter in LETTERS),
            *(piece.encode() for piece in longer),
            *(bytes([half]) for half in halves),
        ]
        self.vocab_size, self.eod_id, self.pad_id = len(self.pieces), 0, 1
        self.encoded: list[str] = []

    def id_of(self, piece: str) -> int:
        return self.pieces.index(piece.encode())

    def piece(self, index: int) -> str:
        return self.pieces[index].decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(letter.encode()) if letter.encode() in self.pieces else 1 for letter in text]

    def decode(self, ids) -> str:
        return b"".join(self.pieces[index] for index in ids).decode("utf-8", "replace")

    def text_bytes(self, index: int) -> bytes:
        return self.pieces[index]

    def stream(self):
        return CharacterStream(self)


class CharacterStream:
    def __init__(self, tokenizer: CharacterTokenizer) -> None:
        self.tokenizer, self.decoder = tokenizer, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self.decoder.decode(self.tokenizer.text_bytes(index))

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


class TableRunner(Runner):
    """A 'network' whose logits are a function of the tokens so far; keeps its cache of tokens by place, as the
    real one does, so wrong slots or positions show."""

    def __init__(self, logits_of, vocab_size: int, max_length: int = 32, slots: int = 256) -> None:
        super().__init__(None, vocab_size, max_length, slots)
        self.logits_of, self.calls = logits_of, []
        self.cache = np.full(slots, -1)

    def run(self, ids, positions, write, read, rows=None):
        batch, n = ids.shape
        self.calls.append((batch, n))
        assert len(set(write.reshape(-1).tolist())) == write.size
        self.cache[write.reshape(-1)] = ids.reshape(-1)
        rows = np.arange(n - 1, batch * n, n) if rows is None else rows
        made = []
        for row in rows:
            sequence, place = divmod(int(row), n)
            length = int(positions[sequence, place]) + 1
            made.append(self.logits_of(tuple(self.cache[read[sequence, :length]])))
        return np.array(made, np.float32)


def random_table(vocab_size: int, seed: int = 0, scale: float = 2.0):
    """Logits that depend on the whole text, the same for the same text."""

    def logits_of(text: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *text])
        return rng.normal(0.0, scale, vocab_size)

    return logits_of


def script(vocab_size: int, ids: list[int], prompt_length: int):
    """Logits that make greedy search write ``ids`` after a prompt of that length, then end the document."""

    def logits_of(text: tuple[int, ...]) -> np.ndarray:
        logits = np.zeros(vocab_size)
        step = len(text) - prompt_length
        logits[ids[step] if step < len(ids) else 0] = 10.0
        return logits

    return logits_of


def small_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(vocab_size=vocab_size, num_positions=32, hidden_size=32, num_layers=3, num_heads=4)


def small_lm():
    """A model of random weights that writes as a table says and can be looked into; nothing is compiled."""
    from pangu_lab import PanguLM

    tokenizer = CharacterTokenizer()
    config = small_config(tokenizer.vocab_size)
    runner = TableRunner(random_table(config.vocab_size), config.vocab_size)
    return PanguLM(config, tokenizer, name="small", weights=random_weights(config), runner=runner)


def random_weights(config: ModelConfig, seed: int = 0, std: float = 0.25) -> dict[str, np.ndarray]:
    """Random weights large enough that the likeliest token depends on the text."""
    from pangu_lab.model.parameters import parameter_specs

    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(1.0 if name.endswith("gamma") else 0.0, std, spec.shape).astype(np.float32)
        for name, spec in parameter_specs(config).items()
    }
