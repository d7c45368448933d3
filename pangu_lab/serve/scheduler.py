"""Many requests over one model: sequences join and leave the batch between two steps (continuous batching).

One thread owns the network. Between two decode steps it takes cancelled and late requests out, lets one waiting
request in (its prompt is fed alone, so that nobody waits for more than one prompt), and then feeds the last token
of every running sequence together. Requests wait in a bounded queue that serves sessions in turn: somebody with a
hundred prompts does not keep out somebody with one. A request is let in when the places of cache for all that it
may write are free, so nothing that runs is ever put out again.

What goes wrong with one request is its own: it ends with an error, and the others go on. Only what the network itself
raises is everybody's: their requests end, and it is loaded anew, a few times at most.

A sequence's tokens depend on its prompt, settings and seed alone: draws are keyed by the request's seed, prompts
are fed alone, and decode steps are brought to batch sizes that give the same bits (``generate/steady.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine, decode_step, prefill
from pangu_lab.generate.runner import NetworkLost
from pangu_lab.generate.sampling import check_ids, seed_of
from pangu_lab.generate.sequence import CANCELLED, Prompt, SequenceInProgress, prompt_logprobs
from pangu_lab.generate.steady import make_steady
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.ticket import Busy, FairQueue, News, RequestFailed, Ticket, TooLate, Unavailable

logger = logging.getLogger(__name__)
__all__ = ["Busy", "News", "RequestFailed", "Scheduler", "Ticket", "TooLate", "Unavailable", "prompt_of_ids", "with_seed"]
RELOAD_WAITS = (1.0, 5.0, 30.0)  # seconds before each time that a network is loaded anew
RELOAD_WINDOW = 600.0  # so many failures within so many seconds; one more, and it has failed for good
IDLE_SECONDS = 0.5  # how often an idle scheduler looks for late requests; it is woken for everything else


class _NetworkFailed(Exception):
    """The network itself raised something: the cause."""


@dataclass
class Counts:
    """What happened since the start, for metrics; only the scheduler's thread writes."""

    steps: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    step_seconds: float = 0.0
    cancelled: int = 0
    late: int = 0
    failed: int = 0


