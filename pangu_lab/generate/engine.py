"""From a prompt to its completion: one sequence or many, at once or as a stream.

An ``Engine`` is a runner (weights compiled here, or an exported bundle) and a tokenizer. ``generate`` writes a
completion, ``generate_many`` one for each of many prompts in batches, ``stream`` gives the text while it is made.
Whatever the way, a sequence's tokens depend on its prompt, its settings and its seed alone.

Conduct at the edges: an empty prompt starts as a document does, after an end-of-document token; a prompt longer
than the model's sequence loses its oldest part, and the completion says how much; text stops at the
end-of-document token, at a stop id or string, at ``max_new_tokens``, or when the sequence is full.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional

import numpy as np

from pangu_lab.config import ModelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.runner import Runner, network_runner
from pangu_lab.generate.sampling import check_ids, seed_of
from pangu_lab.generate.sequence import (CANCELLED, Completion, Prompt, SequenceInProgress, prepare_prompt,
                                         prompt_logprobs)
from pangu_lab.generate.text import TokenizerLike
from pangu_lab.progress import Progress, silent

MAX_BATCH = 16  # sequences that one call of the network takes; more gains little on a CPU


class Engine:
    """A runner and a tokenizer. Also a plain one-sequence interface: ``prefill``, ``step``, ``reset``.

    Attributes:
        vocab_size: tokens that logits are given for.
        max_length: positions a sequence can have.
        length: positions used by the sequence of ``prefill`` and ``step``.
        sampling: what ``generate`` uses when it is given nothing.
        name: for people.
    """

    def __init__(self, runner: Runner, tokenizer: TokenizerLike, sampling: SamplingConfig = SamplingConfig(),
                 name: str = "") -> None:
        if tokenizer.vocab_size > runner.vocab_size:
            raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces and the model {runner.vocab_size}: "
                             "give the tokenizer that the model was trained with")
        self.runner, self.tokenizer, self.sampling, self.name = runner, tokenizer, sampling, name
        self.vocab_size, self.max_length = runner.vocab_size, runner.max_length
        self._places: list[int] = []
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

    def make_room(self, count: int) -> None:
        """End the sequence of ``prefill`` and ``step`` when a generation needs its part of the cache."""
        if self._places and self.runner.pool.free < count:
            self.reset()

    def reset(self) -> None:
        """Forget the sequence and free its part of the cache."""
        self.runner.pool.give_back(self._places)
        self._places, self.length = [], 0

    def _feed(self, ids: Sequence[int]) -> np.ndarray:
        check_prompt(ids, self.vocab_size)
        if self.length + len(ids) > self.max_length:
            raise InputError(f"the sequence would have {self.length + len(ids)} tokens, the model holds "
                             f"{self.max_length}")
        new = self.runner.pool.take(len(ids))
        self._places += new
        logits = self.runner.run(np.array([ids]), np.arange(self.length, self.length + len(ids))[None],
                                 np.array([new]), np.array([self._places]))
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
        self.make_room(len(ids))
        return with_places(self.runner, len(ids), lambda places: prefill(self.runner, ids, places, all_rows=True))


def with_places(runner: Runner, count: int, work):
    """``work(places)`` with ``count`` places of the cache, freed afterwards whatever happens."""
    places = runner.pool.take(count)
    try:
        return work(places)
    finally:
        runner.pool.give_back(places)


def check_prompt(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse no ids, and ids outside the vocabulary.

    Raises:
        InputError: names the id.
    """
    if not len(ids):
        raise InputError("there are no tokens to start from: give at least one (the end of document starts one)")
    for index in ids:
        if not 0 <= index < vocab_size:
            raise InputError(f"token {index} is outside the vocabulary: the model has 0 to {vocab_size - 1}")


# ------------------------------------------------------------------------------------------------- making engines


def engine_from_weights(weights: Mapping[str, np.ndarray], config: ModelConfig, tokenizer: TokenizerLike,
                        sampling: SamplingConfig = SamplingConfig(), places: Optional[int] = None,
                        name: str = "") -> Engine:
    """An engine over weights under their released names.

    Args:
        places: positions of key-value cache; one whole sequence and at least 1024 by default. Searching with many
            beams, or many sequences at once, needs more.

    Raises:
        InputError: weights, configuration and tokenizer do not belong together.
    """
    return Engine(network_runner(weights, config, places), tokenizer, sampling, name)


