"""From a prompt to its completion: one sequence or many, at once or as a stream.

An ``Engine`` is a runner (weights compiled here, or an exported bundle) and a tokenizer. ``generate`` returns a
completion, ``generate_many`` one for each of many prompts, several at a time, ``stream`` yields the text as it is
generated: each puts its requests into its own decode loop and steps it in the caller's thread (``decode_loop.py``).
In all of them a sequence's tokens depend only on its prompt, its settings and its seed.

Edge cases: an empty prompt starts as a document does, after an end-of-document token; a prompt longer
than the model's sequence loses its oldest part, and the completion says how much; text stops at the
end-of-document token, at a stop id or string, at ``max_new_tokens``, or when the sequence is full.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pangu_lab.config import ModelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.beam import BeamSearch
from pangu_lab.generate.constraint import Constraint
from pangu_lab.generate.decode_loop import MAX_BATCH, DecodeLoop, FairQueue, Request, prefill
from pangu_lab.generate.runner import Runner, network_runner
from pangu_lab.generate.sampling import check_ids, seed_of
from pangu_lab.generate.sequence import Completion, Delta, Prompt, Sampling, grouped, prepare_prompt
from pangu_lab.generate.text import TokenizerLike
from pangu_lab.progress import Progress, silent
from pangu_lab.ranges import shown


class Engine:
    """A runner and a tokenizer. Also a plain one-sequence interface: ``prefill``, ``step``, ``reset``.

    Attributes:
        vocab_size: tokens that have logits.
        max_length: positions a sequence can have.
        length: positions used by the sequence of ``prefill`` and ``step``.
        sampling: the default settings of ``generate``.
        name: a display name.
    """

    def __init__(
        self, runner: Runner, tokenizer: TokenizerLike, sampling: SamplingConfig = SamplingConfig(), name: str = ""
    ) -> None:
        if tokenizer.vocab_size > runner.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model {runner.vocab_size}: "
                "give the tokenizer that the model was trained with"
            )
        self.runner, self.tokenizer, self.sampling, self.name = runner, tokenizer, sampling, name
        self.vocab_size, self.max_length = runner.vocab_size, runner.max_length
        self._slots: list[int] = []
        self.length = 0

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start a sequence with ``ids``; logits (vocab,) of what follows the last.

        Raises:
            InputError: no ids, more than ``max_length``, or one outside the vocabulary.
        """
        self.reset()
        return self._feed(ids)

    def step(self, index: int) -> np.ndarray:
        """Add one token to the sequence; logits (vocab,) of what follows it.

        Raises:
            InputError: the sequence is full, or there is none: ``prefill`` begins one, and a generation that needs
                its part of the cache ends it.
        """
        if not self.length:
            raise InputError("there is no sequence to add a token to: call prefill first")
        return self._feed([index])

    def release_prefix(self, count: int) -> None:
        """End the sequence of ``prefill`` and ``step`` when a generation needs its part of the cache."""
        if self._slots and self.runner.pool.free < count:
            self.reset()

    def reset(self) -> None:
        """Forget the sequence and free its part of the cache."""
        self.runner.pool.give_back(self._slots)
        self._slots, self.length = [], 0

    def _feed(self, ids: Sequence[int]) -> np.ndarray:
        check_prompt(ids, self.vocab_size)
        if self.length + len(ids) > self.max_length:
            raise InputError(
                f"the sequence would have {self.length + len(ids)} tokens, the model holds {self.max_length}"
            )
        new = self.runner.pool.take(len(ids))
        self._slots += new
        logits = self.runner.run(
            np.array([ids]),
            np.arange(self.length, self.length + len(ids))[None],
            np.array([new]),
            np.array([self._slots]),
        )
        self.length += len(ids)
        return logits[0]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits (len(ids), vocab) of what follows each token of a text; nothing of it is kept.

        Raises:
            InputError: as ``prefill``.
        """
        check_prompt(ids, self.vocab_size)
        if len(ids) > self.max_length:
            raise InputError(f"the text has {len(ids)} tokens, the model holds {self.max_length}")
        self.release_prefix(len(ids))
        with self.runner.pool.holding(len(ids)) as slots:
            return prefill(self.runner, ids, slots, all_rows=True)


def check_prompt(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse no ids, and ids outside the vocabulary.

    Raises:
        InputError: names the id.
    """
    if not len(ids):
        raise InputError("there are no tokens to start from: give at least one (the end of document starts one)")
    for index in ids:
        if not 0 <= index < vocab_size:
            raise InputError(f"token {shown(index)} is outside the vocabulary: the model has 0 to {vocab_size - 1}")


# ------------------------------------------------------------------------------------------------- making engines


def engine_from_weights(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    tokenizer: TokenizerLike,
    sampling: SamplingConfig = SamplingConfig(),
    slots: int | None = None,
    name: str = "",
) -> Engine:
    """An engine over weights under their released names.

    Args:
        slots: positions of key-value cache; one whole sequence and at least 1024 by default. Searching with many
            beams, or many sequences at once, needs more.

    Raises:
        InputError: weights, configuration and tokenizer do not belong together.
    """
    return Engine(network_runner(weights, config, slots), tokenizer, sampling, name)


def generate(
    engine: Engine,
    prompt: str,
    sampling: SamplingConfig | None = None,
    explain: bool = False,
    constraint: Constraint | None = None,
) -> Completion:
    """Continue ``prompt``.

    Args:
        explain: keep, for every token, the distribution after each step of the sampling chain
            (``Completion.explained``). Each step that changes it costs 8 bytes × vocabulary a token.
        constraint: what the text is held to, such as a ``Verse``.

    Returns:
        The completion; of several (``num_return_sequences``) the first, with the rest in ``others``.

    Raises:
        InputError: a setting cannot work with this model, or the cache is too small for so many sequences.
    """
    return generate_many(engine, [prompt], sampling, explain=explain, constraint=constraint)[0]


