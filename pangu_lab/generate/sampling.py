"""From logits to the next token: a chain of small named steps over numpy, in a fixed and visible order.

First come the steps that apply to every decoding method (``CONSTRAINTS``): the constraint (``constraint.py``), bias, bans
and penalties, in the order of the list. Then, unless decoding is greedy, the samplers (``SAMPLERS``): temperature, top-k, top-p, min-p. A step
takes scores (vocab,) and returns new ones; a forbidden token has −inf. ``explain`` returns the distribution after each
step.

The draw inverts the cumulative distribution with one number from a counter-based generator (Philox) keyed by the
request's seed and indexed by the step, so a result depends on nothing else that runs. Probabilities are e**logit,
the nucleus is taken over all candidates, and penalties count the generated tokens (repetition counts the prompt
too).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.ranges import shown

NUCLEUS_GUESSES = (1024, 8192)  # candidates sorted for top-p; all of them if even these hold too little


@dataclass
class History:
    """The text so far, as the steps need it.

    Attributes:
        prompt: ids of the prompt.
        new: ids generated so far.
        ends: ids that end a generation (end of document and stop ids).
        banned: ids that would complete a bad word now.
        unknown: ids that stand for "some character the vocabulary lacks": nothing a reader could read.
        allowed: ids that a constraint leaves, (n,); None where there is no constraint.
    """

    prompt: Sequence[int] = ()
    new: list[int] = field(default_factory=list)
    ends: tuple[int, ...] = ()
    banned: Sequence[int] = ()
    unknown: Sequence[int] = ()
    allowed: np.ndarray | None = None


Step = Callable[[np.ndarray, SamplingConfig, History], np.ndarray]


def _forbid(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    scores = scores.copy()
    scores[np.asarray(ids, np.int64)] = -np.inf
    return scores


def constraint(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Keep the tokens that the constraint of this generation allows here."""
    if history.allowed is None:
        return scores
    kept = np.full_like(scores, -np.inf)
    kept[history.allowed] = scores[history.allowed]
    return kept


