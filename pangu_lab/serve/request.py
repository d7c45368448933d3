"""A request of the server: a client of the decode loop that any thread may hold, and the errors it may end with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.decode_loop import Request
from pangu_lab.generate.sampling import seed_of
from pangu_lab.generate.sequence import Completion, Delta, Prompt, Sampling
from pangu_lab.generate.text import TokenizerLike

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full; try again later."""


class Unavailable(Exception):
    """The server is starting, ending, or has lost its network."""


class TooLate(Exception):
    """The request did not end within its wall clock."""


class RequestFailed(Exception):
    """Something broke while this request's text was generated; the others continue."""


def nothing(*values: object) -> None:
    """A callback that does nothing."""


class ServedRequest(Request):
    """One prompt on its way through the scheduler; any thread may hold it.

    Iterating gives ``Delta`` until the request has ended, and raises its error: ``TooLate``, ``Unavailable``,
    ``InputError`` (no token is left to choose from) or ``RequestFailed``.

    Args:
        deadline: ``time.monotonic()`` at which it is too late.
        notify: called from the loop's thread when there is something to ``take``.
        keep_logits: keep the logits of what follows the prompt.

    Attributes:
        config, seed: what was asked.
        state: ``waiting``, ``running`` or ``done``.
        submitted, started, first_token, ended_at: ``time.monotonic()`` of each, None before.
        logits: (vocab,) of what follows the prompt, when ``keep_logits`` was asked for.
        on_cancel, on_end: called when it is cancelled, and before it counts as done; the scheduler's.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt: Prompt,
        config: SamplingConfig,
        owner: str,
        deadline: float,
        notify: Callable[[], None] = nothing,
        keep_logits: bool = False,
    ) -> None:
        self.seed = seed_of(config)
        super().__init__(
            prompt, Sampling(tokenizer, prompt, config, self.seed, range(config.num_return_sequences)), owner
        )
        self.config, self.deadline, self.keep_logits = config, deadline, keep_logits
        self.state, self.submitted = "waiting", time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended_at: float | None = None
        self.logits: np.ndarray | None = None
        self.on_cancel: Callable[[], None] = nothing
        self.on_end: Callable[[ServedRequest], None] = nothing
        self._deltas: list[Delta] = []
        self._changed = threading.Condition()
        self._notify = notify

    # ----------------------------------------------------------------------------------------- for whoever asked

    def __iter__(self) -> Iterator[Delta]:
        while (deltas := self.take(None)) is not None:
            yield from deltas

    def take(self, seconds: float | None = 0.0) -> list[Delta] | None:
        """The deltas since the last call, after waiting at most ``seconds`` for the first; None once all were taken.

        Raises:
            Exception: as iterating, once everything before it was taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._deltas or self.state == "done", seconds)
            deltas, self._deltas = self._deltas, []
        if not deltas and self.state == "done":
            if self.error:
                raise self.error
            return None
        return deltas

    def result(self) -> Completion:
        """Wait for the end.

        Raises:
            Exception: as iterating.
        """
        for _ in self:
            pass
        return self.completion

    def cancel(self) -> None:
        super().cancel()
        self.on_cancel()

    # ---------------------------------------------------------------------------------------------- for the loop

    def unwanted(self) -> bool:
        return super().unwanted() or time.monotonic() > self.deadline

    def admitted(self, slots: list[int]) -> None:
        self.state, self.started = "running", time.monotonic()
        super().admitted(slots)

    def begin(self, logits: np.ndarray | None) -> Sequence[Delta]:
        if self.keep_logits and logits is not None:
            self.logits = logits[-1]
        return super().begin(logits)

    def deliver(self, deltas: Sequence[Delta]) -> None:
        if self.tokens and self.first_token is None:
            self.first_token = time.monotonic()
        if deltas:
            with self._changed:
                self._deltas += deltas
                self._changed.notify_all()
            self._notify_safely()

    def ended(self, error: Exception | None) -> None:
        if self.late:
            error = TooLate("the request took longer than it may")
        elif error is not None and not isinstance(error, (InputError, Unavailable)):
            logger.error("a request failed; the others go on", exc_info=error)
            error = RequestFailed("this request failed inside the server, whose log says why; others go on")
        self.error, self.ended_at = error, time.monotonic()
        self.on_end(self)
        with self._changed:
            self.state = "done"
            self._changed.notify_all()
        self._notify_safely()

    @property
    def late(self) -> bool:
        """Whether it was removed because its time was over."""
        return self.taken_out and not self._cancelled.is_set()

    def _notify_safely(self) -> None:
        try:
            self._notify()
        except Exception:  # the waiting client may have gone; that must not stop this thread
            logger.exception("a request's deltas could not be delivered")
