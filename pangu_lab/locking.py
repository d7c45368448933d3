"""One process at a time: a lock that holds across processes, containers and hosts that share a disk.

It combines two things. A system lock on the file (``flock``): it ends with the process, however that ends, and
reaches every process of this kernel, in any namespace. ``flock`` and not ``fcntl.lockf``, because the
latter is lost as soon as any descriptor of the file is closed in the process, as each reading of the record does;
on NFS, Linux forwards both to the server. And a record in the same file: the holder, a
random token, and a number that grows with every beat, for disks whose locks do not reach other hosts. If the record
is of another host and the file is not locked, a starting process watches that number on its own clock: if it grows, the
holder is alive; if it stands still for ``WATCH_SECONDS``, the holder is dead. Clocks of other hosts are never used.

A holder that was suspended meanwhile finds another token in the record. It has lost the lock, reports that through
``held`` and ``check``, and must write no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.identity import Identity, lives, own_identity, parse_identity
from pangu_lab.reading import parse_json

try:
    import fcntl
except ImportError:  # not a Unix: the record alone must do
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
BEAT_SECONDS = 2.0
WATCH_SECONDS = 30.0  # a holder on another host that is silent for this long is dead; its beats come every 2 s
RETRY_SECONDS = 0.5  # a process that only checks whether the lock is taken holds it for an instant
LATEST = 1e11  # seconds since 1970 that a calendar can still show
SIZE = 1024  # of a record, blanks included: overwritten in one call, so that it is never partly written


class Held(InputError):
    """Another process holds the lock; the text says who."""


class LockLost(RuntimeError):
    """The lock was taken over from this process: it must write no more."""


@dataclass(frozen=True)
class Record:
    """What the holder says of itself. ``since`` (seconds since 1970) is for people only."""

    process: Identity
    token: str
    beats: int
    since: float
    firm: bool  # whether the holder has the system's lock as well

    @property
    def place(self) -> str:
        """Where it is and since when, for people."""
        here = own_identity()
        apart = self.process.kernel == here.kernel and self.process.namespace != here.namespace
        return (
            f"on host {self.process.host}{', in another container,' if apart else ''} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"
        )

    def __str__(self) -> str:
        return f"process {self.process.pid} ({self.place})"


def read_record(path: Path | str) -> Record | None:
    """The record in a lock file; None when nobody holds it, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return _parse(Path(path).read_bytes())
    return None


def _parse(content: bytes) -> Record | None:
    with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
        values = parse_json(content[:SIZE], "the lock's record")
        process, since = parse_identity(values["process"]), values["since"]
        if process is not None and isinstance(since, (int, float)) and 0 <= since < LATEST:
            return Record(process, str(values["token"]), int(values["beats"]), float(since), bool(values["firm"]))
    return None


