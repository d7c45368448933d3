"""The one decode loop: requests join and leave it between two tokens (continuous batching).

A ``Request`` is a prompt, a policy that chooses its next tokens, and a client that is told what was added. A step of
the loop removes cancelled requests, feeds the last token of every running sequence together, gives each request the
logits of its rows, and then admits waiting requests; each prompt is fed alone. A request is admitted when the cache
slots for everything it may generate are free, so a running request is never preempted; its sequences share the
prompt's slots, and a forked sequence shares those of its prefix.

The loop belongs to one thread and knows nothing of clients. ``generate_many`` adds all its requests and steps until
they have ended; ``stream`` is one request whose iterator steps; a beam search is a policy whose rows fork
(``beam.py``); the server is a thread that steps. Several loops may share a runner, each with its own slots.

A runner of several pipeline stages works on as many steps at the same time: the running requests then take turns in so
many groups, and each call of ``step`` ends the step of one group while those of the others go on.

An error in one request (choosing, decoding text, serving its client) ends only that request and is kept in its
``error``; an exception from a step itself comes from the network.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pangu_lab.generate.runner import Runner
from pangu_lab.generate.sequence import CANCELLED, Completion, Delta, Prompt, grouped

MAX_BATCH = 16  # sequences that one call of the network takes; more gains little on a CPU


class Row(Protocol):
    """A sequence that wants logits: its new tokens, and the cache slots of its fed positions."""

    @property
    def new_ids(self) -> Sequence[int]: ...

    slots: list[int]


class Policy(Protocol):
    """How the next tokens of a request are chosen from the logits of all its rows.

    Attributes:
        width: the most sequences it decodes at once.
        new_slots: the most cache slots it takes after those of the prompt.
        whole_prompt: whether it needs the logits of every prompt token, even when nothing is generated.
        rows: the sequences that continue; before ``begin`` those that will. They may fork and end in every ``accept``.
    """

    width: int
    new_slots: int
    whole_prompt: bool

    @property
    def rows(self) -> Sequence[Row]: ...

    def begin(self, logits: np.ndarray | None) -> Sequence[Delta]:
        """Take the logits of the prompt: of all its tokens, or of the last; None if none were needed."""

    def accept(self, logits: np.ndarray) -> Sequence[Delta]:
        """Choose a token for each row from logits (rows, vocab)."""

    def end(self, reason: str) -> Sequence[Delta]:
        """Stop choosing tokens."""

    def completions(self) -> Sequence[Completion]: ...


class Request:
    """One prompt on its way through a loop. A client is a subclass that overrides ``deliver`` and ``ended``.

    Attributes:
        prompt, policy: what is read, and how the rest is chosen.
        owner: whose turn it takes while it waits.
        slots: the cache slots it holds.
        tokens: chosen so far, over all its sequences.
        taken_out: whether it was removed before its own end.
        error: the exception that ended it.
    """

    def __init__(self, prompt: Prompt, policy: Policy, owner: str = "") -> None:
        self.prompt, self.policy, self.owner = prompt, policy, owner
        self.slots: list[int] = []
        self.tokens, self.taken_out = 0, False
        self.error: Exception | None = None
        self._unused: list[int] = []
        self._cancelled = threading.Event()

    @property
    def slots_needed(self) -> int:
        """Cache slots for everything it may generate."""
        return len(self.prompt.read) + self.policy.new_slots

    @property
    def completion(self) -> Completion:
        """The result so far; final once it has ended. Of several, the first with the rest in ``others``."""
        return grouped(self.policy.completions())

    def cancel(self) -> None:
        """End it after the current step; callable from any thread, and repeatedly."""
        self._cancelled.set()

    def unwanted(self) -> bool:
        """Whether it should be removed before its end."""
        return self._cancelled.is_set()

    def admitted(self, slots: list[int]) -> None:
        """It has been admitted, with slots for everything it may generate."""
        count = len(self.prompt.read)
        self.slots, self._unused = slots, slots[count:][::-1]
        for row in self.policy.rows:
            row.slots = slots[:count]

    def next_rows(self) -> Sequence[Row]:
        """The rows to feed, each with a slot for its last token."""
        rows = self.policy.rows
        for row in rows:
            row.slots.append(self._unused.pop())
        return rows

    def begin(self, logits: np.ndarray | None) -> Sequence[Delta]:
        """Its prompt has been fed."""
        return self.policy.begin(logits)

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Called after every step that added something, with what can be shown."""

    def ended(self, error: Exception | None) -> None:
        """It has left the loop and holds no slots; ``error`` is what failed in it or in the network."""
        self.error = error