def generate_many(
    engine: Engine,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    progress: Progress = silent,
    explain: bool = False,
    seeds: Sequence[int] | None = None,
    constraint: Constraint | None = None,
) -> list[Completion]:
    """Continue every prompt, several at a time; each as ``generate`` would by itself.

    Args:
        seeds: one for each prompt; without them all have that of ``sampling``, and so the same draws.
        constraint: what every text is held to.
    """
    config = sampling or engine.sampling
    check_ids(config, engine.tokenizer.vocab_size)
    if config.num_beams > 1 and explain:
        raise InputError("beam search ranks whole texts, not the next token: explain needs sampling.num_beams of 1")
    seeds = seeds or [seed_of(config)] * len(prompts)
    groups = [
        _requests_of(engine, prompt, config, seed, explain, constraint)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    requests, done = [request for group in groups for request in group], 0
    total = sum(request.policy.width for request in requests)
    progress(0, total, "sequences")
    with contextlib.closing(_decode(engine, requests)) as steps:
        for ended in filter(None, steps):
            done += sum(request.policy.width for request in ended)
            progress(done, total, "sequences")
    return [grouped([one for request in group for one in request.policy.completions()]) for group in groups]


def stream(
    engine: Engine, prompt: str, sampling: SamplingConfig | None = None, constraint: Constraint | None = None
) -> CompletionStream:
    """Continue ``prompt``, giving the text piece by piece.

    Returns:
        An iterator of texts; joined they are the completion's text (without the echo of the prompt).

    Raises:
        InputError: as ``generate``; or several sequences are asked for.
    """
    config = sampling or engine.sampling
    check_ids(config, engine.tokenizer.vocab_size)
    if config.num_beams > 1 or config.num_return_sequences > 1:
        raise InputError("a stream generates one text: set sampling.num_beams and sampling.num_return_sequences to 1")
    return CompletionStream(
        engine, prepare_prompt(prompt, engine.tokenizer, config, engine.max_length), config, constraint
    )


class CompletionStream(Iterator[str]):
    """Pieces of text as they become safe to show. Dropping or closing it frees its cache.

    Attributes:
        completion: what there is so far; final once the iteration has ended.
        tokens: how many tokens were chosen so far.
        slots_needed: of the cache, taken when the iteration begins.
    """

    def __init__(
        self, engine: Engine, prompt: Prompt, config: SamplingConfig, constraint: Constraint | None = None
    ) -> None:
        policy = Sampling(engine.tokenizer, prompt, config, seed_of(config), constraint=constraint)
        self._request = _StreamedRequest(prompt, policy)
        self._steps = _decode(engine, [self._request])

    def __next__(self) -> str:
        while not self._request.pieces:
            next(self._steps)
        return self._request.pieces.popleft()

    @property
    def completion(self) -> Completion:
        return self._request.completion

    @property
    def tokens(self) -> int:
        return self._request.tokens

    @property
    def slots_needed(self) -> int:
        return self._request.slots_needed

    def cancel(self) -> None:
        """Stop after the current token; callable from any thread. The iteration then ends."""
        self._request.cancel()

    def close(self) -> None:
        """Stop now and free the cache; for leaving the iteration early."""
        self._steps.close()


class _StreamedRequest(Request):
    """A request that keeps the pieces of its text until they are fetched."""

    def __init__(self, prompt: Prompt, policy: Sampling) -> None:
        super().__init__(prompt, policy)
        self.pieces: collections.deque[str] = collections.deque()

    def deliver(self, deltas: Sequence[Delta]) -> None:
        self.pieces.extend(delta.text for delta in deltas if delta.text)


def _requests_of(
    engine: Engine, text: str, config: SamplingConfig, seed: int, explain: bool, constraint: Constraint | None
) -> list[Request]:
    """The sequences of a prompt in parts that fit the cache and the size of a batch."""
    prompt = prepare_prompt(text, engine.tokenizer, config, engine.max_length)
    if config.num_beams > 1:
        return [Request(prompt, BeamSearch(engine.tokenizer, prompt, config, constraint))]
    free = engine.runner.pool.slots - len(prompt.ids)
    size = max(1, min(free // max(min(config.max_new_tokens, prompt.room) - 1, 1), MAX_BATCH))
    numbers = range(config.num_return_sequences)
    return [
        Request(
            prompt, Sampling(engine.tokenizer, prompt, config, seed, numbers[start : start + size], explain, constraint)
        )
        for start in range(0, len(numbers), size)
    ]


def _decode(engine: Engine, requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Run requests in a loop of their own; after each step those that have ended.

    Raises:
        InputError: the cache is too small, or others hold it.
        Exception: what went wrong with a request, or in the network.
    """
    loop, left = DecodeLoop(engine.runner, FairQueue()), iter(requests)
    try:
        while True:
            for request in itertools.islice(left, MAX_BATCH - len(loop.waiting)):
                loop.waiting.put(request)
            if not loop.running:
                if not loop.waiting:
                    return
                needed = sum(one.slots_needed for one in loop.waiting.order())
                engine.release_prefix(min(needed, engine.runner.pool.slots))
                engine.runner.pool.wait_for(loop.waiting.first().slots_needed)
            ended = loop.step()
            for request in ended:
                if request.error:
                    raise request.error
            yield ended
    finally:
        loop.end_all()
