"""Batch-invariant decoding: the same bits for a sequence, whatever else is in its batch.

The C kernels (``native.py``) add every row's products in one order, so where they decode there is nothing to do. A
graph computes a product of m rows with different kernels for different m, which add in another order: logits of a
sequence alone and in a batch differ in their last bits (1e-6 of a logit), and in one text of many thousands such a
difference flips a choice between two near-equal tokens. Seen on an AVX-512 machine (oneDNN, blocks of six rows):
batches of 4, 5, 6, 10, 11, 12, 16 give every row bit for bit the same logits in any order; 1 gives others, and in 2,
3, 7, 8, 9 the last rows differ. Elsewhere other sizes agree, so they are found by trying, on the machine and with the
weights that will be used. The runner then pads every decode step of a graph to one of these sizes by repeating its
last sequence, which writes the same values to the same slot; a prompt is always fed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pangu_lab.generate.runner import Runner

TRIED = (16, 12, 10, 8, 6, 4, 3, 2, 1)  # batch sizes to try, without those that a larger one can replace
STEPS = 2  # tokens of each sequence in a trial
TURNS = (0, 1, 3)  # by how many rows the order is rotated


def make_batch_invariant(runner: Runner, largest: int = TRIED[0]) -> tuple[int, ...]:
    """Find the batch sizes whose rows agree to the last bit, and restrict the graphs of ``runner`` to them.

    Args:
        largest: the most sequences that will be decoded at once.

    Returns:
        The sizes, ascending; (1,) if no larger one agrees with itself, so that sequences take turns; () if the
        kernels decode, where every size works.
    """
    runner.batch_sizes = ()
    largest = min(largest, runner.pool.slots // STEPS)
    with runner.pool.holding(largest * STEPS) as slots:
        trial = _Trial(runner, np.array(slots).reshape(largest, STEPS))
        trial.logits([0])  # only after a first step is it known whether kernels or graph decode
        sizes = [] if runner.decodes_by_kernels else [size for size in TRIED if size <= largest]
        runner.batch_sizes = next(
            (found for index in range(len(sizes)) if (found := _agreeing(trial, sizes[index:]))), ()
        )
    return runner.batch_sizes


class _Trial:
    """A few short sequences, decoded in batches of any size and order."""

    def __init__(self, runner: Runner, slots: np.ndarray) -> None:
        self.runner, self.slots = runner, slots
        self.ids = np.random.default_rng(0).integers(0, runner.vocab_size, slots.shape)

    def logits(self, members: Sequence[int]) -> dict[int, np.ndarray]:
        """(vocab,) of each member's last step, decoded together in this order."""
        rows = np.array(members)
        for step in range(min(STEPS, self.runner.max_length)):
            position = np.full((len(rows), 1), step)
            logits = self.runner.run(
                self.ids[rows, step : step + 1],
                position,
                self.slots[rows, step : step + 1],
                self.slots[rows, : step + 1],
            )
        return dict(zip(members, logits))


def _agreeing(trial: _Trial, sizes: Sequence[int]) -> tuple[int, ...]:
    """Those of ``sizes`` that agree with the first, ascending; none if the first does not agree with itself."""
    if sizes == [1]:
        return (1,)
    reference = trial.logits(range(sizes[0]))
    agreeing = [size for size in sizes if all(_same(trial, reference, size, turn) for turn in TURNS)]
    return tuple(sorted(agreeing)) if sizes[0] in agreeing else ()


def _same(trial: _Trial, reference: dict[int, np.ndarray], size: int, turn: int) -> bool:
    members = [(index + turn) % len(reference) for index in range(size)][::-1]
    return all(np.array_equal(logits, reference[index]) for index, logits in trial.logits(members).items())