class FairQueue:
    """Waiting requests, one queue per owner; the owners take turns. Any thread may look, and add requests."""

    def __init__(self) -> None:
        self._owners: collections.OrderedDict[str, collections.deque[Request]] = collections.OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._owners.values()))

    def of_owner(self, owner: str) -> int:
        return len(self._owners.get(owner, ()))

    def put(self, request: Request) -> None:
        with self._lock:
            self._owners.setdefault(request.owner, collections.deque()).append(request)

    def first(self) -> Request | None:
        with self._lock:
            return next(iter(self._owners.values()))[0] if self._owners else None

    def pop(self) -> Request:
        """Take the first; its owner then goes to the end of the turn order."""
        with self._lock:
            owner, requests = self._owners.popitem(last=False)
            request = requests.popleft()
            if requests:
                self._owners[owner] = requests
            return request

    def remove(self, unwanted: Callable[[Request], bool]) -> list[Request]:
        """Remove and return all unwanted requests."""
        with self._lock:
            removed = [request for requests in self._owners.values() for request in requests if unwanted(request)]
            for request in removed:
                self._owners[request.owner].remove(request)
                if not self._owners[request.owner]:
                    del self._owners[request.owner]
            return removed

    def order(self) -> list[Request]:
        """All of them in the order in which they would be admitted if no others came."""
        with self._lock:
            rounds = itertools.zip_longest(*self._owners.values())
            return [request for one_round in rounds for request in one_round if request is not None]


@dataclass
class Counts:
    """What happened since the start; only the loop's thread writes."""

    steps: int = 0
    step_seconds: float = 0.0
    prompts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass
class _Step:
    """A decode step that has begun: its requests with their numbers of rows."""

    parts: Sequence[tuple[Request, int]]
    logits: Callable[[], np.ndarray]
    started: float


