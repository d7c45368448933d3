"""Beam search: the likeliest texts instead of a sampled one, as a policy of the decode loop.

Every beam keeps its own list of cache slots; a beam that forks copies the list, not the cache. Bias, bans and
penalties of the sampling settings apply, temperature and samplers do not. A text's score is its log-probability
divided by its number of tokens (including the end token) to the power ``length_penalty``; the search ends when no
active beam can beat the finished ones any more, which is exact, not heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.generate.constraint import Constraint
from pangu_lab.generate.sampling import History, constrain, log_softmax
from pangu_lab.generate.sequence import (
    END_OF_DOCUMENT,
    FULL,
    LENGTH,
    STOP,
    Completion,
    Delta,
    Prompt,
    TokenLogprob,
    token_logprob,
)
from pangu_lab.generate.text import BadWords, TextWriter, TokenizerLike, unknown_ids, written_forms


@dataclass
class _Beam:
    """An active text: its new tokens, its log-probability, and the slots of all its fed positions."""

    new_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()
    slots: list[int] = field(default_factory=list)


class BeamSearch:
    """The ``num_return_sequences`` best of ``num_beams`` beams, best first; see ``decode_loop.Policy``."""

    whole_prompt = False

    def __init__(
        self, tokenizer: TokenizerLike, prompt: Prompt, config: SamplingConfig, constraint: Constraint | None = None
    ) -> None:
        self.tokenizer, self.prompt, self.config = tokenizer, prompt, config
        self.limit = min(config.max_new_tokens, prompt.room)
        self.width, self.new_slots = config.num_beams, config.num_beams * max(self.limit - 1, 0)
        self._allowed = constraint.start(tokenizer, self.limit) if constraint is not None else None
        self.ends = (tokenizer.eod_id, *config.stop_ids)
        self.stop = written_forms(tokenizer, config.stop)
        self.bad_words = BadWords(tokenizer, config.bad_words)
        self.finished: list[Completion] = []
        self.rows = [_Beam()]
        if not self.limit:
            self._finish_all(LENGTH)

    def begin(self, logits: np.ndarray | None) -> list[Delta]:
        return self.accept(logits) if self.rows else []

    def accept(self, logits: np.ndarray) -> list[Delta]:
        self.rows = self._advance(self.rows, logits)
        if self.rows and len(self.rows[0].new_ids) == self.limit:
            self._finish_all(LENGTH if self.limit == self.config.max_new_tokens else FULL)
        elif self._decided(self.rows):
            self.rows = []
        return []  # which text is best is known only at the end

    def end(self, reason: str) -> list[Delta]:
        self._finish_all(reason)
        return []

    def completions(self) -> list[Completion]:
        return sorted(self.finished, key=lambda item: -item.score)[: self.config.num_return_sequences]

    def _finish_all(self, reason: str) -> None:
        for beam in self.rows:
            self._finish(beam, reason)
        self.rows = []

    def _advance(self, beams: Sequence[_Beam], logits: np.ndarray) -> list[_Beam]:
        """The best continuations: ended ones are added to the finished, the best ``num_beams`` others continue."""
        raw = logits[:, : self.tokenizer.vocab_size]
        allowed = np.stack([log_softmax(self._constrained(beam, row)) for beam, row in zip(beams, raw)])
        totals = (allowed + np.array([[beam.logprob] for beam in beams])).reshape(-1)
        spare = 1 + len(set(self.ends)) + len(self.stop)  # a candidate that ends a text must not displace a beam
        wanted = min(totals.size, self.config.num_beams * spare)
        order = np.sort(np.argpartition(-totals, wanted - 1)[:wanted])
        living: list[_Beam] = []
        for best in order[np.argsort(-totals[order], kind="stable")]:
            if len(living) == self.config.num_beams or totals[best] == -np.inf:
                break
            row, index = divmod(int(best), raw.shape[1])
            child = _Beam(
                (*beams[row].new_ids, index),
                float(totals[best]),
                self._told(beams[row], raw[row], index),
                list(beams[row].slots),
            )
            if index in self.ends:
                self._finish(child, END_OF_DOCUMENT if index == self.tokenizer.eod_id else STOP)
            elif self._stops(child):
                self._finish(child, STOP)
            else:
                living.append(child)
        return living

    def _constrained(self, beam: _Beam, logits: np.ndarray) -> np.ndarray:
        read = [*self.prompt.ids, *beam.new_ids]
        banned = self.bad_words.banned(self.bad_words.tail(self.tokenizer, read)) if self.config.bad_words else ()
        allowed = self._allowed(beam.new_ids) if self._allowed is not None else None
        return constrain(
            logits,
            self.config,
            History(self.prompt.ids, list(beam.new_ids), self.ends, banned, unknown_ids(self.tokenizer), allowed),
        )

    def _told(self, parent: _Beam, logits: np.ndarray, index: int) -> tuple[TokenLogprob, ...]:
        if self.config.logprobs is None or index in self.ends:
            return parent.logprobs
        return (*parent.logprobs, token_logprob(self.tokenizer, log_softmax(logits), index, self.config.logprobs))

    def _written(self, new: Sequence[int]) -> TextWriter:
        writer = TextWriter(self.tokenizer.stream(), self.stop)
        for number, index in enumerate(new):
            if writer.stopped:
                break
            writer.push(index, may_stop=number + 1 > self.config.min_new_tokens)
        return writer

    def _stops(self, beam: _Beam) -> bool:
        return bool(self.stop) and self._written(beam.new_ids).stopped

    def _finish(self, beam: _Beam, reason: str) -> None:
        new = beam.new_ids
        score = beam.logprob / max(len(new), 1) ** self.config.length_penalty
        ended = new and new[-1] in self.ends
        writer = self._written(new[:-1] if ended else new)
        writer.end()
        text = self.prompt.text + writer.text if self.config.echo else writer.text
        logprobs = None if self.config.logprobs is None else beam.logprobs[: writer.kept]
        self.finished.append(
            Completion(
                text, new[: writer.kept], self.prompt.ids, reason, 0, self.prompt.warnings, logprobs, None, score
            )
        )

    def _decided(self, beams: Sequence[_Beam]) -> bool:
        """Whether no active beam can beat the ``num_beams`` best finished ones."""
        if not beams or len(self.finished) < self.config.num_beams:
            return not beams
        worst = sorted((item.score for item in self.finished), reverse=True)[self.config.num_beams - 1]
        shortest, penalty = len(beams[0].new_ids) + 1, self.config.length_penalty
        length = self.limit if penalty > 0 else shortest  # log-probabilities are negative: dividing more is better
        return beams[0].logprob / length**penalty <= worst