def is_locked(path: Path | str) -> bool | None:
    """Whether somebody has the system's lock on the file; None where that cannot be known."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)


def holder_lives(path: Path | str, record: Record) -> bool | None:
    """Whether the process of a record still holds the lock; None when only its beats can tell (another host)."""
    alive = lives(record.process)
    if alive is not None:
        return alive
    locked = is_locked(path) if record.firm else None
    if locked:
        return True
    return False if locked is False and record.process.kernel == own_identity().kernel else None


class Lock:
    """The lock that the file ``path`` stands for; the file is there while it is held, and after a holder was killed.

    Args:
        what: what it guards, for messages ("runs/first").
        doing: what a holder does there ("is training here").
        how: what a person can do about one that lives ("stop it with …").
        tell: gets a line when the start has to wait or takes the lock over.

    Attributes:
        process: this process, as the record names it.
    """

    def __init__(self, path: Path | str, what: str, doing: str, how: str, tell: Callable[[str], Any] = log.warning):
        self.path, self.what, self.doing, self.how, self.tell = Path(path), what, doing, how, tell
        self.token = secrets.token_hex(16)
        self._descriptor: int | None = None
        self._firm = False
        self._beats = 0
        self._since = 0.0
        self.process = own_identity()
        self._lost = ""
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------- taking it

    def acquire(self) -> Lock:
        """Take the lock, from a dead holder too.

        Raises:
            Held: a living process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.process = own_identity()
        self._open()
        try:
            before = self._content()
            if before.strip() and not self._is_over(before):
                raise self.refusal(_parse(before))
            self._since = time.time()
            self._write()
            if not self._firm or _foreign(before):  # others may have seen a free lock too: the last to write has it
                time.sleep(BEAT_SECONDS)
                if not self.held():
                    raise self.refusal(read_record(self.path))
        except BaseException:
            self._close()
            raise
        _known.add(self)
        self._thread = threading.Thread(target=self._run, name="lock", daemon=True)
        self._thread.start()
        return self

    def _open(self) -> None:
        """Open the file and take the system's lock on it."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)  # not handed on to programs started later
            try:
                self._firm = try_lock(descriptor)
                if same_file(descriptor, self.path):  # else its holder removed it on leaving: the lock is on nothing
                    self._descriptor = descriptor
                    return
            except BlockingIOError:
                record = read_record(self.path)
                if time.monotonic() > deadline or record is not None and lives(record.process):
                    os.close(descriptor)
                    raise self.refusal(record) from None
                time.sleep(0.02)
            os.close(descriptor)

    def _is_over(self, before: bytes) -> bool:
        """Whether the holder that left this record is dead; watches it where that cannot be known at once."""
        record = _parse(before)
        if record is not None:
            if self._firm and record.firm and record.process.kernel == self.process.kernel:
                return True  # this kernel gave us the lock, so it has taken it from the other
            if record.process == self.process:
                return all(lock.token != record.token for lock in _known)
            alive = lives(record.process)
            if alive is not None:
                return not alive
        who = str(record) if record is not None else "a process that cannot be made out"
        self.tell(f"{self.what}: was last used by {who}; waiting up to {WATCH_SECONDS:.0f} s to see whether it lives")
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(0.5, WATCH_SECONDS / 4))
            if self._content() != before:
                return False
        self.tell(f"{self.what}: no sign of life from {who}: taken over")
        return True

    def refusal(self, record: Record | None) -> Held:
        """Who has it, where, since when, and what to do."""
        if record is None:
            return Held(f"{self.what}: another process is just starting here; try again in a moment")
        return Held(f"{self.what}: process {record.process.pid} {self.doing} ({record.place}); {self.how}")

    # ---------------------------------------------------------------- having it

    def held(self) -> bool:
        """Whether it is still ours: looks into the file."""
        if self._descriptor is None:
            return False
        if not self._lost:
            self._look()
        return not self._lost

    def check(self) -> None:
        """Raises LockLost when the lock is no longer ours."""
        if not self.held():
            why = self._lost or "the lock was given back"
            raise LockLost(f"{self.what}: {why}; this process stops and writes no more")

    def _look(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            self._lost = f"{self.path} was removed"
            return
        except OSError:  # a disk that is away for a moment: what it holds is seen when it is back
            return
        record = _parse(content)
        if record is not None and record.token != self.token:
            self._lost = f"{record} has taken over"

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if not self.held():
                return
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        """Write the record over the old one; opened anew, because NFS passes on what was written at the closing."""
        with self._writing:
            self._beats += 1
            values = {
                "process": self.process.to_dict(),
                "token": self.token,
                "beats": self._beats,
                "since": self._since,
                "firm": self._firm,
            }
            descriptor = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(descriptor, json.dumps(values).encode().ljust(SIZE - 1) + b"\n", 0)
            finally:
                os.close(descriptor)

    def _content(self) -> bytes:
        return self.path.read_bytes()

    # ---------------------------------------------------------------- giving it back

    def release(self) -> None:
        """Give it back, and remove the file if it is still ours."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self.held():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        _known.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self if self._descriptor is not None else self.acquire()

    def __exit__(self, *error: Any) -> None:
        self.release()


def try_lock(descriptor: int) -> bool:
    """Take the system's lock on an open file or folder; False where the disk has none.

    Raises:
        BlockingIOError: somebody has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise
    except OSError:
        return False


def same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _foreign(content: bytes) -> bool:
    """Whether a record was left by another kernel, which may not see our lock."""
    record = _parse(content)
    return bool(content.strip()) and (record is None or record.process.kernel != own_identity().kernel)


# A child made by fork shares the lock and would keep it after our death: it lets go of its descriptor at once.
_known: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_known):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
