"""One attempt of a launch on this host: its processes, and the monitoring of every rank.

A rank has failed when its process ends with an error, when its last heartbeat says so, when its
heartbeat stops (stopped, swapped out, dead), or when it is alive but makes no progress for too long: MindSpore's
ranks wait forever in a collective once one of them is gone. Of several ranks that hang, the one that has hung
longest is named, because the others wait for it. Ages are measured on this launcher's own clock, from the moment it
saw a file change, so that neither wrong clocks nor a suspended laptop raise a false alarm.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pangu_lab.identity import lives, parse_identity, send_signal
from pangu_lab.launch.logs import useful_lines
from pangu_lab.launch.plan import LaunchPlan
from pangu_lab.launch.processes import Processes
from pangu_lab.runs.heartbeat import BEFORE_TRAINING, Beat, beat_file, read_beat

SETTLE_SECONDS = 1.0  # after the first sign of trouble, to see which rank was first
LEAVE_SECONDS = 30.0  # for processes to exit after every rank has reported that it is done


@dataclass(frozen=True)
class Patience:
    """Timeouts in seconds: when one has passed, a rank counts as hung."""

    heartbeat: float = 30.0  # between two heartbeats
    start: float = 180.0  # until the first heartbeat
    join: float = 600.0  # until all ranks have joined
    compile: float = 3600.0  # until the first step is done, which compiles
    step: float = 600.0  # between two signs of progress, later


@dataclass(frozen=True)
class Trouble:
    """What went wrong.

    Attributes:
        rank: None for a process that is not a rank.
        what: a description.
        lines: the lines of its log that explain it.
        refused: whether it is a mistake in the user's settings, which another attempt would not fix.
        when: its time, to compare troubles with each other.
    """

    rank: int | None
    what: str
    lines: tuple[str, ...] = ()
    refused: bool = False
    when: float = 0.0


@dataclass
class _RankState:
    """What is known of a rank.

    Attributes:
        beat: its newest heartbeat.
        alive, moved: when, by our monotonic clock, its heartbeat and its progress last changed.
        found: when its process was last found, in seconds since 1970.
    """

    beat: Beat | None = None
    alive: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    found: float = 0.0


class Job:
    """Starts the plan's processes for this host, and monitors them."""

    def __init__(self, plan: LaunchPlan, patience: Patience):
        self.plan, self.patience = plan, patience
        self.run = plan.run
        self.processes = Processes()
        self.ranks = list(range(plan.world)) if plan.backend == "mpirun" else list(plan.here.ranks)
        self.known: dict[int, _RankState] = {}
        self._trouble_at = 0.0
        self._done_at = 0.0

    def start(self) -> None:
        for rank in self.ranks:
            with contextlib.suppress(FileNotFoundError):  # of an earlier attempt
                beat_file(self.run, rank).unlink()
        self.known = {rank: _RankState() for rank in self.ranks}
        for command in self.plan.here.commands:
            self.processes.start(command)

    # ---------------------------------------------------------------- monitoring

    def look(self) -> None:
        """Read the heartbeats of the ranks."""
        now = time.monotonic()
        self.processes.look()
        for rank, known in self.known.items():
            beat = read_beat(self.run, rank)
            if beat is None:
                continue
            if known.beat is None or beat.time != known.beat.time:
                known.alive = now
            if known.beat is None or beat.progress != known.beat.progress:
                known.moved = now
            known.beat = beat
            if rank_process(beat) is not None:
                known.found = time.time()

    def state(self, rank: int) -> str:
        beat = self.known[rank].beat
        return beat.state if beat else "starting"

    @property
    def step(self) -> int:
        """The step that all ranks of this host have reached."""
        return min((known.beat.step if known.beat else 0) for known in self.known.values())

    @property
    def began(self) -> bool:
        """Whether a rank of this host has got past joining the others."""
        return any(self.state(rank) not in BEFORE_TRAINING for rank in self.ranks)

    def finished(self) -> bool:
        """Whether all ranks are done and their processes gone; processes that stay are waited for only a while."""
        if all(process.poll() == 0 for _, process in self.processes.started):
            return True
        ranks = [process for command, process in self.processes.started if command.role != "scheduler"]
        gone = bool(ranks) and all(process.poll() == 0 for process in ranks)
        if not gone and any(self.state(rank) != "done" for rank in self.ranks):
            return False
        self._done_at = self._done_at or time.monotonic()
        patience = 5.0 if gone else LEAVE_SECONDS  # only the scheduler is left
        return time.monotonic() - self._done_at > patience

    def reason(self) -> str:
        """Why the ranks ended, as the first of them reported it."""
        beat = self.known[self.ranks[0]].beat
        return beat.note if beat and beat.note else "finished"

    # ---------------------------------------------------------------- trouble

    def trouble(self) -> Trouble | None:
        """The first thing that went wrong, once it is clear what that was; None while all is well."""
        found = self._ended() or self._hanging()
        if not found:
            return None
        self._trouble_at = self._trouble_at or time.monotonic()
        if time.monotonic() - self._trouble_at < SETTLE_SECONDS:
            return None
        named = self._named_first()
        return min(found, key=lambda t: (not t.refused, t.rank is None, t.rank != named, t.when))

    def _ended(self) -> list[Trouble]:
        """Ranks, launchers or a scheduler that ended with an error."""
        found = [trouble for rank in self.ranks if (trouble := self._reported(rank)) is not None]
        explained = {trouble.rank for trouble in found}
        for command, process in self.processes.started:
            code = process.poll()
            if code and command.rank not in explained - {None}:
                what = f"{command.name} {_ending(code)}"
                when = self.known[command.rank].found if command.rank is not None else 0.0
                found.append(Trouble(command.rank, what, tuple(useful_lines(command.log)), when=when))
        if self.plan.backend in ("msrun", "mpirun"):
            found += [
                trouble
                for rank in self.ranks
                if rank not in explained and (trouble := self._vanished(rank)) is not None
            ]
        return found

    def _reported(self, rank: int) -> Trouble | None:
        """A failure that the rank's last heartbeat reports."""
        beat = self.known[rank].beat
        if beat is None or beat.state not in ("failed", "refused"):
            return None
        what = beat.note if beat.state == "refused" else f"rank {rank} failed: {beat.note}"
        return Trouble(rank, what, self._lines(rank), beat.state == "refused", beat.time)

    def _vanished(self, rank: int) -> Trouble | None:
        """A rank that is not our own child: all we see is that its process is gone and reported no end."""
        beat = self.known[rank].beat
        if beat is None or beat.state == "done" or not _is_gone(beat):
            return None
        return Trouble(
            rank,
            f"rank {rank} ended without a word at step {beat.step}",
            self._lines(rank),
            when=self.known[rank].found,
        )

    def _named_first(self) -> int | None:
        """The rank that msrun or mpirun reports as the first to end: they kill the others, which then look alike."""
        log = next((c.log for c in self.plan.here.commands if c.role in ("msrun", "mpirun")), None)
        if log is None:
            return None
        with contextlib.suppress(OSError):
            text = Path(log).read_text(encoding="utf-8", errors="replace")
            match = re.search(r"Worker process (\d+) exit with exception", text)
            if match:
                pids = {known.beat.pid: rank for rank, known in self.known.items() if known.beat is not None}
                return pids.get(int(match[1]))
            match = re.search(r"Process name: \[\[\d+,\d+\],(\d+)\]|process rank (\d+) with PID", text)
            return int(match[1] or match[2]) if match else None
        return None

    def _lines(self, rank: int) -> tuple[str, ...]:
        return tuple(useful_lines(self.run / "logs" / f"rank_{rank}.log"))

    def _hanging(self) -> list[Trouble]:
        """Ranks without a heartbeat for too long; if there are none, a rank without progress for too long."""
        now, found = time.monotonic(), []
        for rank, known in self.known.items():
            beat = known.beat
            if beat is None:
                if now - known.alive > self.patience.start:
                    found.append(
                        Trouble(
                            rank,
                            f"rank {rank} has not started within {self.patience.start:g} s",
                            self._lines(rank),
                            when=known.alive,
                        )
                    )
            elif beat.state != "done" and now - known.alive > self._heartbeat_limit(beat):
                found.append(
                    Trouble(
                        rank,
                        f"rank {rank} hangs: no sign of life for {now - known.alive:.0f} s, at step "
                        f"{beat.step} ({beat.state})",
                        self._lines(rank),
                        when=known.alive,
                    )
                )
        return found or self._stalled()

    def _heartbeat_limit(self, beat: Beat) -> float:
        """Seconds between two heartbeats: MindSpore blocks all threads while it is imported and while it joins."""
        return max(
            self.patience.heartbeat,
            {"starting": self.patience.start, "joining": self.patience.join}.get(beat.state, 0.0),
        )

    def _stalled(self) -> list[Trouble]:
        """When a rank makes no progress for too long, the one that has made none for longest."""
        now = time.monotonic()
        late = [
            rank
            for rank, known in self.known.items()
            if known.beat is not None
            and known.beat.state != "done"
            and now - known.moved > self._progress_limit(known.beat)
        ]
        if not late:
            return []
        first = min(self.ranks, key=lambda rank: self._last_progress(rank))
        beat, moved = self.known[first].beat, self.known[first].moved
        what = f"rank {first} hangs: no progress for {now - moved:.0f} s, at step {beat.step} ({beat.state})"
        lines = self._lines(first)  # read before the stack is asked for, which goes to the same log
        return [Trouble(first, what, (*self._stack(first, beat), *lines), when=moved)]

    def _progress_limit(self, beat: Beat) -> float:
        patience = self.patience
        limits = {
            "starting": patience.start,
            "joining": patience.join,
            "joined": patience.compile,
            "compiling": patience.compile,
            "evaluating": patience.compile,
        }
        return limits.get(beat.state, patience.step)

    def _last_progress(self, rank: int) -> float:
        """When the rank last made progress, by its own clock: finer than the times at which we looked."""
        beat = self.known[rank].beat
        return beat.moved if beat is not None and beat.state != "done" else float("inf")

    def _stack(self, rank: int, beat: Beat) -> tuple[str, ...]:
        """Where in the program a rank that is alive hangs: at SIGUSR1 it writes its Python stack to its log."""
        process = parse_identity(beat.process)
        if process is None or not hasattr(signal, "SIGUSR1"):
            return ()
        log = self.run / "logs" / f"rank_{rank}.log"
        size = log.stat().st_size if log.exists() else 0
        if not send_signal(process, signal.SIGUSR1):
            return ()
        time.sleep(0.5)
        with contextlib.suppress(OSError), open(log, "rb") as handle:
            handle.seek(size)
            lines = handle.read().decode("utf-8", "replace").splitlines()
            threads = [i for i, line in enumerate(lines) if line.startswith(("Current thread", "Thread"))]
            return tuple(lines[threads[-1] + 1 : threads[-1] + 5]) if threads else ()  # the last is the main thread
        return ()

    # ---------------------------------------------------------------- the end

    def end(self) -> None:
        """End every process of this job, by pid."""
        beats = [known.beat for known in self.known.values() if known.beat is not None]
        here = [process for beat in beats if (process := rank_process(beat)) is not None]
        self.processes.end(here)


def rank_process(beat: Beat) -> psutil.Process | None:
    """The process that wrote ``beat``, if it is alive on this machine; None if it is gone or on another host."""
    process = parse_identity(beat.process)
    if process is None or not lives(process):
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid)
    return None


def _is_gone(beat: Beat) -> bool:
    """Whether the process that wrote ``beat`` is known to have ended; of another host's process this is not known."""
    process = parse_identity(beat.process)
    return process is not None and lives(process) is False


def _ending(code: int) -> str:
    """``ended with exit code 3``, ``was killed by SIGKILL (often: no memory left)``."""
    if code > 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"was killed by {name}" + (" (often: no memory left)" if name == "SIGKILL" else "")
