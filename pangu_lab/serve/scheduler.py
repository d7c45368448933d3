"""The server's thread over the decode loop: admission, fairness, time limits, and recovery when the network fails.

One thread owns the network and steps the loop (``generate/decode_loop.py``), which admits and ends requests between two
tokens. This module adds a queue that serves sessions in turn, so that a client with a hundred prompts does not block a
client with one; a wall clock for each request; a draining shutdown; and the states of the server.

An error in one request ends only that request, and the others continue. Only an exception of the network itself ends
all requests; the network is then reloaded, a few times at most.

A sequence's tokens depend only on its prompt, settings and seed: draws are keyed by the request's seed, prompts
are fed alone, and decode steps are batch-invariant (``generate/batch_invariant.py``).
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.batch_invariant import make_batch_invariant
from pangu_lab.generate.decode_loop import Counts, DecodeLoop, FairQueue
from pangu_lab.generate.engine import Engine, check_prompt
from pangu_lab.generate.runner import NetworkLost
from pangu_lab.generate.sampling import check_ids, seed_of
from pangu_lab.generate.sequence import Prompt
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.request import Busy, RequestFailed, ServedRequest, Unavailable, nothing

logger = logging.getLogger(__name__)
RELOAD_WAITS = (1.0, 5.0, 30.0)  # seconds before each attempt to reload the network
RELOAD_WINDOW = 600.0  # more failures than attempts within this many seconds, and it has failed for good
IDLE_SECONDS = 0.5  # how often an idle scheduler looks for late requests; everything else wakes it
ENDED = "the server has ended"


@dataclass
class ServedCounts(Counts):
    """Counts since the start, for metrics; only the scheduler's thread writes."""

    cancelled: int = 0
    late: int = 0
    failed: int = 0