def logit_bias(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Add a number to the scores of some tokens; −100 all but forbids one, 100 all but forces it."""
    if not config.logit_bias:
        return scores
    scores = scores.copy()
    for index, bias in config.logit_bias:
        scores[index] += bias
    return scores


def bad_words(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Forbid every token that would complete a bad word, however the word is cut into tokens."""
    return _forbid(scores, history.banned) if len(history.banned) else scores


def no_unknown(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Forbid the unknown piece (⁇), which a model trained on rare characters often predicts and nobody can read."""
    return _forbid(scores, history.unknown) if len(history.unknown) else scores


def no_repeat_ngram(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Forbid every token that would complete an n-gram that already occurred in prompt or text."""
    n = config.no_repeat_ngram
    text = [*history.prompt, *history.new]
    if n is None or len(text) < n:
        return scores
    tail = text[len(text) - n + 1 :]
    repeated = [text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == tail]
    return _forbid(scores, repeated) if repeated else scores


def min_new_tokens(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Forbid the tokens that end the text until it has its minimum length."""
    too_short = len(history.new) < config.min_new_tokens
    return _forbid(scores, history.ends) if too_short and history.ends else scores


def repetition_penalty(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Divide positive and multiply negative scores of tokens in prompt or text (CTRL, arXiv 1909.05858)."""
    seen = np.unique(np.asarray([*history.prompt, *history.new], np.int64))
    if config.repetition_penalty == 1.0 or not seen.size:
        return scores
    scores = scores.copy()
    old = scores[seen]
    with np.errstate(over="ignore"):
        new = np.where(old > 0, old / config.repetition_penalty, old * config.repetition_penalty)
    most = np.finfo(scores.dtype).max  # fp32 ends here: only what was forbidden before may be −inf
    scores[seen] = np.where(np.isfinite(old), np.clip(new, -most, most), old)
    return scores


def frequency_and_presence(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Subtract frequency_penalty for every occurrence in the generated text, presence_penalty once."""
    if not history.new or not (config.frequency_penalty or config.presence_penalty):
        return scores
    seen, counts = np.unique(np.asarray(history.new, np.int64), return_counts=True)
    scores = scores.copy()
    scores[seen] -= (config.frequency_penalty * counts + config.presence_penalty).astype(scores.dtype)
    return scores


def temperature(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Divide by the temperature; below 1 sharpens the distribution. The highest score is shifted to 0 first."""
    if config.temperature in (0.0, 1.0):
        return scores
    with np.errstate(over="ignore"):  # a temperature close to 0 takes all but the best to −inf, rightly
        return ((scores - scores.max()) / config.temperature).astype(scores.dtype)


def top_k(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Keep the k likeliest tokens; ties at the edge go to the lower ids."""
    k = config.top_k
    if k is None or k >= scores.size:
        return scores
    edge = np.partition(scores, -k)[-k]
    keep = np.concatenate([np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)])[:k]
    kept = np.full_like(scores, -np.inf)
    kept[keep] = scores[keep]
    return kept


def top_p(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Keep the smallest set of likeliest tokens that holds at least the probability p."""
    if config.top_p is None or config.top_p >= 1.0:
        return scores
    probabilities = softmax(scores)
    for guess in (*NUCLEUS_GUESSES, scores.size):
        order = _likeliest(probabilities, min(guess, scores.size))
        total = np.cumsum(probabilities[order])
        if total[-1] >= config.top_p:
            break
    keep = order[: int(np.searchsorted(total, config.top_p)) + 1]
    kept = np.full_like(scores, -np.inf)
    kept[keep] = scores[keep]
    return kept


def min_p(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Keep the tokens that are at least min_p times as likely as the likeliest."""
    if not config.min_p:
        return scores
    edge = scores.max() + np.log(config.min_p)
    return np.where(scores >= edge, scores, -np.inf).astype(scores.dtype)


CONSTRAINTS: tuple[Step, ...] = (
    constraint,
    logit_bias,
    bad_words,
    no_unknown,
    no_repeat_ngram,
    min_new_tokens,
    repetition_penalty,
    frequency_and_presence,
)
SAMPLERS: tuple[Step, ...] = (temperature, top_k, top_p, min_p)


def _likeliest(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Ids of the ``count`` highest probabilities, highest first; the lower id first among equals."""
    if count < probabilities.size:
        some = np.sort(np.argpartition(-probabilities, count - 1)[:count])
    else:
        some = np.arange(probabilities.size)
    return some[np.argsort(-probabilities[some], kind="stable")]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (vocab,) float64 that add up to 1."""
    raised = np.exp(scores.astype(np.float64) - scores.max())
    return raised / raised.sum()


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, over the last axis, float64."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def constrain(logits: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    """Scores after bias, bans and penalties.

    Raises:
        InputError: nothing is left to choose from.
    """
    scores = logits
    for step in CONSTRAINTS:
        scores = step(scores, config, history)
    _check_some_left(scores, logits)
    return scores


def _check_some_left(scores: np.ndarray, logits: np.ndarray) -> None:
    if not np.isfinite(scores.max()):
        raise InputError(
            "no token is left to choose from: a constraint, bad_words, no_repeat_ngram, min_new_tokens or "
            "logit_bias forbid them all"
            if np.isfinite(logits).all()
            else "the model's logits are not finite: its weights are damaged or its training diverged"
        )


def choose(logits: np.ndarray, config: SamplingConfig, history: History, random: float) -> int:
    """The next token.

    Args:
        logits: (vocab,) of the model.
        random: a number in [0, 1) from ``Draws``; ignored when temperature is 0.

    Returns:
        Its id. Greedy decoding takes the lowest id among equals.
    """
    scores = constrain(logits, config, history)
    if config.temperature == 0.0:
        return int(scores.argmax())
    for step in SAMPLERS:
        scores = step(scores, config, history)
    candidates = np.flatnonzero(scores > -np.inf)
    total = np.cumsum(softmax(scores[candidates]))
    place = int(np.searchsorted(total, random * total[-1], side="right"))
    return int(candidates[min(place, candidates.size - 1)])


@dataclass(frozen=True)
class Stage:
    """The distribution after one step of the chain: probabilities (vocab,) float64, and whether it changed."""

    name: str
    probabilities: np.ndarray
    changed: bool

    def top(self, count: int) -> list[tuple[int, float]]:
        """The likeliest tokens as (id, probability), likeliest first."""
        return [(int(i), float(self.probabilities[i])) for i in _likeliest(self.probabilities, count)]


def explain(logits: np.ndarray, config: SamplingConfig, history: History | None = None) -> list[Stage]:
    """The distribution after each step, beginning with the model's own (named ``model``).

    With temperature 0 the samplers are replaced by one stage, ``greedy``, with all probability on the chosen token.

    Raises:
        InputError: nothing is left to choose from.
    """
    history = history or History()
    stages = [Stage("model", softmax(logits), True)]
    scores = logits
    for step in CONSTRAINTS + (SAMPLERS if config.temperature else (_greedy,)):
        changed = step(scores, config, history)
        _check_some_left(changed, logits)
        differs = changed is not scores and not np.array_equal(changed, scores)
        scores = changed
        probabilities = softmax(scores) if differs else stages[-1].probabilities  # one array: a text has many stages
        stages.append(Stage(step.__name__.strip("_"), probabilities, differs))
    return stages


def _greedy(scores: np.ndarray, config: SamplingConfig, history: History) -> np.ndarray:
    only = np.full_like(scores, -np.inf)
    only[scores.argmax()] = 0.0
    return only


class Draws:
    """One uniform number in [0, 1) for each step of one sequence, the same whenever and wherever it is
    requested."""

    def __init__(self, seed: int, sequence: int = 0) -> None:
        self._key = np.array([seed, sequence], np.uint64)

    def at(self, step: int) -> float:
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, step]))
        return float(generator.random())


def seed_of(config: SamplingConfig) -> int:
    """The seed asked for, or a fresh one when none was, short enough to be copied by hand."""
    return secrets.randbits(31) if config.seed is None else config.seed


def check_ids(config: SamplingConfig, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        InputError: names the setting and the id.
    """
    for name, ids in (("stop_ids", config.stop_ids), ("logit_bias", [index for index, _ in config.logit_bias])):
        for index in ids:
            if not 0 <= index < vocab_size:
                raise InputError(
                    f"sampling.{name} names token {shown(index)}: the vocabulary has 0 to {vocab_size - 1}"
                )
