"""Pictures of data: document lengths, a text under vocabularies of different sizes, and one packed record.

The record's picture is drawn from the arrays that training reads, and its mask from their positions, as the
network makes its own (a test checks that the two are equal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_lab.corpus import Corpus, Inputs, Reading
from pangu_lab.data.dataset import Batch
from pangu_lab.errors import InputError
from pangu_lab.plotting import font_families, new_figure, save_png
from pangu_lab.tokenizer import Tokenizer

COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2")
WRITTEN = 40  # tokens of a record that are written out; more would not be readable


@dataclass(frozen=True)
class Compression:
    """What a tokenizer makes of a text. ``unknown`` counts tokens that stand for characters it has no piece for."""

    vocabulary: int
    characters: int
    tokens: int
    unknown: int

    @property
    def characters_a_token(self) -> float:
        return self.characters / self.tokens

    @property
    def unknown_share(self) -> float:
        return self.unknown / self.tokens


def compression(tokenizer: Tokenizer, inputs: Inputs, documents: str = "block") -> Compression:
    """Cut the documents of ``inputs`` and count.

    Raises:
        InputError: unreadable input, or none at all.
    """
    texts = _texts(inputs, documents)
    ids = [index for text in texts for index in tokenizer.encode(text)]
    return Compression(tokenizer.vocab_size, sum(map(len, texts)), len(ids), ids.count(tokenizer.id_of("<unk>")))


def document_lengths(tokenizer: Tokenizer, inputs: Inputs, documents: str = "block") -> np.ndarray:
    """Tokens of each document of ``inputs``, (documents,) int64, without its end-of-document token.

    Raises:
        InputError: unreadable input, or none at all.
    """
    return np.array([len(tokenizer.encode(text)) for text in _texts(inputs, documents)], np.int64)


def _texts(inputs: Inputs, documents: str) -> list[str]:
    found = list(Corpus(inputs, Reading(documents=documents)).documents())
    if not found:
        raise InputError("no document in the input")
    return found


def visible(positions: np.ndarray) -> np.ndarray:
    """Which keys each query may look at: (rows, s) positions → (rows, s, s) bool, [row, query, key]."""
    index = np.arange(positions.shape[1])
    query, key = index[None, :, None], index[None, None, :]
    return (key <= query) & (key >= query - positions[:, :, None])


def plot_lengths(lengths: Mapping[str, np.ndarray], png: Path | str, record_length: int | None = None) -> Path:
    """A histogram of document lengths in tokens, a colour an entry, with the length of a record, to a PNG file."""
    figure = new_figure(7, 2.8)
    axes = figure.subplots()
    edges = np.linspace(0, max(int(values.max()) for values in lengths.values()), 31)
    for color, (name, values) in zip(COLORS, lengths.items()):
        axes.hist(values, edges, color=color, alpha=0.55, label=f"{name}: median {np.median(values):.0f}")
    if record_length:
        axes.axvline(record_length, color="#444", linestyle="--", linewidth=1, label=f"one record: {record_length}")
    axes.set(xlabel="tokens in a document", ylabel="documents")
    axes.legend(loc="upper right")
    return save_png(figure, png, 100)


def plot_compression(found: Sequence[Compression], hidden_size: int, png: Path | str) -> Path:
    """What vocabularies cost and give, to a PNG file.

    Left: characters a token and the share of unknown tokens; right: parameters of the embedding that each vocabulary
    needs in a model of ``hidden_size``.
    """
    figure = new_figure(8, 2.9)
    gain, cost = figure.subplots(1, 2)
    names = [f"{item.vocabulary:,}" for item in found]
    gain.plot(names, [item.characters_a_token for item in found], "o-", color=COLORS[0])
    gain.set(xlabel="pieces in the vocabulary", ylim=(0, None))
    gain.set_ylabel("characters a token", color=COLORS[0])
    unknown = gain.twinx()
    unknown.bar(names, [100 * item.unknown_share for item in found], width=0.35, color=COLORS[1], alpha=0.6)
    unknown.set_ylim(0, max(1.0, 250 * max(item.unknown_share for item in found)))
    unknown.set_ylabel("unknown tokens, %", color=COLORS[1])
    bars = cost.bar(names, [item.vocabulary * hidden_size / 1e6 for item in found], width=0.5, color=COLORS[2])
    cost.bar_label(bars, fmt="%.2f", fontsize=8)
    cost.margins(y=0.1)
    cost.set(xlabel="pieces in the vocabulary", ylabel=f"million parameters, hidden {hidden_size}")
    return save_png(figure, png, 100)


def plot_record(batch: Batch, row: int, tokenizer: Tokenizer, png: Path | str) -> Path:
    """One record as training reads it, to a PNG file: positions, which labels count, and who may look at whom.

    Every document of the record has a colour. A cell of the lower picture is coloured where the token of its row
    may look at the token of its column; the first tokens are written at the axes.
    """
    positions, weights = batch.positions[row], batch.weights[row]
    length = len(positions)
    document = np.cumsum(positions == 0) - 1
    colors = [COLORS[number % len(COLORS)] for number in document]
    figure = new_figure(6.4, 7.4)
    above, below = figure.subplots(2, 1, height_ratios=[1, 4.4], sharex=True)
    above.bar(range(length), positions, width=1.0, color=colors)
    for place in np.flatnonzero(weights == 0):
        above.axvline(place, color="#222", linewidth=0.8, linestyle=":")
    above.set(ylabel="position")
    above.set_title("positions begin again with each document; dotted: this label does not count", fontsize=9)
    below.imshow(_colored(visible(batch.positions[row : row + 1])[0], document), aspect="auto", interpolation="nearest")
    below.set(xlabel="may be looked at (key)", ylabel="looks (query)")
    if length <= WRITTEN:
        names = [_written(tokenizer, index) for index in batch.inputs[row]]
        below.set_yticks(range(length), names, fontfamily=font_families(), fontsize=7)
        below.set_xticks(range(length), names, fontfamily=font_families(), fontsize=7, rotation=90)
    return save_png(figure, png, 90)


def _colored(seen: np.ndarray, document: np.ndarray) -> np.ndarray:
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(color) for color in COLORS])
    rows = palette[document % len(COLORS)]
    return np.where(seen[..., None], rows[:, None, :], np.array([0.95, 0.95, 0.95]))


def _written(tokenizer: Tokenizer, index: int) -> str:
    text = tokenizer.decode([index]).replace("\n", "↵").replace(" ", "␣")
    return text or tokenizer.piece(index)
