"""One model over several processes, on this host and others: which processes compute, and recovery when one is lost.

The front end is the process that generates, evaluates or listens to clients; it runs no network. It runs this host's rank
processes, agents (``pangu-lab serve --agent``) run those of other hosts, and each process registers here. When there is one
for every rank, the front end starts MindSpore's scheduler, assigns the ranks, and from then on sends every call of the
network to all ranks of the first pipeline stage. The first rank of a stage answers: with hidden rows, which the front end
passes on to the next stage, or with logits from the last. So calls follow each other through the stages, which work at the
same time. (MindSpore on CPU has no messages between two ranks but sums over both, which take five times as long for a row.)
Within a stage the ranks are tensor parallel. Rank 0 is always on this host.

When a rank ends, fails or stops responding, the others would wait for it in a collective for ever. So all are ended, their
keepers start new ones, and the front end gathers them again. Meanwhile requests are refused, and those that were running
get an error.

Why not the collectives of one long-lived group: MindSpore's cannot replace a member. Why rank 0 is not in this
process: a process that waits in a collective for a dead one can only be killed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.cluster.rank import ANY, Keeper, Mpirun, process_log
from pangu_lab.cluster.shared import SharedModel
from pangu_lab.cluster.wire import Gone, Link, authenticated, cut
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.runner import NetworkLost, Runner, last_rows, together
from pangu_lab.launch.hosts import free_port
from pangu_lab.launch.plan import LAUNCHER, clean_environment
from pangu_lab.memory import tokens_at_once

logger = logging.getLogger(__name__)
LOADING_SECONDS = 1800.0  # for all ranks to join and load
STEP_SECONDS = 600.0  # for one call of the network, its compilation included
POLL_SECONDS = 0.1
CHUNK = 64  # tokens of a prompt from which on a stage's time grows with their number
HANDSHAKES = 16  # at once; each has a thread and a timer


@dataclass
class _Member:
    """A rank process that has registered."""

    link: Link
    host: str
    ranks: tuple[int, ...]
    local: bool
    pid: int | None = None
    rank: int = -1
    ready: bool = False
    lost: str | None = None
    refused: str | None = None

    def listen(self, changed: Callable[[], None], made: Callable[[_Member, Any, np.ndarray], None]) -> None:
        """Receive its messages until it ends; ``made`` gets what it computed, and for which call."""
        try:
            while True:
                head, arrays = self.link.receive()
                if head["kind"] == "made" and arrays:
                    made(self, head.get("call"), arrays[0])
                elif head["kind"] == "ready":
                    self.ready = True
                elif head["kind"] == "refused":
                    self.refused = str(head.get("text"))
                changed()
        except Gone as error:
            self.lost = str(error)
            changed()


@dataclass
class _Call:
    """A call of the network on its way through the stages."""

    arrays: Sequence[np.ndarray]
    logits: np.ndarray | None = None
    lost: bool = False


class Cluster:
    """The ranks of a model over several processes.

    Args:
        shared: the model.
        nproc: ranks on this host; agents bring the others, unless
        mpirun: is given, which then starts all of them.
        address, port: where ranks reach this front end; a free port when 0.
        key: shared with the agents.
        devices, log_dir: of this host's ranks, as ``Keeper`` takes them.

    Attributes:
        world: the number of ranks.
        port: the port it listens on.
        state: a readable description.
    """

    def __init__(
        self,
        shared: SharedModel,
        nproc: int,
        address: str,
        port: int,
        key: bytes,
        devices: Sequence[int] = (),
        log_dir: Path | str | None = None,
        mpirun: Mpirun | None = None,
    ) -> None:
        self._log_dir = log_dir
        self.shared, self.world = shared, shared.world
        if mpirun is None:
            shared.check_ranks(nproc)
        self.address, self.key, self.state = address, key, "the processes start"
        self._members: list[_Member] = []
        self._gathered: list[_Member] = []
        self._calls: dict[int, _Call] = {}
        self._numbers, self._starting = itertools.count(), threading.Lock()
        self._changed = threading.Condition()
        self._unknown: list[Any] = []  # connections that have not shown that they know the key; the oldest first
        self._scheduler: subprocess.Popen | None = None
        self._closed = False
        try:
            self._listener = Listener((address, port), backlog=64)
        except OSError as error:
            raise InputError(
                f"cannot wait for ranks on {address}:{port} ({error}): give another --master-addr or --master-port"
            ) from None
        self.port = self._listener.address[1]
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()
        count = nproc if mpirun is None else 1
        try:
            self._keeper = Keeper(
                shared.source,
                count,
                (address, self.port),
                key,
                local=True,
                layout=shared.asked,
                devices=devices,
                log_dir=log_dir,
                mpirun=mpirun,
            )
        except BaseException:
            self._stop_listening()
            raise

    # ------------------------------------------------------------------------------------------ who offers itself

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:  # closed, or no descriptor is left
                time.sleep(POLL_SECONDS)
                continue
            with self._changed:
                self._unknown.append(connection)
                if len(self._unknown) > HANDSHAKES:  # those that say nothing must keep nobody out
                    cut(self._unknown.pop(0))
            threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: Any) -> None:
        try:
            link = authenticated(connection, self.key)
        except Gone:
            return
        finally:
            with self._changed:
                if connection in self._unknown:
                    self._unknown.remove(connection)
        try:
            member = self._offered(link)
        except (Gone, ValueError) as error:
            self._say(f"a process that offered itself as a rank is refused: {error}")
            return link.close()
        with self._changed:
            self._members.append(member)
            self._changed.notify_all()
        member.listen(self._notify, self._made)

    def _offered(self, link: Link) -> _Member:
        """The process that offers itself.

        Raises:
            Gone, ValueError: it does not, or its ranks are of another export.
        """
        head, _ = link.receive()
        ranks = head.get("ranks")
        if ranks == ANY:
            ranks = list(range(self.world))
        if head["kind"] != "offer" or not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
            raise ValueError("it sent something that is no offer")
        if head.get("export_id") != self.shared.identity:
            raise ValueError(
                f"{head.get('host')} has the ranks of another export or checkpoint: copy the same one there"
            )
        return _Member(link, str(head.get("host")), tuple(ranks), bool(head.get("local")), head.get("pid"))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _say(self, text: str) -> None:
        if text != self.state:
            logger.warning("%s", text)  # the user who started this process needs to know what it waits for
        self.state = text

    # ------------------------------------------------------------------------------------------------- gathering

    def gather(self, go_on: Callable[[], bool] = lambda: True, once: bool = False) -> None:
        """Wait until every rank has registered and loaded its part, while ``go_on()``.

        Args:
            once: refuse when a process of this host fails meanwhile, which is otherwise started again.

        Raises:
            InputError: a rank cannot use its part of the model.
        """
        if lost := self._lost_rank():
            self._say(f"{lost}; waiting for another")
        self._let_go()
        while go_on() and not self._closed:
            if self._keeper.refused.is_set():
                raise InputError(f"{self.shared.source}: a process cannot open it{self._keeper.said()}")
            if once and self._keeper.failed.is_set():
                raise InputError(
                    f"{self.shared.source}: a process ended before all had loaded it{self._keeper.said(False)}"
                )
            chosen = self._choose()
            if chosen and self._begin(chosen, go_on):
                self._gathered = chosen
                return self._say("every process is ready")
            if chosen:
                self._let_go()
            with self._changed:
                self._changed.wait(POLL_SECONDS)

    def _choose(self) -> list[_Member]:
        """A member for each rank, in order; none while some rank has no process."""
        with self._changed:
            self._members = [member for member in self._members if member.lost is None]
            free: dict[int, _Member] = {}
            for member in sorted(self._members, key=lambda one: (not one.local, len(one.ranks))):
                wanted = [rank for rank in member.ranks if rank not in free and (rank > 0 or member.local)]
                if wanted:
                    free[wanted[0]] = member
        missing = [rank for rank in range(self.world) if rank not in free]
        if missing:
            self._say(f"waiting for the processes of rank {', '.join(map(str, missing))} of {self.world}")
            return []
        return [free[rank] for rank in range(self.world)]

    def _begin(self, chosen: Sequence[_Member], go_on: Callable[[], bool]) -> bool:
        """Start the group; returns whether all are ready."""
        environment = {
            "MS_WORKER_NUM": str(self.world),
            "MS_SCHED_HOST": self.address,
            "MS_SCHED_PORT": str(free_port(self.address)),
            "MS_RETRY_INTERVAL_LOWER": "0",
            "MS_RETRY_INTERVAL_UPPER": "1",
        }
        self._start_scheduler(environment)
        self._say("the processes join and load the model")
        for rank, member in enumerate(chosen):
            member.rank = rank
            with contextlib.suppress(Gone):
                member.link.send("start", rank=rank, environment=environment, **self.shared.order)
        until = time.monotonic() + LOADING_SECONDS
        while go_on() and not self._closed and time.monotonic() < until:
            for member in chosen:
                if member.refused:
                    raise InputError(f"rank {member.rank} on {member.host}: {member.refused}")
            if any(member.lost is not None for member in chosen):
                return False
            if all(member.ready for member in chosen):
                return True
            with self._changed:
                self._changed.wait(POLL_SECONDS)
        return False

    def _start_scheduler(self, environment: dict[str, str]) -> None:
        launcher = {LAUNCHER: f"{os.getpid()}@{socket.gethostname()}"}
        with process_log(self._log_dir, "scheduler") as log:
            self._scheduler = subprocess.Popen(
                [sys.executable, "-m", "pangu_lab.launch.worker", "--run", "."],
                stdin=subprocess.DEVNULL,
                stdout=log or subprocess.DEVNULL,
                stderr=log or subprocess.DEVNULL,
                start_new_session=True,
                env=clean_environment({**environment, **launcher, "MS_ROLE": "MS_SCHED"}),
            )

    def _let_go(self) -> None:
        """End the group: the processes of all its ranks, which cannot compute without the lost one."""
        with self._changed:
            gone = [member for member in self._members if member.rank >= 0]
            self._members = [member for member in self._members if member.rank < 0]
            self._gathered = []
            for call in self._calls.values():
                call.lost = True
            self._calls.clear()
        for member in gone:
            member.link.close()
        if gone:
            self._keeper.end([member.pid for member in gone if member.local and member.pid is not None])
        if self._scheduler is not None:
            self._scheduler.kill()  # it waits for ranks that will never disconnect
            self._scheduler.wait()
            self._scheduler = None

    # ------------------------------------------------------------------------------------------------- computing

    def start(self, arrays: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Begin one call of the network; what this returns waits for the logits. Calls reach every stage in the order in
        which they began.

        Raises:
            NetworkLost: a rank is gone, before or meanwhile.
        """
        if not self._gathered:
            raise NetworkLost(self.state)
        call = _Call(arrays)
        with self._starting:
            number = next(self._numbers)
            self._calls[number] = call
            try:
                self._send(0, number, arrays)
            except Gone:
                raise self._lost() from None
        return functools.partial(self._logits, call)

    def _send(self, stage: int, number: int, arrays: Sequence[np.ndarray]) -> None:
        """A call to all ranks of a stage."""
        first = stage * self.shared.layout.tensor
        for member in self._gathered[first : first + self.shared.layout.tensor]:
            member.link.send("call", *arrays, call=number)

    def _made(self, member: _Member, number: Any, array: np.ndarray) -> None:
        """A stage's part of a call is done: on to the next stage, or the end."""
        call, stage = self._calls.get(number), member.rank // self.shared.layout.tensor
        if call is None:
            return
        if stage < self.shared.layout.pipeline - 1:
            with contextlib.suppress(Gone):  # whoever waits for the call sees it too
                self._send(stage + 1, number, [array, *call.arrays[1:]])
            return
        del self._calls[number]
        call.logits = array

    def _logits(self, call: _Call) -> np.ndarray:
        until = time.monotonic() + STEP_SECONDS
        with self._changed:
            while call.logits is None:
                if call.lost or time.monotonic() > until or any(member.lost is not None for member in self._gathered):
                    raise self._lost()
                self._changed.wait(POLL_SECONDS)
        return call.logits

    def check(self) -> None:
        """Check that all ranks are alive.

        Raises:
            NetworkLost: names one that does not.
        """
        if not self._gathered or any(member.lost is not None for member in self._gathered):
            raise self._lost()

    def _lost(self) -> NetworkLost:
        self.state = self._lost_rank() or self.state
        return NetworkLost(self.state)

    def _lost_rank(self) -> str:
        """Which rank is lost and why; empty when none is."""
        gone = [
            f"rank {member.rank} on {member.host} is lost ({member.lost})"
            for member in self._gathered
            if member.lost is not None
        ]
        return gone[0] if gone else ""

    def _stop_listening(self) -> None:
        self._closed = True
        with contextlib.suppress(
            OSError
        ):  # a connection ends the wait for one; closing alone would leave the port open
            socket.create_connection((self.address, self.port), POLL_SECONDS).close()
        with contextlib.suppress(OSError):
            self._listener.close()

    def close(self) -> None:
        """End this host's processes; agents keep theirs and offer them to the next front end."""
        self._stop_listening()
        self.state = "the processes of this model have ended: load it again"
        self._let_go()
        with self._changed:
            for member in self._members:
                member.link.close()
        self._keeper.close()