class Scheduler:
    """Runs requests over one engine until it is closed.

    Args:
        engine: whose runner nobody else should use meanwhile; its batch sizes are made steady.
        limits: bounds of the queue, the batch and the wall clock.
        steady: hold decode steps to batch sizes that agree to the last bit; without, single requests are quicker.

    Attributes:
        counts: since the start.
        ready: set while requests are taken.
        on_step, on_end: called from the scheduler's thread after a decode step with its sequences and seconds, and
            after a request; for metrics.
    """

    def __init__(self, engine: Engine, limits: Limits = Limits(), steady: bool = True) -> None:
        self.engine, self.limits, self._steady = engine, limits, steady
        self.counts = Counts()
        self.ready = threading.Event()
        self.on_step: Callable[[int, float], None] = lambda batch, seconds: None
        self.on_end: Callable[[Ticket], None] = lambda ticket: None
        self._waiting = FairQueue()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._woken = False
        self._closing: Optional[str] = None
        self._failure: Optional[Exception] = None
        self._lost: Optional[str] = None
        self._begun = False
        self._failures: list[float] = []
        self._encoding = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------- what others may call

    def wait_ready(self) -> None:
        """Wait until the network is warm.

        Raises:
            Exception: what went wrong while it was warmed.
        """
        while not self.ready.wait(0.1):
            if self._failure:
                raise self._failure
            if not self._thread.is_alive():
                raise Unavailable("the scheduler has ended")

    def submit(self, prompts: Sequence[Prompt], configs: SamplingConfig | Sequence[SamplingConfig],
               session: str = "", seconds: Optional[float] = None,
               notify: Optional[Callable[[], None]] = None, keep_logits: bool = False) -> list[Ticket]:
        """Queue prompts, all or none.

        Args:
            configs: for all of them, or one each.
            session: whose turn it is counted as.
            seconds: wall clock from now, waiting included; the limit when not given.
            notify: called from the scheduler's thread after each piece of news.
            keep_logits: keep those of the first token, for whoever wants to look at the choice.

        Raises:
            InputError: settings that cannot work with this model or its cache.
            Busy: the queue has no room for so many.
            Unavailable: not ready yet, or ending.
        """
        if isinstance(configs, SamplingConfig):
            configs = [configs] * len(prompts)
        deadline = time.monotonic() + min(seconds or self.limits.seconds, self.limits.seconds)
        tickets = [Ticket(self.engine, prompt, self._checked(config), session, deadline, notify)
                   for prompt, config in zip(prompts, configs, strict=True)]
        for ticket in tickets:
            self._check_fits(ticket)
        with self._changed:
            self._check_open(session, len(tickets))
            for ticket in tickets:
                ticket._wake, ticket.keep_logits = self._wake, keep_logits
                self._waiting.put(ticket)
        self._wake()
        return tickets

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; one thread at a time, since a tokenizer's word cutter keeps state."""
        with self._encoding:
            return self.engine.tokenizer.encode(text)

    def position(self, ticket: Ticket) -> int:
        """How many requests are served before this waiting one; 0 for one that runs or has ended."""
        with self._changed:
            order = self._waiting.order()
        return order.index(ticket) + 1 if ticket in order else 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return sum(item.running for ticket in list(self._running) for item in ticket._sequences)

    @property
    def state(self) -> str:
        """``ready``, or why not: ``starting``, ``ending``, ``failed``, in words for people."""
        if self._failure:
            return "the network has failed; see the server's log"
        return self._closing or self._lost or ("ready" if self.ready.is_set() else "the server is starting")

    def close(self, drain: bool = True, seconds: Optional[float] = None) -> bool:
        """Take nothing new; end what runs and waits, cut off after ``seconds`` (of the limits by default).

        Returns:
            Whether everything came to its own end.
        """
        with self._changed:
            self._closing = self._closing or "the server is ending"
        self.ready.clear()
        if drain:
            self._thread_idle(time.monotonic() + (self.limits.drain_seconds if seconds is None else seconds))
        with self._changed:
            left = [*self._running, *self._waiting.order()]
            self._closing = "the server has ended"
        for ticket in left:
            ticket.cancel()
        self._wake()
        self._thread.join(timeout=60)
        return not left

    # ------------------------------------------------------------------------------------------ what is checked

    def _checked(self, config: SamplingConfig) -> SamplingConfig:
        check_ids(config, self.engine.tokenizer.vocab_size)
        if config.num_beams > 1:
            raise InputError("beam search is not served: set num_beams to 1")
        if config.num_return_sequences > min(self.limits.choices, self.limits.at_once):
            raise InputError(f"n={config.num_return_sequences} is more than this server's "
                             f"{min(self.limits.choices, self.limits.at_once)}")
        return config

    def _check_fits(self, ticket: Ticket) -> None:
        places = self.engine.runner.pool.places
        if ticket.places_needed > places:
            raise InputError(f"this needs {ticket.places_needed} positions of key-value cache and the bundle has "
                             f"{places}: ask for fewer new tokens or choices, or export it with more places")

    def _check_open(self, session: str, count: int) -> None:
        if self._failure or self._closing or not self.ready.is_set():
            raise Unavailable(self.state)
        if count > min(self.limits.waiting, self.limits.waiting_per_session):
            raise InputError(f"{count} prompts at once are more than the queue of this server holds: send fewer")
        if len(self._waiting) + count > self.limits.waiting:
            raise Busy(f"{len(self._waiting)} requests wait already and the queue holds {self.limits.waiting}: "
                       "try again in a moment")
        if self._waiting.of_session(session) + count > self.limits.waiting_per_session:
            raise Busy(f"{self._waiting.of_session(session)} of your requests wait already and one session may have "
                       f"{self.limits.waiting_per_session} waiting: try again in a moment")

    # ------------------------------------------------------------------------------- the thread of the scheduler

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _thread_idle(self, until: float) -> None:
        while time.monotonic() < until and self._thread.is_alive() and (self._running or len(self._waiting)):
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            while not self._serve():
                pass
        except InputError as error:  # a process that computes cannot use its bundle, and says why
            self._failure = error
            if self._begun:
                logger.error("the network cannot be loaded anew: %s", error)
        except Exception as error:  # say so to everybody and take nothing more
            logger.exception("the network failed for good")
            self._failure = error.__cause__ if isinstance(error, _NetworkFailed) else error
            self.ready.clear()
        finally:
            self._end_all(Unavailable(self.state))

    def _serve(self) -> bool:
        """Wait for the network and run requests until the server is closed, or the network lost; whether closed."""
        try:
            self._begin()
            while self._closing != "the server has ended" or self._running:
                self._wait_for_work()
                self._step()
            return True
        except NetworkLost as error:
            self._refuse_all(str(error))
        except _NetworkFailed as error:
            self._prepare_reload(error)
        return self._closing is not None

    def _begin(self) -> None:
        self._network(lambda runner: runner.recover(lambda: self._closing is None))
        if self._closing is None:
            self._network(lambda runner: self._warm_up())
        if self._closing is None:
            self._lost, self._begun = None, True
            self.ready.set()

    def _network(self, call: Callable[..., Any], *values: Any) -> Any:
        """``call(runner, …)``, where whatever it raises is the network's.

        Raises:
            NetworkLost: processes have gone.
            InputError: while it is loaded; nothing that a request does comes here.
            _NetworkFailed: anything else.
        """
        try:
            return call(self.engine.runner, *values)
        except NetworkLost:
            raise
        except Exception as error:
            if isinstance(error, InputError) and not self.ready.is_set():
                raise
            raise _NetworkFailed(str(error)) from error

    def _prepare_reload(self, error: _NetworkFailed) -> None:
        """End what runs and wait a little; raises the error when the network never worked, or failed too often."""
        now = time.monotonic()
        self._failures = [*(then for then in self._failures if now - then < RELOAD_WINDOW), now]
        count = len(self._failures)
        if not self._begun or count > len(RELOAD_WAITS):
            raise error
        wait = RELOAD_WAITS[count - 1]
        logger.error("the network failed; it is loaded anew in %.0f s", wait, exc_info=error.__cause__)
        self._refuse_all(f"the network has failed and is loaded anew in {wait:.0f} s (try {count} of "
                         f"{len(RELOAD_WAITS)}): ask again after that")
        self.engine.runner.drop()
        with self._changed:
            self._changed.wait_for(lambda: self._closing is not None, wait)

    def _refuse_all(self, reason: str) -> None:
        self._lost = reason
        self.ready.clear()
        self._end_all(Unavailable(reason))

    def _warm_up(self) -> None:
        """Compile what will be called, and find the batch sizes that agree."""
        engine = self.engine
        try:
            engine.prefill([engine.tokenizer.eod_id] * min(2, engine.max_length))
            if not self._steady and engine.max_length > 2:
                engine.prefill([engine.tokenizer.eod_id])
                engine.step(engine.tokenizer.eod_id)
        finally:
            engine.reset()
        if self._steady:
            make_steady(engine.runner, self.limits.at_once)

    def _wait_for_work(self) -> None:
        with self._changed:
            if not self._running:
                self._changed.wait_for(lambda: self._woken or self._startable(), IDLE_SECONDS)
            self._woken = False
        self._network(lambda runner: runner.check())

    def _startable(self) -> Optional[Ticket]:
        """The first in turn, when slots and places are free for it."""
        ticket = self._waiting.first()
        if ticket is None or self.running + len(ticket._sequences) > self.limits.at_once:
            return None
        return ticket if ticket.places_needed <= self.engine.runner.pool.free else None

    def _step(self) -> None:
        self._drop_unwanted()
        with self._changed:
            ticket = self._waiting.pop() if self._startable() else None
            if ticket:
                self._running.append(ticket)
        if ticket:
            self._start(ticket)
        items = [(ticket, item) for ticket in self._running for item in ticket._sequences if item.running]
        if items:
            self._decode(items)
        for ticket in [ticket for ticket in self._running if not any(item.running for item in ticket._sequences)]:
            self._finish(ticket)

    def _drop_unwanted(self) -> None:
        now = time.monotonic()

        def unwanted(ticket: Ticket) -> bool:
            return ticket._cancelled.is_set() or now > ticket.deadline

        with self._changed:
            dropped = self._waiting.remove(unwanted)
        for ticket in [*dropped, *filter(unwanted, list(self._running))]:
            late = not ticket._cancelled.is_set()
            for item in ticket._sequences:
                if item.running:
                    with self._own(ticket):
                        told = len(item.logprobs_so_far)
                        ticket._tell(item, item.end(CANCELLED), told)
            self.counts.late += late
            self.counts.cancelled += not late
            self._finish(ticket, TooLate("the request took longer than it may") if late else None)

    def _start(self, ticket: Ticket) -> None:
        """Feed the prompt and choose the first token of each of its sequences."""
        ticket.state, ticket.started = "running", time.monotonic()
        items, whole = ticket._sequences, ticket.config.echo and ticket.config.logprobs is not None
        with self._own(ticket):
            self._take_places(ticket)
            if whole or items[0].running:
                self._read_prompt(ticket, whole)
            for item in items:
                if not item.new_ids and not item.running:  # nothing was asked to be written
                    ticket._tell(item, "", 0)

    def _take_places(self, ticket: Ticket) -> None:
        """Places of cache for all that it may write; the prompt's are shared.

        Raises:
            InputError: there are none, which happens only when somebody else uses this network too.
        """
        ticket._places = self.engine.runner.pool.take(ticket.places_needed)
        start = len(ticket.prompt.read)
        shared = ticket._places[:start]
        for item in ticket._sequences:
            item.places = shared + ticket._places[start:start + item.new_places]
            start += item.new_places

    def _read_prompt(self, ticket: Ticket, whole: bool) -> None:
        read = ticket.prompt.read
        logits = self._network(prefill, read, ticket._places[:len(read)], whole)
        self.counts.prompts += 1
        self.counts.prompt_tokens += len(read)
        if whole:
            told = prompt_logprobs(self.engine.tokenizer, ticket.prompt.ids, logits, ticket.config.logprobs)
            for item in ticket._sequences:
                item.prompt_logprobs = told
        if ticket.keep_logits:
            ticket.logits = logits[-1]
        for item in ticket._sequences:
            self._accept(ticket, item, logits[-1])

    def _decode(self, items: Sequence[tuple[Ticket, SequenceInProgress]]) -> None:
        started = time.monotonic()
        logits = self._network(decode_step, [item for _, item in items])
        for (ticket, item), row in zip(items, logits):
            self._accept(ticket, item, row)
        seconds = time.monotonic() - started
        self.counts.steps += 1
        self.counts.step_seconds += seconds
        _observe(self.on_step, len(items), seconds)

    def _accept(self, ticket: Ticket, item: SequenceInProgress, logits: Any) -> None:
        if not item.running:
            return
        with self._own(ticket):
            told = len(item.logprobs_so_far)
            text = item.accept(logits)
            self.counts.new_tokens += 1
            ticket.first_token = ticket.first_token or time.monotonic()
            ticket._tell(item, text, told)

    @contextlib.contextmanager
    def _own(self, ticket: Ticket) -> Iterator[None]:
        """What goes wrong within is this request's, and ends it alone; but not what the network raises."""
        try:
            yield
        except (NetworkLost, _NetworkFailed):
            raise
        except Exception as error:
            if not isinstance(error, InputError):
                logger.error("a request failed; the others go on", exc_info=error)
                error = RequestFailed("this request failed inside the server, whose log says why; others go on")
            self.counts.failed += 1
            ticket._error = error
            ticket._cut()

    def _finish(self, ticket: Ticket, error: Optional[Exception] = None) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
        self.engine.runner.pool.give_back(ticket._places)
        ticket._places = []
        ticket._end(error or ticket._error)
        _observe(self.on_end, ticket)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            left = [*self._running, *self._waiting.remove(lambda ticket: True)]
        for ticket in left:
            ticket._cut()
            self._finish(ticket, error)


