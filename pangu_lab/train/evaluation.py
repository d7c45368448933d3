"""Loss over a held-out data set, as training and ``pangu-lab evaluate`` both measure it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from pangu_lab.data import TokenDataset
from pangu_lab.progress import Progress, silent
from pangu_lab.runs.units import bits_per_character


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood per token (nats) over ``tokens`` tokens.

    Attributes:
        records, of: how many of the data set's records were used.
        characters_per_token: of the data set's text; None where it is not known.
    """

    loss: float
    tokens: int
    records: int = 0
    of: int = 0
    characters_per_token: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_character(self) -> float | None:
        """The loss in a unit that compares between vocabularies; None where the characters are not known."""
        return bits_per_character(self.loss, self.characters_per_token)

    def figures(self) -> dict[str, Any]:
        """The values of an ``eval`` event; what is not known is left out."""
        bits = {} if self.bits_per_character is None else {"bits_per_character": self.bits_per_character}
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            **bits,
            "tokens": self.tokens,
            "records": self.records,
            "of_records": self.of,
        }


def batch_tensors(batch, rows: slice = slice(None)) -> list[Tensor]:
    """The graph's inputs for some records of a batch: inputs, positions, samples, labels, weights."""
    arrays = (batch.inputs, batch.positions, batch.samples, batch.labels, batch.weights)
    return [Tensor(np.ascontiguousarray(array[rows])) for array in arrays]


def held_out_loss(
    loss_cell: Callable[..., Tensor],
    dataset: TokenDataset,
    batch_size: int,
    max_batches: int | None = None,
    eod_reset: bool = True,
    progress: Progress = silent,
) -> HeldOutLoss:
    """Mean loss over the data set in its own order; every record counts once, whatever the batch size.

    Args:
        loss_cell: gives Σ weight · −log p for a batch (``PanguLoss`` without dropout).
        max_batches: use at most this many batches from the start.
    """
    wanted = len(dataset)
    if max_batches is not None:
        wanted = min(wanted, max_batches * batch_size)
    total, tokens, done = 0.0, 0.0, 0
    for batch in dataset.batches(batch_size, seed=0, shuffle=False, eod_reset=eod_reset):
        rows = min(batch_size, wanted - done)
        batch.weights[rows:] = 0.0  # the last batch wraps around to the first records, which must not count twice
        total += float(loss_cell(*batch_tensors(batch)).asnumpy().item())
        tokens += float(batch.weights.sum())
        done += rows
        progress(done, wanted, "records")
        if done >= wanted:
            break
    return HeldOutLoss(total / max(tokens, 1.0), int(tokens), wanted, len(dataset), dataset.characters_per_token)
