"""Generation without the key-value cache, as a lesson and a check: every step reads its whole text again.

The text is the same, and a step costs what a prompt of its length costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_lab.generate.runner import Runner


class UncachedRunner:
    """A runner whose decode steps use nothing that earlier ones kept; all else is that of ``runner``."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._tokens = np.zeros(runner.pool.slots, np.int64)  # that of each slot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        write: np.ndarray,
        read: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """As ``Runner.run``."""
        self._tokens[write] = ids
        if ids.shape[1] > 1:
            return self._runner.run(ids, positions, write, read, rows)
        made = []
        for length, slots in zip(positions[:, 0] + 1, read):
            text = slots[None, :length]
            made.append(self._runner.run(self._tokens[text], np.arange(length)[None], text, text))
        logits = np.concatenate(made)
        return logits if rows is None else logits[rows]

    def start(self, *arrays: Any) -> Callable[[], np.ndarray]:
        """As ``Runner.start``."""
        logits = self.run(*arrays)
        return lambda: logits
