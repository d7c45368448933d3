"""Log-likelihood of continuations given contexts: the engine behind every task.

``LocalScorer`` runs a model in this process. Contexts that several candidates share are computed once, requests
are packed into rows of a few lengths and run in batches, and the results come back in the order of the requests,
each equal to scoring it alone. ``ServerScorer`` (server.py) gives the same numbers through an HTTP API.

A text without context has no probability for its first token, which nothing precedes: that token is
read and not scored, unless ``start_id`` names a token to put before it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.evaluate.rows import LONGEST_ROW, Row, bucket, plan_rows
from pangu_lab.evaluate.split import TokenPair, encode_pair, fit
from pangu_lab.loading import Model
from pangu_lab.memory import check, scoring_need
from pangu_lab.model.parameters import OneByOne
from pangu_lab.progress import Progress, silent
from pangu_lab.tokenizer import Tokenizer

BATCH_TOKENS = 2048  # computed at once
HEAD_LOGITS = 24_000_000  # computed at once, about: 100 MB


@dataclass(frozen=True)
class Score:
    """The score of a continuation.

    Attributes:
        logprob: natural logarithm of its probability, summed over its tokens.
        tokens: how many tokens were scored.
        greedy: whether each of them was the most probable one at its position.
        cut: tokens left out because the request did not fit the model's window; 0 almost always.
        token_logprobs: the summands of ``logprob``.
    """

    logprob: float
    tokens: int
    greedy: bool
    cut: int = 0
    token_logprobs: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Log-probability a token; 0 when nothing was scored."""
        return self.logprob / self.tokens if self.tokens else 0.0

    @property
    def perplexity(self) -> float:
        return math.exp(min(-self.mean, 700.0))


def make_score(logprobs: Sequence[float], greedy: bool, cut: int = 0) -> Score:
    """A ``Score`` from the log-probabilities of its tokens."""
    values = tuple(float(value) for value in logprobs)
    return Score(math.fsum(values), len(values), bool(greedy), cut, values)


class Scorer(ABC):
    """Anything that can score text. ``name`` identifies the model in results."""

    name: str = "model"

    @abstractmethod
    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], cut: str = "context", progress: Progress = silent
    ) -> list[Score]:
        """Score each (context, continuation), in the order given.

        Args:
            cut: what is shortened when a pair does not fit the model: its "context" from the left, or its
                "continuation" from the right; ``Score.cut`` counts the tokens left out.
            progress: called with the number of pairs done.
        """


class TokenScorer(Scorer):
    """A scorer of tokens: the tokenizer and the window are known on this side.

    Attributes:
        window: the longest input, in tokens.
        longest: the longest request: one token more than the window where the last one need not be read.
        start_id: a token put before a text that has no context, so that its first token is scored too.
    """

    def __init__(
        self, tokenizer: Tokenizer, window: int, start_id: int | None = None, longest: int | None = None
    ) -> None:
        self.tokenizer, self.window, self.start_id = tokenizer, window, start_id
        self.longest = window + 1 if longest is None else longest
        self._encode = functools.lru_cache(maxsize=4096)(functools.partial(encode_pair, tokenizer))

    def encode(self, context: str, continuation: str, cut: str = "context") -> TokenPair:
        """Tokens of a pair, shortened to the window."""
        ids, context_tokens = self._encode(context, continuation)
        if context_tokens == 0 and self.start_id is not None:
            ids, context_tokens = [self.start_id, *ids], 1
        return fit(ids, context_tokens, self.longest, cut)

    def loglikelihood(self, pairs, cut="context", progress=silent):
        encoded = [self.encode(context, continuation, cut) for context, continuation in pairs]
        return self.score_tokens(encoded, progress)

    @abstractmethod
    def score_tokens(self, pairs: Sequence[TokenPair], progress: Progress = silent) -> list[Score]:
        """Score requests that are tokens already."""