# ----------------------------------------------------------------------------------------------------- generating


def generate(engine: Engine, prompt: str, sampling: Optional[SamplingConfig] = None,
             explain: bool = False) -> Completion:
    """Continue ``prompt``.

    Args:
        explain: keep, for every token, the distribution after each step of the sampling chain
            (``Completion.explained``). Each step that changes it costs 8 bytes × vocabulary a token.

    Returns:
        The completion; of several (``num_return_sequences``) the first, with the rest in ``others``.

    Raises:
        InputError: a setting cannot work with this model, or the cache is too small for so many sequences.
    """
    return generate_many(engine, [prompt], sampling, explain=explain)[0]


def generate_many(engine: Engine, prompts: Sequence[str], sampling: Optional[SamplingConfig] = None,
                  progress: Progress = silent, explain: bool = False) -> list[Completion]:
    """Continue every prompt, several at a time; each as ``generate`` would by itself."""
    config = sampling or engine.sampling
    check_ids(config, engine.tokenizer.vocab_size)
    seed = seed_of(config)
    if config.num_beams > 1:
        if explain:
            raise InputError("a search with beams weighs whole texts, not the next token: explain needs "
                             "sampling.num_beams of 1")
        from pangu_lab.generate.beam import beam_search

        engine.make_room(engine.runner.pool.places)
        return [_grouped(beam_search(engine.runner, engine.tokenizer, _prompt(engine, text, config), config))
                for text in prompts]
    batches = [_Batch(engine, _prompt(engine, text, config), config, seed, explain) for text in prompts]
    parts = [part for batch in batches for part in batch.split(engine.runner.pool.places)]
    done = 0
    for wave in _waves(parts, engine.runner.pool.places):
        progress(done, sum(len(part.sequences) for part in parts), "sequences")
        need = sum(part.places_needed for part in wave)
        engine.make_room(need)
        with_places(engine.runner, need, lambda places, wave=wave: _run_wave(engine.runner, wave, places))
        done += sum(len(part.sequences) for part in wave)
    return [_grouped([item.completion() for item in batch.sequences]) for batch in batches]


def stream(engine: Engine, prompt: str, sampling: Optional[SamplingConfig] = None) -> CompletionStream:
    """Continue ``prompt``, giving the text piece by piece.

    Returns:
        An iterator of texts; joined they are the completion's text (without the echo of the prompt).

    Raises:
        InputError: as ``generate``; or several sequences are asked for.
    """
    config = sampling or engine.sampling
    check_ids(config, engine.tokenizer.vocab_size)
    if config.num_beams > 1 or config.num_return_sequences > 1:
        raise InputError("a stream writes one text: set sampling.num_beams and sampling.num_return_sequences to 1")
    item = SequenceInProgress(_prompt(engine, prompt, config), engine.tokenizer, config, seed_of(config))
    return CompletionStream(engine, item)


class CompletionStream(Iterator[str]):
    """Pieces of text as they become safe to show.

    Attributes:
        completion: what there is so far; final once the iteration has ended.
        tokens: how many tokens were chosen so far.
    """

    def __init__(self, engine: Engine, item: SequenceInProgress) -> None:
        self._item = item
        self._cancelled = threading.Event()
        self._pieces = self._write(engine)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def completion(self) -> Completion:
        return self._item.completion()

    @property
    def tokens(self) -> int:
        return len(self._item.new_ids)

    @property
    def places_needed(self) -> int:
        """Positions of the cache that it takes when its iteration begins."""
        return _Batch.of(self._item).places_needed

    def cancel(self) -> None:
        """Stop after the token that is being made; from any thread. The iteration then ends."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop now and free the cache; for whoever leaves the iteration before its end."""
        self._pieces.close()

    def _write(self, engine: Engine) -> Iterator[str]:
        item, runner = self._item, engine.runner
        batch = _Batch.of(item)
        engine.make_room(batch.places_needed)
        places = runner.pool.take(batch.places_needed)
        try:
            if text := "".join(batch.start(runner, places)):
                yield text
            while item.running:
                if self._cancelled.is_set():
                    text = item.end(CANCELLED)
                else:
                    text = item.accept(decode_step(runner, [item])[0])
                if text:
                    yield text
        finally:
            runner.pool.give_back(places)


