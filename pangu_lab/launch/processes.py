"""The processes that this launcher started, and their descendants: started from argument lists, ended by pid.

Each command becomes the leader of its own session, so that a Ctrl-C in the terminal reaches only the launcher.
msrun and mpirun start further processes. These are tracked while they are visible, as psutil objects, which identify a
process by pid and start time, and by their sessions: a pid that was reused by another process is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from pangu_lab.errors import InputError
from pangu_lab.identity import Identity, identity_of
from pangu_lab.launch.plan import LAUNCHER, Command, clean_environment

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_LOOK_SECONDS = 1.0


class Processes:
    """Started commands with their process objects."""

    def __init__(self) -> None:
        self.started: list[tuple[Command, subprocess.Popen]] = []
        self._known: set[psutil.Process] = set()
        self._sessions: dict[int, Identity | None] = {}  # session id → its leader, until the id is reused
        self._looked = 0.0

    def start(self, command: Command) -> None:
        """Start one command; its output goes to its log.

        Raises:
            InputError: the program does not exist.
        """
        env = clean_environment({**command.env, LAUNCHER: f"{os.getpid()}@{socket.gethostname()}"})
        Path(command.log).parent.mkdir(parents=True, exist_ok=True)
        with open(command.log, "wb") as log:
            try:
                process = subprocess.Popen(
                    command.argv,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise InputError(
                    f"{command.argv[0]} is not installed here: choose another --backend, or install it"
                ) from None
        self.started.append((command, process))
        self._sessions[process.pid] = identity_of(process.pid)
        self._remember(process.pid)

    def _remember(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known.add(psutil.Process(pid))

    def look(self) -> None:
        """Record descendants, at most once a second."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for _, process in self.started:
            if process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._known.update(psutil.Process(process.pid).children(recursive=True))

    def living(self) -> set[psutil.Process]:
        """Everything started here that still runs."""
        for _, process in self.started:
            process.poll()  # reap, so that a zombie does not count
        for pid, leader in list(self._sessions.items()):
            if (now := identity_of(pid)) is not None and now != leader:  # our session has ended and its id was reused
                del self._sessions[pid]
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) in self._sessions:
                    self._known.add(process)
        return {process for process in self._known if _runs(process)}

    def end(self, more: Iterable[psutil.Process] = (), grace: float = GRACE_SECONDS) -> None:
        """End everything that still runs, and ``more``: SIGTERM, then SIGKILL for what is left after ``grace``."""
        self._looked = 0.0
        self.look()
        victims = self.living() | {process for process in more if _runs(process)}
        _signal(victims, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while victims and time.monotonic() < deadline:
            time.sleep(0.05)
            victims = {process for process in victims if _runs(process)} | self.living()
        _signal(victims, signal.SIGKILL)
        psutil.wait_procs(list(victims), timeout=3.0)
        for _, process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3.0)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
