"""The pid file of a server: its pid for users and scripts, and beside it the lock that proves whose pid it is.

``--pid-file serve.pid`` writes the pid to ``serve.pid`` and holds ``serve.pid.lock`` while the server lives. A
pid alone proves nothing: it may have been reused, or mean another process in this container. So
``--stop`` signals only a process of this host, boot and pid namespace with the lock's start time that holds the lock.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.files import write_text_atomic
from pangu_lab.identity import identity_of, lives, send_signal
from pangu_lab.locking import Lock, Record, holder_lives, is_locked, read_record
from pangu_lab.reading import content_of


def lock_file(path: Path | str) -> Path:
    return Path(f"{path}.lock")


@contextlib.contextmanager
def pid_file(path: Path | str | None) -> Iterator[None]:
    """Keep this process's pid in a file while the block runs; another server's file is refused.

    Raises:
        InputError: the server that the file belongs to is alive, or the file is no pid file.
    """
    if path is None:
        yield
        return
    path = Path(path)
    _number(path)
    lock = Lock(
        lock_file(path),
        str(path),
        "is alive and serves",
        f"end it with `pangu-lab serve --stop --pid-file {path}`, or give another file",
    )
    with lock.acquire():
        number = f"{lock.process.pid}\n"
        write_text_atomic(path, number)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if lock.held() and path.read_text(encoding="utf-8") == number:
                    path.unlink()


def _number(path: Path) -> int | None:
    if not path.exists():
        return None
    text = content_of(path, "the pid file", 64).strip()
    if re.fullmatch(rb"[0-9]{1,10}", text) is None:
        raise InputError(f"{path}: not a pid file")
    return int(text)


def read_pid(path: Path | str) -> int | None:
    """The pid of a pid file's server; None if it has gone. One that cannot be checked from here counts as alive.

    Raises:
        InputError: it is not a pid file.
    """
    _number(Path(path))
    record = read_record(lock_file(path))
    return record.process.pid if record is not None and holder_lives(lock_file(path), record) is not False else None


def stop_server(path: Path | str, seconds: float = 90.0) -> int:
    """End the server of a pid file and wait until it has gone; returns its pid.

    Raises:
        InputError: no such server, it cannot be proved to be that of the file, or it did not end in time.
    """
    path = Path(path)
    record = _provable(path)
    if not send_signal(record.process, signal.SIGTERM):
        raise InputError(f"{path}: no server runs with this pid file")
    deadline = time.monotonic() + seconds
    while lives(record.process) is not False:
        if time.monotonic() > deadline:
            raise InputError(
                f"process {record.process.pid} still finishes requests after {seconds:.0f} s: wait, or signal it again"
            )
        time.sleep(0.05)
    return record.process.pid


def _provable(path: Path) -> Record:
    """The record of a server that provably belongs to the file, and is alive."""
    number, lock = _number(path), lock_file(path)
    record = read_record(lock)
    if record is None:
        if number is None or not lock.exists() and not _exists(number):
            raise InputError(f"{path}: no server runs with this pid file")
        raise InputError(
            f"{path}: nothing proves that process {number} is the server of this file ({lock} is not "
            "there or cannot be read), so it was not signalled: look what it is, and end it yourself"
        )
    alive = holder_lives(lock, record)
    if alive is False:
        raise InputError(f"{path}: no server runs with this pid file")
    if lives(record.process) is None:
        raise InputError(f"{path}: its server is process {record}, which cannot be reached from here: stop it there")
    if record.firm and not is_locked(lock):
        raise InputError(
            f"{path}: process {record.process.pid} does not hold {lock} any more, so it was not "
            "signalled: look what it is, and end it yourself"
        )
    return record


def _exists(number: int) -> bool:
    return number > 0 and identity_of(number) is not None
