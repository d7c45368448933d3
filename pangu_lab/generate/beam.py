"""Beam search: the likeliest texts rather than a drawn one.

Every beam keeps its own list of cache places; a beam that forks copies the list and not the cache. Bias, bans and
penalties of the sampling settings hold, temperature and samplers do not. A text's score is its log-probability
divided by its number of tokens (the ending one included) to the power ``length_penalty``; the search ends when no
living beam can beat the finished ones any more, which is exact and not a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.generate.runner import Runner
from pangu_lab.generate.sampling import History, constrain, log_softmax
from pangu_lab.generate.sequence import (END_OF_DOCUMENT, FULL, LENGTH, STOP, Completion, Prompt, TokenLogprob,
                                         token_logprob)
from pangu_lab.generate.text import BadWords, TextWriter, TokenizerLike, unknown_ids, written_forms


@dataclass(frozen=True)
class _Beam:
    """A living text: its new tokens, the places of all its fed positions, its log-probability."""

    new: tuple[int, ...]
    places: tuple[int, ...]
    logprob: float
    told: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class _Finished:
    score: float
    completion: Completion


def beam_search(runner: Runner, tokenizer: TokenizerLike, prompt: Prompt,
                config: SamplingConfig) -> list[Completion]:
    """The ``num_return_sequences`` best of ``num_beams`` beams, best first.

    Raises:
        InputError: the cache is too small for so many beams of this length.
    """
    search = _Search(runner, tokenizer, prompt, config)
    need = len(prompt.ids) + config.num_beams * max(search.limit - 1, 0)
    places = runner.pool.take(need)
    try:
        return search.run(places)
    finally:
        runner.pool.give_back(places)


class _Search:
    def __init__(self, runner: Runner, tokenizer: TokenizerLike, prompt: Prompt, config: SamplingConfig) -> None:
        self.runner, self.tokenizer, self.prompt, self.config = runner, tokenizer, prompt, config
        self.limit = min(config.max_new_tokens, prompt.room)
        self.ends = (tokenizer.eod_id, *config.stop_ids)
        self.stop = written_forms(tokenizer, config.stop)
        self.bad_words = BadWords(tokenizer, config.bad_words)
        self.finished: list[_Finished] = []

    def run(self, places: list[int]) -> list[Completion]:
        shared, free = tuple(places[:len(self.prompt.ids)]), list(places[len(self.prompt.ids):])
        beams = [_Beam((), shared, 0.0)]
        if not self.limit:
            self._finish(beams[0], (), LENGTH)
            beams = []
        while beams:
            beams, logits = self._feed(beams, free)
            beams = self._advance(beams, logits)
            if beams and len(beams[0].new) == self.limit:
                reason = LENGTH if self.limit == self.config.max_new_tokens else FULL
                for beam in beams:
                    self._finish(beam, beam.new, reason)
                break
            if self._decided(beams):
                break
        best = sorted(self.finished, key=lambda item: -item.score)
        return [item.completion for item in best[:self.config.num_return_sequences]]

    def _feed(self, beams: list[_Beam], free: list[int]) -> tuple[list[_Beam], np.ndarray]:
        """Feed the prompt, or each beam's last token; the beams with their new places, and logits (beams,
        vocab)."""
        if not beams[0].new:
            ids, places = np.array([self.prompt.ids]), np.array([beams[0].places])
            return beams, self.runner.run(ids, np.arange(ids.shape[1])[None], places, places)
        beams = [_Beam(beam.new, (*beam.places, free.pop()), beam.logprob, beam.told) for beam in beams]
        read = np.array([beam.places for beam in beams])
        ids = np.array([[beam.new[-1]] for beam in beams])
        return beams, self.runner.run(ids, np.full_like(ids, read.shape[1] - 1), read[:, -1:], read)

    def _advance(self, beams: Sequence[_Beam], logits: np.ndarray) -> list[_Beam]:
        """The best continuations: ended ones go to the finished, the best ``num_beams`` others live on."""
        raw = logits[:, :self.tokenizer.vocab_size]
        allowed = np.stack([log_softmax(self._constrained(beam, row)) for beam, row in zip(beams, raw)])
        totals = (allowed + np.array([[beam.logprob] for beam in beams])).reshape(-1)
        spare = 1 + len(set(self.ends)) + len(self.stop)  # what ends a text takes no beam's place
        wanted = min(totals.size, self.config.num_beams * spare)
        order = np.sort(np.argpartition(-totals, wanted - 1)[:wanted])
        living: list[_Beam] = []
        for place in order[np.argsort(-totals[order], kind="stable")]:
            if len(living) == self.config.num_beams or totals[place] == -np.inf:
                break
            parent, index = beams[place // raw.shape[1]], int(place % raw.shape[1])
            child = _Beam((*parent.new, index), parent.places, float(totals[place]),
                          self._told(parent, raw[place // raw.shape[1]], index))
            if index in self.ends:
                self._finish(child, child.new, END_OF_DOCUMENT if index == self.tokenizer.eod_id else STOP)
            elif self._stops(child):
                self._finish(child, child.new, STOP)
            else:
                living.append(child)
        return living

    def _constrained(self, beam: _Beam, logits: np.ndarray) -> np.ndarray:
        read = [*self.prompt.ids, *beam.new]
        banned = self.bad_words.banned(self.bad_words.tail(self.tokenizer, read)) if self.config.bad_words else ()
        return constrain(logits, self.config, History(self.prompt.ids, list(beam.new), self.ends, banned,
                                                        unknown_ids(self.tokenizer)))

    def _told(self, parent: _Beam, logits: np.ndarray, index: int) -> tuple[TokenLogprob, ...]:
        if self.config.logprobs is None or index in self.ends:
            return parent.told
        return (*parent.told, token_logprob(self.tokenizer, log_softmax(logits), index, self.config.logprobs))

    def _written(self, new: Sequence[int]) -> TextWriter:
        writer = TextWriter(self.tokenizer.stream(), self.stop)
        for number, index in enumerate(new):
            if writer.stopped:
                break
            writer.push(index, may_stop=number + 1 > self.config.min_new_tokens)
        return writer

    def _stops(self, beam: _Beam) -> bool:
        return bool(self.stop) and self._written(beam.new).stopped

    def _finish(self, beam: _Beam, new: tuple[int, ...], reason: str) -> None:
        score = beam.logprob / max(len(new), 1) ** self.config.length_penalty
        ended = new and new[-1] in self.ends
        writer = self._written(new[:-1] if ended else new)
        writer.end()
        text = self.prompt.text + writer.text if self.config.echo else writer.text
        told = None if self.config.logprobs is None else beam.told[:writer.kept]
        made = Completion(text, tuple(new[:writer.kept]), self.prompt.ids, reason, 0, self.prompt.warnings, told,
                          None, score)
        self.finished.append(_Finished(score, made))

    def _decided(self, beams: Sequence[_Beam]) -> bool:
        """Whether no living beam can become better than the ``num_beams`` best finished ones."""
        if not beams or len(self.finished) < self.config.num_beams:
            return not beams
        worst = sorted((item.score for item in self.finished), reverse=True)[self.config.num_beams - 1]
        shortest, penalty = len(beams[0].new) + 1, self.config.length_penalty
        length = self.limit if penalty > 0 else shortest  # log-probabilities are negative: dividing more is better
        return beams[0].logprob / length**penalty <= worst