class DecodeLoop:
    """Runs requests over one runner.

    Args:
        waiting: the queue, which sets the order of admission.
        at_once: sequences decoded together; a request with more than this runs alone.
        prefills: the most prompts fed in one step. With one, a running request waits for at most one prompt.

    Attributes:
        running: requests that hold slots.
        on_step: called after a decode step with its number of sequences and seconds.
    """

    def __init__(self, runner: Runner, waiting: FairQueue, at_once: int = MAX_BATCH, prefills: int = MAX_BATCH) -> None:
        self.runner, self.waiting, self.at_once, self.prefills = runner, waiting, at_once, prefills
        self.running: list[Request] = []
        self._begun: collections.deque[_Step] = collections.deque()
        self._ended = 0.0  # when the last step did
        self.counts = Counts()
        self.on_step: Callable[[int, float], None] = lambda batch, seconds: None

    @property
    def sequences(self) -> int:
        """How many are decoded together."""
        return sum(len(request.policy.rows) for request in list(self.running))

    @property
    def next_in(self) -> Request | None:
        """The first in turn, if the batch and the cache have room for it."""
        request = self.waiting.first()
        if request is None or request.slots_needed > self.runner.pool.free:
            return None
        return request if not self.running or self.sequences + request.policy.width <= self.at_once else None

    def step(self) -> list[Request]:
        """One token for every running sequence (of a group, in a pipeline), and the prompts that there is room for; returns
        ended requests."""
        ended = self._take_out([request for request in self.running if request.unwanted()])
        ended += self._decode()
        ended += self._take_out(self.waiting.remove(lambda request: request.unwanted()))
        return ended + self._prefill()

    def end_all(self, error: Exception | None = None) -> None:
        """Remove all requests, running and waiting, as they are."""
        self._begun.clear()
        for request in [*self.running, *self.waiting.remove(lambda request: True)]:
            self._finish(request, error)

    def _take_out(self, unwanted: list[Request]) -> list[Request]:
        """End unwanted requests; text held back so far is delivered."""
        for request in unwanted:
            request.taken_out = True
            with _its_own(request):
                request.deliver(request.policy.end(CANCELLED))
            self._finish(request, request.error)
        return unwanted

    def _admit(self, request: Request) -> bool:
        slots = self.runner.pool.take_now(request.slots_needed)
        if slots is None:  # another loop took them first
            return False
        self.running.append(request)
        self.waiting.pop()
        request.admitted(slots)
        return True

    def _prefill(self) -> list[Request]:
        """Feed the prompts that there is room for, as many at the same time as there are stages."""
        begun: collections.deque[tuple[Request, Callable[[], np.ndarray] | None]] = collections.deque()
        ended: list[Request] = []
        for _ in range(self.prefills):
            if len(begun) == self.runner.stages:
                ended += self._read(*begun.popleft())
            if (request := self.next_in) is None or not self._admit(request):
                break
            begun.append((request, self._begin_prompt(request)))
        for request, logits in begun:
            ended += self._read(request, logits)
        return ended

    def _begin_prompt(self, request: Request) -> Callable[[], np.ndarray] | None:
        ids, policy = request.prompt.read, request.policy
        if not policy.rows and not policy.whole_prompt:
            return None
        self.counts.prompts += 1
        self.counts.prompt_tokens += len(ids)
        return self.runner.start(*_prompt(ids, request.slots[: len(ids)], policy.whole_prompt))

    def _read(self, request: Request, logits: Callable[[], np.ndarray] | None) -> list[Request]:
        policy = request.policy
        return self._advance(request, policy.width if policy.rows else 0, request.begin, logits and logits())

    def _decode(self) -> list[Request]:
        """End the step that began first, after beginning others for those who are in none."""
        self._begin_steps()
        if not self._begun:
            return []
        step, start, ended = self._begun.popleft(), 0, []
        logits = step.logits()
        for request, count in step.parts:
            if request in self.running:  # it may have been taken out meanwhile
                ended += self._advance(request, count, request.policy.accept, logits[start : start + count])
            start += count
        now = time.monotonic()
        seconds, self._ended = now - max(step.started, self._ended), now
        self.counts.steps += 1
        self.counts.step_seconds += seconds
        self.on_step(start, seconds)
        return ended

    def _begin_steps(self) -> None:
        """Begin steps of groups of about the same size, one for each stage."""
        self._begun = collections.deque(
            step for step in self._begun if any(one in self.running for one, _ in step.parts)
        )
        busy = {id(request) for step in self._begun for request, _ in step.parts}
        idle = collections.deque(request for request in self.running if id(request) not in busy)
        size = -(-self.sequences // self.runner.stages)
        while idle and len(self._begun) < self.runner.stages:
            group = [idle.popleft()]
            rows = len(group[0].policy.rows)
            while idle and rows + len(idle[0].policy.rows) <= size:
                group.append(idle.popleft())
                rows += len(group[-1].policy.rows)
            parts = [(request, request.next_rows()) for request in group]
            started = time.monotonic()
            logits = begin_step(self.runner, [row for _, rows in parts for row in rows])
            self._begun.append(_Step([(request, len(rows)) for request, rows in parts], logits, started))

    def _advance(
        self, request: Request, count: int, choose: Callable[..., Sequence[Delta]], logits: np.ndarray | None
    ) -> list[Request]:
        """Choose ``count`` tokens of a request and tell its client; returns the request if that ended it."""
        with _its_own(request):
            deltas = choose(logits)
            request.tokens += count
            self.counts.new_tokens += count
            request.deliver(deltas)
        if request.policy.rows and request.error is None:
            return []
        self._finish(request, request.error)
        return [request]

    def _finish(self, request: Request, error: Exception | None) -> None:
        if request in self.running:
            self.running.remove(request)
        self.runner.pool.give_back(request.slots)
        request.slots = []
        request.ended(error)


@contextlib.contextmanager
def _its_own(request: Request) -> Iterator[None]:
    """An exception inside belongs to the request."""
    try:
        yield
    except Exception as error:
        request.error = error


def prefill(runner: Runner, ids: Sequence[int], slots: Sequence[int], all_rows: bool = False) -> np.ndarray:
    """Feed a prompt; logits of its last token (1, vocab), or of all of them (len(ids), vocab)."""
    return runner.run(*_prompt(ids, slots, all_rows))


def _prompt(ids: Sequence[int], slots: Sequence[int], all_rows: bool) -> tuple[np.ndarray | None, ...]:
    """What ``Runner.run`` takes of a prompt."""
    rows = np.arange(len(ids)) if all_rows else None
    return np.array([ids]), np.arange(len(ids))[None], np.array([slots]), np.array([slots]), rows


def begin_step(runner: Runner, rows: Sequence[Row]) -> Callable[[], np.ndarray]:
    """Feed the last token of every row; what this returns gives the logits (rows, vocab)."""
    lengths = np.array([len(row.slots) for row in rows])
    longest = int(lengths.max())
    read = np.array([row.slots + row.slots[-1:] * (longest - length) for row, length in zip(rows, lengths)])
    return runner.start(
        np.array([[row.new_ids[-1]] for row in rows]),
        (lengths - 1)[:, None],
        np.array([[row.slots[-1]] for row in rows]),
        read,
    )