class Scheduler:
    """Runs requests over one engine until it is closed.

    Args:
        engine: nobody else should use its runner meanwhile.
        limits: bounds of the queue, the batch and the wall clock.
        batch_invariant: restrict a graph's decode steps to batch sizes that agree to the last bit; without this, few
            requests at once are faster. Where the C kernels decode it costs nothing.

    Attributes:
        counts: since the start.
        ready: set while requests are taken.
        on_step, on_end: called from the scheduler's thread after a decode step with its sequences and seconds, and
            after a request; for metrics.
    """

    def __init__(self, engine: Engine, limits: Limits = Limits(), batch_invariant: bool = True) -> None:
        self.engine, self.limits, self._batch_invariant = engine, limits, batch_invariant
        self.counts = ServedCounts()
        self.ready = threading.Event()
        self.on_step: Callable[[int, float], None] = nothing
        self.on_end: Callable[[ServedRequest], None] = nothing
        self._waiting = FairQueue()
        self._loop = DecodeLoop(engine.runner, self._waiting, limits.at_once, prefills=1)
        self._loop.counts = self.counts
        self._loop.on_step = lambda batch, seconds: _observe(self.on_step, batch, seconds)
        self._changed = threading.Condition()
        self._woken = False
        self._closing: str | None = None
        self._failure: Exception | None = None
        self._lost: str | None = None
        self._begun = False
        self._failures: list[float] = []
        self._encoding = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------- what others may call

    def wait_ready(self) -> None:
        """Wait until the network is warm.

        Raises:
            Exception: the error of the warm-up.
        """
        while not self.ready.wait(0.1):
            if self._failure:
                raise self._failure
            if not self._thread.is_alive():
                raise Unavailable("the scheduler has ended")

    def submit(
        self,
        prompts: Sequence[Prompt],
        configs: SamplingConfig | Sequence[SamplingConfig],
        session: str = "",
        seconds: float | None = None,
        notify: Callable[[], None] = nothing,
        keep_logits: bool = False,
    ) -> list[ServedRequest]:
        """Queue prompts, all or none.

        Args:
            configs: for all of them, or one each.
            session: the session whose turn it takes.
            seconds: wall clock from now, waiting included; the limit when not given.
            notify: called from the scheduler's thread after each delta.
            keep_logits: keep those of the first token, for looking at the choice.

        Raises:
            InputError: settings that cannot work with this model or its cache.
            Busy: the queue has no room for so many.
            Unavailable: not ready yet, or ending.
        """
        if isinstance(configs, SamplingConfig):
            configs = [configs] * len(prompts)
        deadline = time.monotonic() + min(seconds or self.limits.seconds, self.limits.seconds)
        requests = [
            self._request(prompt, config, session, deadline, notify, keep_logits)
            for prompt, config in zip(prompts, configs, strict=True)
        ]
        with self._changed:
            self._check_open(session, len(requests))
            for request in requests:
                self._waiting.put(request)
        self._wake()
        return requests

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; one thread at a time, since a tokenizer's word cutter keeps state."""
        with self._encoding:
            return self.engine.tokenizer.encode(text)

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text, each with its tokens; as ``encode``, one thread at a time."""
        with self._encoding:
            words = self.engine.tokenizer.words(text)
            return list(zip(words, self.engine.tokenizer.encode_words(words), strict=True))

    def position(self, request: ServedRequest) -> int:
        """How many requests will be served before this waiting one; 0 if it is running or has ended."""
        order = self._waiting.order()
        return order.index(request) + 1 if request in order else 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self._loop.sequences

    @property
    def state(self) -> str:
        """``ready``, or why not: ``starting``, ``ending``, ``failed``, in words for people."""
        if self._failure:
            return "the network has failed; see the server's log"
        return self._closing or self._lost or ("ready" if self.ready.is_set() else "the server is starting")

    def close(self, drain: bool = True, seconds: float | None = None) -> bool:
        """Admit nothing new; finish running and waiting requests, cut off after ``seconds`` (the limits' by default).

        Returns:
            Whether every request ended by itself.
        """
        with self._changed:
            self._closing = self._closing or "the server is ending"
        self.ready.clear()
        if drain:
            self._thread_idle(time.monotonic() + (self.limits.drain_seconds if seconds is None else seconds))
        with self._changed:
            left = [*self._waiting.order(), *self._loop.running]  # in this order, or one just being admitted is missed
            self._closing = ENDED
        for request in left:
            request.cancel()
        self._wake()
        self._thread.join(timeout=60)
        return not left

    # ------------------------------------------------------------------------------------------ what is checked

    def _request(self, prompt: Prompt, config: SamplingConfig, *more: Any) -> ServedRequest:
        """A request that can work with this model and its cache."""
        check_ids(config, self.engine.tokenizer.vocab_size)
        if config.num_beams > 1:
            raise InputError("beam search is not served: set num_beams to 1")
        choices, slots = min(self.limits.choices, self.limits.at_once), self.engine.runner.pool.slots
        if config.num_return_sequences > choices:
            raise InputError(f"n={config.num_return_sequences} is more than this server's {choices}")
        request = ServedRequest(self.engine.tokenizer, prompt, config, *more)
        if request.slots_needed > slots:
            raise InputError(
                f"this needs {request.slots_needed} positions of key-value cache and the bundle has "
                f"{slots}: ask for fewer new tokens or choices, or export it with more places"
            )
        request.on_cancel, request.on_end = self._wake, self._count
        return request

    def _check_open(self, session: str, count: int) -> None:
        if self._failure or self._closing or not self.ready.is_set():
            raise Unavailable(self.state)
        if count > min(self.limits.waiting, self.limits.waiting_per_session):
            raise InputError(f"{count} prompts at once are more than the queue of this server holds: send fewer")
        if len(self._waiting) + count > self.limits.waiting:
            raise Busy(
                f"{len(self._waiting)} requests wait already and the queue holds {self.limits.waiting}: "
                "try again in a moment"
            )
        if self._waiting.of_owner(session) + count > self.limits.waiting_per_session:
            raise Busy(
                f"{self._waiting.of_owner(session)} of your requests wait already and one session may have "
                f"{self.limits.waiting_per_session} waiting: try again in a moment"
            )

    # ------------------------------------------------------------------------------- the thread of the scheduler

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _thread_idle(self, until: float) -> None:
        while time.monotonic() < until and self._thread.is_alive() and (self._loop.running or len(self._waiting)):
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
            self._failure = error
            self.ready.clear()
        finally:
            self._loop.end_all(Unavailable(self.state))

    def _serve(self) -> bool:
        """Wait for the network and run requests until the server is closed, or the network lost; whether closed."""
        try:
            self._begin()
            while self._closing != ENDED or self._loop.running:
                self._wait_for_work()
                self.engine.runner.check()
                self._loop.step()
            return True
        except NetworkLost as error:
            self._refuse_all(str(error))
        except Exception as error:  # the network's: those of requests stay with them
            if isinstance(error, InputError) and not self.ready.is_set():
                raise
            self._prepare_reload(error)
        return self._closing is not None

    def _begin(self) -> None:
        self.engine.runner.recover(lambda: self._closing is None)
        if self._closing is None:
            self._warm_up()
        if self._closing is None:
            self._lost, self._begun = None, True
            self.ready.set()

    def _prepare_reload(self, error: Exception) -> None:
        """End running requests and wait a little; raises the error if the network never worked, or failed too often."""
        now = time.monotonic()
        self._failures = [*(then for then in self._failures if now - then < RELOAD_WINDOW), now]
        count = len(self._failures)
        if not self._begun or count > len(RELOAD_WAITS):
            raise error
        wait = RELOAD_WAITS[count - 1]
        logger.error("the network failed; it is loaded anew in %.0f s", wait, exc_info=error)
        self._refuse_all(
            f"the network has failed and is loaded anew in {wait:.0f} s (try {count} of "
            f"{len(RELOAD_WAITS)}): ask again after that"
        )
        self.engine.runner.drop()
        with self._changed:
            self._changed.wait_for(lambda: self._closing is not None, wait)

    def _refuse_all(self, reason: str) -> None:
        self._lost = reason
        self.ready.clear()
        self._loop.end_all(Unavailable(reason))

    def _warm_up(self) -> None:
        """Compile the calls in advance, and find the batch sizes that agree."""
        engine = self.engine
        try:
            engine.prefill([engine.tokenizer.eod_id] * min(2, engine.max_length))
            if engine.max_length > 2:
                engine.step(engine.tokenizer.eod_id)
        finally:
            engine.reset()
        if self._batch_invariant:
            make_batch_invariant(engine.runner, self.limits.at_once)

    def _wait_for_work(self) -> None:
        with self._changed:
            if not self._loop.running:
                self._changed.wait_for(lambda: self._woken or self._loop.next_in, IDLE_SECONDS)
            self._woken = False

    def _count(self, request: ServedRequest) -> None:
        self.counts.late += request.late
        self.counts.cancelled += request.taken_out and not request.late
        self.counts.failed += isinstance(request.error, (InputError, RequestFailed))
        _observe(self.on_end, request)


def _observe(observer: Callable[..., None], *values: Any) -> None:
    """Call an observer; its errors stop nothing."""
    try:
        observer(*values)
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
    check_prompt(ids, engine.tokenizer.vocab_size)
    if len(ids) > engine.max_length + measured:
        raise InputError(
            f"this model's maximum context length is {engine.max_length} tokens and the prompt has "
            f"{len(ids)}: shorten it"
        )
    return Prompt(
        engine.tokenizer.decode(list(ids)),
        tuple(ids),
        engine.max_length + 1 - len(ids),
        unread=max(len(ids) - engine.max_length, 0),
    )


def with_seed(config: SamplingConfig) -> SamplingConfig:
    """The same settings with the seed that will be used."""
    return dataclasses.replace(config, seed=seed_of(config))
