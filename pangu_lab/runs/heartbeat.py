"""``heartbeat/rank_N``: each rank of a run reports, once a second, that it is alive and what progress it has made.

A rank calls ``start_heartbeat`` once; from then on a thread writes the file, also while the main thread compiles or
waits in a collective (MindSpore lets other threads run in both; the longest gap measured while compiling was one
second). The training loop calls ``beat(state, step)`` whenever it makes progress: that costs nothing, and lets the
launcher tell a rank that hangs from one that works. ``beat`` does nothing unless a heartbeat was started, so a single
process may call it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import ConfigDict

from pangu_lab.errors import InputError
from pangu_lab.identity import own_identity
from pangu_lab.reading import read_json
from pangu_lab.schema import Count, Schema, Seconds

FOLDER = "heartbeat"
SECONDS = 1.0
BEFORE_TRAINING = ("starting", "joining", "joined")  # states with nothing to save: to stop, the rank is simply ended
# written to disk before ``beat`` returns: final states, and those in which MindSpore may block the heartbeat's thread
AT_ONCE = ("joining", "joined", "done", "failed", "refused")


@dataclass
class Beat:
    """The state of a rank, as it reports it.

    Attributes:
        state: "starting", "joining", "compiling", "training", …, or at the end "done", "failed" or "refused".
        note: why it ended.
        progress: grows with every call of ``beat``.
        moved: time of the last call of ``beat``, in seconds since 1970.
        time: time of the last write, in seconds since 1970.
        process: the rank's identity (``pangu_lab.identity``).
    """

    rank: int
    pid: int
    started: float
    host: str
    state: str = "starting"
    step: int = 0
    note: str = ""
    progress: int = 0
    moved: float = 0.0
    time: float = 0.0
    process: dict[str, Any] | None = None


class _Beat(Schema):
    """``heartbeat/rank_N``: the fields of ``Beat``."""

    model_config = ConfigDict(extra="forbid")

    rank: Count
    pid: Count
    started: Seconds
    host: str
    state: str = "starting"
    step: Count = 0
    note: str = ""
    progress: Count = 0
    moved: Seconds = 0.0
    time: Seconds = 0.0
    process: dict[str, Any] | None = None


def beat_file(run_folder: Path | str, rank: int) -> Path:
    return Path(run_folder) / FOLDER / f"rank_{rank}"


def read_beat(run_folder: Path | str, rank: int) -> Beat | None:
    """The rank's last heartbeat; None when there is none."""
    with contextlib.suppress(InputError):
        return Beat(**read_json(beat_file(run_folder, rank), "a rank's heartbeat", _Beat))
    return None


class Heartbeat:
    """Writes a rank's file until ``stop``; its thread calls ``each_time`` after every write."""

    def __init__(self, run_folder: Path | str, rank: int, each_time: Callable[[], None] | None = None):
        self.path = beat_file(run_folder, rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.state = Beat(
            rank,
            os.getpid(),
            psutil.Process().create_time(),
            socket.gethostname(),
            moved=time.time(),
            process=own_identity().to_dict(),
        )
        self.each_time = each_time
        self._lock = threading.Lock()  # guards only the state, so that a slow disk never holds up ``beat``
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self, state: str | None = None, step: int | None = None, note: str | None = None) -> None:
        with self._lock:
            begins = self.state.state in BEFORE_TRAINING and state not in (None, *BEFORE_TRAINING)
            self.state.state = self.state.state if state is None else state
            self.state.step = self.state.step if step is None else step
            self.state.note = self.state.note if note is None else note
            self.state.progress += 1
            self.state.moved = time.time()
        if begins or state in AT_ONCE:  # else a small run could be at its third step and look as if it had not begun
            self._write()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            self._write()
            if self.each_time is not None:
                self.each_time()

    def _write(self) -> None:
        """Replace the file; not flushed to the disk, because a power cut ends the rank as well."""
        with self._writing, contextlib.suppress(OSError):  # a full disk stops the heartbeat, but must not end the rank
            with self._lock:
                self.state.time = time.time()
                text = json.dumps(asdict(self.state))
            temporary = self.path.with_name(f".{self.path.name}")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


_current: Heartbeat | None = None


def start_heartbeat(run_folder: Path | str, rank: int, each_time: Callable[[], None] | None = None) -> Heartbeat:
    """Start this process's heartbeat; from now on ``beat`` reports to it."""
    global _current
    _current = Heartbeat(run_folder, rank, each_time)
    return _current


def silence() -> None:
    """Stop this process's heartbeat: the run and its files now belong to another process."""
    global _current
    if _current is not None:
        _current.stop()
        _current = None


def beat(state: str | None = None, step: int | None = None, note: str | None = None) -> None:
    """Report progress: a state was entered, or a step begun or finished. Does nothing without a heartbeat."""
    if _current is not None:
        _current.beat(state, step, note)
