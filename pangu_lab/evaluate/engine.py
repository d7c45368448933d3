"""Scoring through an engine that generates: the same weights and the same graph; a bundle can be scored so too.

Each request is fed alone, which suits a few requests. For a whole data set ``LocalScorer`` packs requests together and
computes shared prefixes once. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pangu_lab.evaluate.scoring import Score, TokenScorer, make_score
from pangu_lab.evaluate.split import TokenPair
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sampling import log_softmax
from pangu_lab.progress import Progress, silent


class EngineScorer(TokenScorer):
    """A scorer over an engine.

    Args:
        start_id: a token put before a text that has no context, so that its first token is scored too.
    """

    def __init__(self, engine: Engine, start_id: int | None = None, name: str = "") -> None:
        super().__init__(engine.tokenizer, engine.max_length, start_id)
        self.engine, self.name = engine, name or engine.name

    def score_tokens(self, pairs: Sequence[TokenPair], progress: Progress = silent) -> list[Score]:
        scores = []
        for number, pair in enumerate(pairs, 1):
            scores.append(self._score(pair))
            progress(number, len(pairs), "")
        return scores

    def _score(self, pair: TokenPair) -> Score:
        count = len(pair.inputs)
        if not pair.targets:
            return make_score((), True, pair.cut)
        self.engine.release_prefix(count)
        with self.engine.runner.pool.holding(count) as slots:
            logits = self.engine.runner.run(
                np.array([pair.inputs]),
                np.arange(count)[None],
                np.array([slots]),
                np.array([slots]),
                np.arange(pair.start - 1, count),
            )
        logprobs = log_softmax(logits)
        chosen = logprobs[np.arange(len(pair.targets)), list(pair.targets)]
        return make_score(chosen, bool(np.all(chosen >= logprobs.max(-1))), pair.cut)
