"""One prompt on its way through the scheduler, and the queue in which it waits for its turn."""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional

from pangu_lab.config import SamplingConfig
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sampling import seed_of
from pangu_lab.generate.sequence import CANCELLED, Completion, Prompt, SequenceInProgress, TokenLogprob

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full; later it may not be."""


class Unavailable(Exception):
    """The server is starting, ending, or has lost its network."""


class TooLate(Exception):
    """The request did not end within its wall clock."""


class RequestFailed(Exception):
    """Something broke while this request's text was chosen or written; the others go on."""


@dataclass(frozen=True)
class News:
    """What one step added to one sequence: text that became safe to show, and the token when logprobs were asked
    for (it may come before its text)."""

    number: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: Optional[str] = None


class Ticket:
    """One prompt on its way through the scheduler; any thread may hold it.

    Iterating gives ``News`` until the request has ended, and raises what went wrong: ``TooLate``, ``Unavailable``,
    ``InputError`` (no token is left to choose from) or ``RequestFailed``.

    Attributes:
        prompt, config, seed: what was asked.
        state: ``waiting``, ``running`` or ``done``.
        submitted, started, first_token, ended: ``time.monotonic()`` of each, None before.
        logits: (vocab,) of what follows the prompt, when ``keep_logits`` was asked for.
    """

    def __init__(self, engine: Engine, prompt: Prompt, config: SamplingConfig, session: str, deadline: float,
                 notify: Optional[Callable[[], None]] = None) -> None:
        self.prompt, self.config, self.session, self.deadline = prompt, config, session, deadline
        self.seed = seed_of(config)
        self.state = "waiting"
        self.submitted = time.monotonic()
        self.started: Optional[float] = None
        self.first_token: Optional[float] = None
        self.ended: Optional[float] = None
        self._sequences = [SequenceInProgress(prompt, engine.tokenizer, config, self.seed, number)
                           for number in range(config.num_return_sequences)]
        self._places: list[int] = []
        self._cancelled = threading.Event()
        self.keep_logits, self.logits = False, None
        self._error: Optional[Exception] = None
        self._news: list[News] = []
        self._changed = threading.Condition()
        self._notify = notify or (lambda: None)
        self._wake: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[News]:
        while (news := self.take(None)) is not None:
            yield from news

    def take(self, seconds: Optional[float] = 0.0) -> Optional[list[News]]:
        """What came since the last time, after waiting ``seconds`` at most for the first; None: all was told.

        Raises:
            Exception: as iterating, once everything before it was taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._news or self.state == "done", seconds)
            news, self._news = self._news, []
        if not news and self.state == "done":
            if self._error:
                raise self._error
            return None
        return news

    def cancel(self) -> None:
        """End it after the step that is being made, and free its places; once is as good as twice."""
        self._cancelled.set()
        self._wake()

    @property
    def tokens(self) -> int:
        """Tokens chosen so far."""
        return sum(len(item.new_ids) for item in self._sequences)

    @property
    def places_needed(self) -> int:
        return len(self.prompt.read) + sum(item.new_places for item in self._sequences)

    @property
    def completion(self) -> Completion:
        """What there is; final once the state is ``done``. Of several, the first with the rest in ``others``."""
        first, *others = [item.completion() for item in self._sequences]
        return first.with_others(tuple(others))

    def result(self) -> Completion:
        """Wait for the end.

        Raises:
            Exception: as iterating.
        """
        for _ in self:
            pass
        return self.completion

    def _tell(self, item: SequenceInProgress, text: str, told_before: int) -> None:
        tokens = tuple(item.logprobs_so_far[told_before:]) if self.config.logprobs is not None else ()
        if text or tokens or not item.running:
            with self._changed:
                self._news.append(News(item.number, text, tokens, item.finish_reason))
                self._changed.notify_all()
            self._notify_safely()

    def _cut(self) -> None:
        """No sequence of it goes on, whatever state it is in."""
        for item in self._sequences:
            if item.running:
                with contextlib.suppress(Exception):  # the reason is set before the rest of the text is looked for
                    item.end(CANCELLED)

    def _notify_safely(self) -> None:
        try:
            self._notify()
        except Exception:  # whoever waits may have gone; that is no trouble of the thread that tells
            logger.exception("a request's news could not be told")

    def _end(self, error: Optional[Exception] = None) -> None:
        with self._changed:
            self.state, self.ended, self._error = "done", time.monotonic(), error
            self._changed.notify_all()
        self._notify_safely()


class FairQueue:
    """Waiting tickets, a queue for each session; the sessions take turns. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._sessions: collections.OrderedDict[str, collections.deque[Ticket]] = collections.OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def of_session(self, session: str) -> int:
        return len(self._sessions.get(session, ()))

    def put(self, ticket: Ticket) -> None:
        self._sessions.setdefault(ticket.session, collections.deque()).append(ticket)

    def first(self) -> Optional[Ticket]:
        return next(iter(self._sessions.values()))[0] if self._sessions else None

    def pop(self) -> Ticket:
        """Take the first; its session is last in turn from now on."""
        session, tickets = self._sessions.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._sessions[session] = tickets
        return ticket

    def remove(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        removed = [ticket for tickets in self._sessions.values() for ticket in tickets if unwanted(ticket)]
        for ticket in removed:
            self._sessions[ticket.session].remove(ticket)
            if not self._sessions[ticket.session]:
                del self._sessions[ticket.session]
        return removed

    def order(self) -> list[Ticket]:
        """All of them as they will be served if nobody comes."""
        rounds = itertools.zip_longest(*self._sessions.values())
        return [ticket for one_round in rounds for ticket in one_round if ticket is not None]