class ClusterRunner(Runner):
    """A runner whose network is in the ranks of a cluster. It begins a call before the earlier ones have ended: each stage
    works on another."""

    def __init__(self, cluster: Cluster) -> None:
        config = cluster.shared.config
        super().__init__(
            None, config.vocab_size, config.num_positions, cluster.shared.slots, at_once=tokens_at_once(config)
        )
        self.cluster, self.stages = cluster, cluster.shared.layout.pipeline

    def call(self, *arrays: np.ndarray) -> np.ndarray:
        return self._begin(arrays)()

    def run(self, *arrays: Any) -> np.ndarray:
        return self.start(*arrays)()

    def start(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        write: np.ndarray,
        read: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> Callable[[], np.ndarray]:
        calls = self._calls(ids, positions, write, read, last_rows(ids) if rows is None else rows)
        begun = [(self._begin(arrays), places) for arrays, places in calls]
        return lambda: together([(logits(), places) for logits, places in begun])

    def _begin(self, arrays: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        return self.cluster.start([np.ascontiguousarray(array, np.int32) for array in arrays])

    def _most_at_once(self, tokens: int) -> int | None:
        """In a pipeline the chunks of a long prompt follow each other through the stages."""
        return self.at_once if self.stages == 1 else min(self.at_once, max(CHUNK, -(-tokens // (2 * self.stages))))

    def check(self) -> None:
        self.cluster.check()

    def recover(self, go_on: Callable[[], bool]) -> None:
        self.cluster.gather(go_on)


def cluster_engine(cluster: Cluster) -> Engine:
    """An engine over a cluster."""
    shared = cluster.shared
    return Engine(ClusterRunner(cluster), shared.require_tokenizer(), shared.sampling, shared.name)