class LocalScorer(TokenScorer):
    """A model in this process.

    Args:
        config: the network's sizes.
        weights: all parameters by published name, whole; any float type.
        tokenizer: the one the model was trained with.
        batch_tokens: slots computed at once; more is no faster on a CPU.
        start_id: a token put before a text that has no context, so that its first token is scored too.
        name: of the model, for results.

    Raises:
        InputError: the tokenizer has more pieces than the model knows.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        tokenizer: Tokenizer,
        batch_tokens: int = BATCH_TOKENS,
        start_id: int | None = None,
        name: str = "model",
    ) -> None:
        if tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} pieces, the model knows "
                f"{config.vocab_size}: give the tokenizer that the model was trained with"
            )
        super().__init__(tokenizer, config.num_positions, start_id)
        self.name = name
        self.config = inference_config(config)
        self._network = _Network(self.config, weights, max(64, batch_tokens))

    @classmethod
    def of(cls, model: Model, **options: Any) -> LocalScorer:
        """A scorer over a model that has been opened.

        Raises:
            InputError: it keeps no tokenizer, is a bundle, or its batches do not fit into memory.
        """
        weights, tokens = model.require_weights("scored in batches"), options.get("batch_tokens", BATCH_TOKENS)
        check(
            f"{model.name}: scoring", scoring_need(model.config, tokens), lambda smaller: scoring_need(smaller, tokens)
        )
        return cls(model.config, weights, model.require_tokenizer(), **{"name": model.origin, **options})

    def score_tokens(self, pairs: Sequence[TokenPair], progress: Progress = silent) -> list[Score]:
        results = [make_score((), True, pair.cut) for pair in pairs]
        rows = plan_rows(pairs, self.config.hidden_size, self.window)
        total, done = len(pairs), len(pairs) - sum(len(row.reads) for row in rows)  # some have nothing to score
        tokens, started = 0, time.monotonic()
        for batch, slots in self._batches(rows):
            if self._network.is_new(len(batch), slots):
                progress(done, total, f"compiling for rows of {slots}")
            hidden = self._network.hidden(batch, slots)
            for row, (logprobs, best) in zip(batch, self._scores(batch, hidden, slots)):
                for number, reads in row.reads:
                    greedy = bool(np.all(logprobs[reads] >= best[reads]))
                    results[number] = make_score(logprobs[reads], greedy, pairs[number].cut)
                done, tokens = done + len(row.reads), tokens + len(row)
            progress(done, total, f"{tokens / max(time.monotonic() - started, 1e-9):,.0f} tokens/s")
        return results

    def _batches(self, rows: Sequence[Row]):
        """Rows, longest first, in batches of the size their row length allows."""
        longest = max(self.window, LONGEST_ROW)
        start = 0
        while start < len(rows):
            slots = bucket(len(rows[start]), longest)
            batch = rows[start : start + self._network.full(slots)]
            start += len(batch)
            yield batch, slots

    def _scores(self, batch: Sequence[Row], hidden: np.ndarray, slots: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each row the log-probabilities of its wanted tokens, and of the likeliest token in each one's place."""
        indices = [number * slots + slot for number, row in enumerate(batch) for slot, _ in row.wanted]
        targets = [target for row in batch for _, target in row.wanted]
        chosen, best = self._network.log_probs(hidden, np.array(indices), np.array(targets, np.int32))
        ends = np.cumsum([len(row.wanted) for row in batch])[:-1]
        return list(zip(np.split(chosen, ends), np.split(best, ends)))


def inference_config(config: ModelConfig) -> ModelConfig:
    """The same sizes without dropout, and in fp32 on a CPU, where half precision is slower."""
    import mindspore as ms

    config = dataclasses.replace(config, dropout_rate=0.0)
    if ms.get_context("device_target") == "CPU":
        config = dataclasses.replace(config, compute_dtype="float32", softmax_dtype="float32")
    return config


class _Network:
    """The graphs with their few fixed shapes; takes and returns NumPy arrays."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], batch_tokens: int) -> None:
        import mindspore as ms

        from pangu_lab.evaluate.graph import BranchRows, TokenScores
        from pangu_lab.model.pangu import Weights

        ms.set_context(mode=ms.GRAPH_MODE)
        shared = Weights(OneByOne(weights, lambda name: np.asarray(weights[name], np.float32)))
        self.trunk, self.head = BranchRows(config, shared), TokenScores(config, shared)
        self.batch_tokens = batch_tokens
        self.head_rows = max(64, min(2048, 1 << (HEAD_LOGITS // config.vocab_size).bit_length() - 1))
        self.shapes: set[tuple[int, int]] = set()

    def full(self, slots: int) -> int:
        """Rows of this length in a full batch."""
        return max(1, self.batch_tokens // slots)

    def is_new(self, rows: int, slots: int) -> bool:
        """Whether a batch of this shape will be compiled first."""
        return (self._row_count(rows, slots), slots) not in self.shapes

    def _row_count(self, rows: int, slots: int) -> int:
        """Rows after padding: those of a full batch, or an eighth of that, so that few shapes are compiled."""
        few = max(1, self.full(slots) // 8)
        return few if rows <= few else max(rows, self.full(slots))

    def hidden(self, batch: Sequence[Row], slots: int) -> np.ndarray:
        """(rows·slots, hidden) for rows of at most ``slots`` slots."""
        from mindspore import Tensor

        count = self._row_count(len(batch), slots)
        arrays = np.zeros((3, count, slots), np.int32)
        arrays[2] = -1  # padding sees itself alone
        for number, row in enumerate(batch):
            arrays[:, number, : len(row)] = (row.ids, row.positions, row.branches)
        self.shapes.add((count, slots))
        order = Tensor(np.arange(slots, dtype=np.int32))
        return self.trunk(*(Tensor(array) for array in arrays), order).asnumpy()

    def log_probs(self, hidden: np.ndarray, indices: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each target after ``hidden[index]``, and of the likeliest token there; both (n,) fp32."""
        from mindspore import Tensor

        chosen, best = np.empty(len(targets), np.float32), np.empty(len(targets), np.float32)
        start = 0
        while start < len(targets):
            size = self.head_rows if len(targets) - start > 64 else 64
            part = slice(start, min(start + size, len(targets)))
            rows, wanted = _filled(hidden[indices[part]], size), _filled(targets[part], size)
            results = [tensor.asnumpy()[: part.stop - start] for tensor in self.head(Tensor(rows), Tensor(wanted))]
            chosen[part], best[part] = results
            start = part.stop
        return chosen, best


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """The array padded with zeros to ``rows`` rows."""
    missing = rows - len(array)
    return np.ascontiguousarray(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)))
