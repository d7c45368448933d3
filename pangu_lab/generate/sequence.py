"""One text being generated: its state, what it may do next, when it ends, and what is reported about it.

``SequenceInProgress`` is one sequence; ``Sampling`` is the sequences of one prompt, sampled independently, as a policy
of the decode loop (``decode_loop.Policy``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.generate.constraint import Constraint
from pangu_lab.generate.sampling import Draws, History, Stage, choose, explain, log_softmax
from pangu_lab.generate.text import BadWords, TextWriter, TokenizerLike, top_tokens, unknown_ids, written_forms

END_OF_DOCUMENT, STOP, LENGTH, FULL, CANCELLED = "end_of_document", "stop", "length", "sequence_full", "cancelled"


@dataclass(frozen=True)
class TokenLogprob:
    """One token: natural logarithm of the probability the model gave it (None for a text's first token, which
    nothing precedes), and the likeliest tokens in its place as (id, logarithm)."""

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """The result of a prompt.

    Attributes:
        text: the continuation, cut before a stop string; after the prompt when ``echo`` was asked for.
        ids: its tokens, without the one that ended it. A token that a stop string begins inside is still there.
        prompt_ids: what the model read: the prompt, or what fitted of it, or the token an empty prompt starts
            from.
        finish_reason: ``end_of_document``, ``stop``, ``length`` (max_new_tokens), ``sequence_full`` or
            ``cancelled``.
        seed: gives the same completion again.
        warnings: plain sentences about what was done to the prompt.
        logprobs, prompt_logprobs: a TokenLogprob for each id, when asked for (the prompt's with ``echo``).
        score: of a beam, its log-probability / length ** length_penalty.
        others: further completions of the same prompt.
        explained: for each id the distribution after every step of the sampling chain, when asked for.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: str
    seed: int
    warnings: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
    others: tuple[Completion, ...] = ()
    explained: tuple[tuple[Stage, ...], ...] | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def all(self) -> tuple[Completion, ...]:
        """This completion and the others."""
        return (dataclasses.replace(self, others=()), *self.others)


def grouped(completions: Sequence[Completion]) -> Completion:
    """Completions of one prompt as the first with the rest in ``others``."""
    return dataclasses.replace(completions[0], others=tuple(completions[1:]))


@dataclass(frozen=True)
class Delta:
    """What one step added to sequence ``number`` of a request: text that became safe to show, and the token if
    logprobs were asked for (it may come before its text); the last one has a ``finish_reason``."""

    number: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.finish_reason)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        ids: at least one, at most ``max_length``, plus possibly a last one that is not fed.
        room: new tokens that the sequence has room for. The last one need not be fed, so this is at least 1.
        unread: tokens at the end that are only predicted, never fed: 1 when scoring a text that fills the
            sequence plus one token; nothing can be generated after it.
    """

    text: str
    ids: tuple[int, ...]
    room: int
    warnings: tuple[str, ...] = ()
    unread: int = 0

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that are fed."""
        return self.ids[: len(self.ids) - self.unread]