# ------------------------------------------------------------------------------------------------- many at a time


def _prompt(engine: Engine, text: str, config: SamplingConfig) -> Prompt:
    return prepare_prompt(text, engine.tokenizer, config, engine.max_length)


def _grouped(completions: Sequence[Completion]) -> Completion:
    return completions[0].with_others(tuple(completions[1:]))


class _Batch:
    """The sequences of one prompt: they share the prompt's part of the cache."""

    def __init__(self, engine: Engine, prompt: Prompt, config: SamplingConfig, seed: int, explain: bool) -> None:
        self.prompt, self.config = prompt, config
        self.sequences = [SequenceInProgress(prompt, engine.tokenizer, config, seed, number, explain)
                          for number in range(config.num_return_sequences)]

    @classmethod
    def of(cls, *sequences: SequenceInProgress) -> _Batch:
        batch = cls.__new__(cls)
        batch.prompt, batch.config, batch.sequences = sequences[0].prompt, sequences[0].config, list(sequences)
        return batch

    @property
    def places_needed(self) -> int:
        return len(self.prompt.ids) + sum(item.new_places for item in self.sequences)

    def split(self, places: int) -> list[_Batch]:
        """Parts that fit a cache of ``places`` and the size of a batch."""
        room = (places - len(self.prompt.ids)) // max(self.sequences[0].new_places, 1)
        size = max(1, min(room, MAX_BATCH))
        return [_Batch.of(*self.sequences[start:start + size]) for start in range(0, len(self.sequences), size)]

    def start(self, runner: Runner, places: list[int]) -> list[str]:
        """Feed the prompt and choose every sequence's first token; the texts that became safe to show."""
        shared, start = places[:len(self.prompt.ids)], len(self.prompt.ids)
        for item in self.sequences:
            item.places = shared + places[start:start + item.new_places]
            start += item.new_places
        wants_all = self.config.echo and self.config.logprobs is not None
        if not (wants_all or self.sequences[0].running):
            return []
        logits = prefill(runner, self.prompt.ids, shared, wants_all)
        if wants_all:
            told = prompt_logprobs(self.sequences[0].tokenizer, self.prompt.ids, logits, self.config.logprobs)
            for item in self.sequences:
                item.prompt_logprobs = told
        return [item.accept(logits[-1]) for item in self.sequences if item.running]


def _waves(parts: Sequence[_Batch], places: int) -> Iterator[list[_Batch]]:
    """Pack the parts into waves that fit the cache and the size of a batch, in order."""
    wave: list[_Batch] = []
    for part in parts:
        together = [*wave, part]
        too_many = sum(len(item.sequences) for item in together) > MAX_BATCH
        if wave and (too_many or sum(item.places_needed for item in together) > places):
            yield wave
            together = [part]
        wave = together
    if wave:
        yield wave


def _run_wave(runner: Runner, wave: Sequence[_Batch], places: list[int]) -> None:
    start = 0
    for part in wave:
        part.start(runner, places[start:start + part.places_needed])
        start += part.places_needed
    sequences = [item for part in wave for item in part.sequences]
    while running := [item for item in sequences if item.running]:
        for item, logits in zip(running, decode_step(runner, running)):
            item.accept(logits)


def prefill(runner: Runner, ids: Sequence[int], places: Sequence[int], all_rows: bool = False) -> np.ndarray:
    """Feed a prompt; logits of its last token (1, vocab), or of all of them (len(ids), vocab)."""
    rows = np.arange(len(ids)) if all_rows else None
    return runner.run(np.array([ids]), np.arange(len(ids))[None], np.array([places]), np.array([places]), rows)


def decode_step(runner: Runner, items: Sequence[SequenceInProgress]) -> np.ndarray:
    """Feed the last token of every sequence; logits (sequences, vocab)."""
    lengths = np.array([item.length for item in items])
    longest = int(lengths.max())
    read = np.array([item.places[:length] + [item.places[length - 1]] * (longest - length)
                     for item, length in zip(items, lengths)])
    return runner.run(np.array([[item.new_ids[-1]] for item in items]), (lengths - 1)[:, None],
                      np.array([[item.places[item.length - 1]] for item in items]), read)