def _observe(told: Callable[..., None], *values: Any) -> None:
    """Tell whoever counts; what counts wrongly ends nothing."""
    try:
        told(*values)
    except Exception:
        logger.exception("an observer of the scheduler failed")


def prompt_of_ids(engine: Engine, ids: Sequence[int], measured: bool = False) -> Prompt:
    """A prompt given as tokens.

    Args:
        measured: nothing is written after it, so it may be one token longer: the last one need not be read.

    Raises:
        InputError: none, too many, or one outside the vocabulary.
    """
    if not len(ids):
        ids = [engine.tokenizer.eod_id]
    for index in ids:
        if not 0 <= index < engine.tokenizer.vocab_size:
            raise InputError(f"token {index} is outside the vocabulary: there are 0 to "
                             f"{engine.tokenizer.vocab_size - 1}")
    if len(ids) > engine.max_length + measured:
        raise InputError(f"this model's maximum context length is {engine.max_length} tokens and the prompt has "
                         f"{len(ids)}: shorten it")
    return Prompt(engine.tokenizer.decode(list(ids)), tuple(ids), engine.max_length + 1 - len(ids),
                  unread=max(len(ids) - engine.max_length, 0))


def with_seed(config: SamplingConfig) -> SamplingConfig:
    """The same settings with the seed that will be used."""
    return dataclasses.replace(config, seed=seed_of(config))