def prepare_prompt(text: str, tokenizer: TokenizerLike, config: SamplingConfig, max_length: int) -> Prompt:
    """Tokens of a prompt; an empty one starts from the end-of-document token, a long one loses its oldest part.

    A prompt that leaves no room keeps what leaves room for ``max_new_tokens``, and no less than half the sequence.
    """
    ids = tokenizer.encode(text)
    warnings = []
    if not ids:
        ids = [tokenizer.eod_id]
    if len(ids) > max_length:
        kept = max_length + 1 - min(max(config.max_new_tokens, 1), max_length // 2 + 1)
        warnings.append(
            f"the prompt has {len(ids)} tokens and the model holds {max_length}: its oldest "
            f"{len(ids) - kept} tokens were left out"
        )
        ids = ids[len(ids) - kept :]
    return Prompt(text, tuple(ids), max_length + 1 - len(ids), tuple(warnings))


class SequenceInProgress:
    """A completion of ``prompt`` in progress: takes logits, chooses tokens, knows when to stop.

    Attributes:
        number: its index among the sequences of one prompt; with the seed it is the key of its draws.
        slots: of the cache, one for each fed position; managed by the loop that runs it.
        running: whether it needs more logits.
    """

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: TokenizerLike,
        config: SamplingConfig,
        seed: int,
        number: int = 0,
        explained: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        self.prompt, self.tokenizer, self.config, self.seed, self.number = prompt, tokenizer, config, seed, number
        self._explained: list[tuple[Stage, ...]] | None = [] if explained else None
        self.slots: list[int] = []
        self._draws = Draws(seed, number)
        self._bad_words = BadWords(tokenizer, config.bad_words)
        self._writer = TextWriter(tokenizer.stream(), written_forms(tokenizer, config.stop))
        self._history = History(prompt.ids, [], (tokenizer.eod_id, *config.stop_ids), unknown=unknown_ids(tokenizer))
        self._logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: tuple[TokenLogprob, ...] | None = None
        self.limit = min(config.max_new_tokens, prompt.room)
        self._allowed = constraint.start(tokenizer, self.limit) if constraint is not None else None
        self.finish_reason: str | None = None if self.limit else LENGTH

    @property
    def running(self) -> bool:
        return self.finish_reason is None

    @property
    def new_ids(self) -> list[int]:
        """Tokens chosen so far, the one that ends the text included."""
        return self._history.new

    @property
    def new_slots(self) -> int:
        """The most positions fed after the prompt: the last token need not be."""
        return max(self.limit - 1, 0)

    def history(self) -> History:
        """The text so far, as the sampling chain needs it for the next token."""
        if self.config.bad_words:
            read = [*self.prompt.ids, *self._history.new]
            self._history.banned = self._bad_words.banned(self._bad_words.tail(self.tokenizer, read))
        if self._allowed is not None:
            self._history.allowed = self._allowed(self._history.new)
        return self._history

    def accept(self, logits: np.ndarray) -> Delta:
        """Choose the next token from logits (vocab,)."""
        known = len(self._logprobs)
        logits = logits[: self.tokenizer.vocab_size]  # a model may have more rows than pieces
        index = self._choose(logits)
        if index in self._history.ends:
            return self.end(END_OF_DOCUMENT if index == self.tokenizer.eod_id else STOP)
        if self.config.logprobs is not None:
            self._logprobs.append(token_logprob(self.tokenizer, log_softmax(logits), index, self.config.logprobs))
        written = len(self.new_ids)
        text = self._writer.push(index, may_stop=written > self.config.min_new_tokens)
        if self._writer.stopped:
            self.finish_reason = STOP
        elif written == self.limit:
            text += self.end(LENGTH if self.limit == self.config.max_new_tokens else FULL).text
        return Delta(self.number, text, tuple(self._logprobs[known:]), self.finish_reason)

    def _choose(self, logits: np.ndarray) -> int:
        """Choose the next token, add it to the history, and keep its explanation if that was asked for."""
        history = self.history()
        random = self._draws.at(len(history.new)) if self.config.temperature else 0.0
        index = choose(logits, self.config, history, random)
        stages = None if self._explained is None else tuple(explain(logits, self.config, history))
        history.new.append(index)
        if stages is not None and index not in history.ends:
            self._explained.append(stages)
        return index

    def end(self, reason: str) -> Delta:
        """Stop here; returns the text that was held back."""
        self.finish_reason = reason
        return Delta(self.number, self._writer.end(), (), reason)

    def completion(self) -> Completion:
        """The result so far."""
        kept = self._writer.kept
        text = self.prompt.text + self._writer.text if self.config.echo else self._writer.text
        logprobs = None if self.config.logprobs is None else tuple(self._logprobs[:kept])
        explained = None if self._explained is None else tuple(self._explained[:kept])
        return Completion(
            text,
            tuple(self._history.new[:kept]),
            self.prompt.ids,
            self.finish_reason or CANCELLED,
            self.seed,
            self.prompt.warnings,
            logprobs,
            self.prompt_logprobs,
            explained=explained,
        )


class Sampling:
    """The sequences of one prompt, sampled independently (greedily at temperature 0).

    Args:
        numbers: of the sequences; with the seed they are the keys of their draws.
        explained: keep the distributions after each step of the sampling chain.
        constraint: what the texts are held to.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt: Prompt,
        config: SamplingConfig,
        seed: int,
        numbers: Sequence[int] = (0,),
        explained: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        self.prompt, self.config = prompt, config
        self.sequences = [
            SequenceInProgress(prompt, tokenizer, config, seed, number, explained, constraint) for number in numbers
        ]
        self.width = len(self.sequences)
        self.new_slots = sum(sequence.new_slots for sequence in self.sequences)
        self.whole_prompt = config.echo and config.logprobs is not None

    @property
    def rows(self) -> list[SequenceInProgress]:
        return [sequence for sequence in self.sequences if sequence.running]

    def begin(self, logits: np.ndarray | None) -> list[Delta]:
        """Choose every sequence's first token; all see the same logits."""
        if self.whole_prompt:
            first = self.sequences[0]
            logprobs = prompt_logprobs(first.tokenizer, self.prompt.ids, logits, self.config.logprobs)
            for sequence in self.sequences:
                sequence.prompt_logprobs = logprobs
        if not self.rows:  # nothing was asked to be written
            return [Delta(sequence.number, "", (), sequence.finish_reason) for sequence in self.sequences]
        return self.accept([logits[-1]] * self.width)

    def accept(self, logits: Sequence[np.ndarray]) -> list[Delta]:
        return [delta for sequence, row in zip(self.rows, logits) if (delta := sequence.accept(row))]

    def end(self, reason: str) -> list[Delta]:
        return [sequence.end(reason) for sequence in self.rows]

    def completions(self) -> list[Completion]:
        return [sequence.completion() for sequence in self.sequences]


def token_logprob(tokenizer: TokenizerLike, logprobs: np.ndarray, index: int, top: int) -> TokenLogprob:
    """The ``TokenLogprob`` of the token ``index`` from ``logprobs`` (vocab,)."""
    return TokenLogprob(index, tokenizer.decode([index]), float(logprobs[index]), top_tokens(logprobs, top))


def prompt_logprobs(
    tokenizer: TokenizerLike, ids: Sequence[int], logits: np.ndarray, top: int
) -> tuple[TokenLogprob, ...]:
    """A TokenLogprob for each token of a prompt from its logits (len(ids), vocab)."""
    first = TokenLogprob(ids[0], tokenizer.decode([ids[0]]), None)
    rest = (
        token_logprob(tokenizer, log_softmax(logits[row, : tokenizer.vocab_size]), index, top)
        for row, index in enumerate(ids[1:])
    )
    return (first, *rest)
