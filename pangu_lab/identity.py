"""Process identity, so that another process can tell for certain whether this one is still alive.

A pid alone is not enough: it is reused later, and means something else in another container or
on another host. The start time does not help either, because it moves when the clock is set. What holds is
the boot (the kernel's own random id), the pid namespace, the pid in it, and the start in clock ticks since the boot,
which no clock can change. A process of another boot or namespace cannot be judged from here: the answer is then None,
never a guess.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """One process of one boot of one host. Empty ``boot`` and ``namespace``: a system without /proc."""

    host: str
    boot: str
    namespace: str
    pid: int
    ticks: int  # its start, in clock ticks since the boot

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def kernel(self) -> tuple[str, str]:
        """What processes of one running kernel share: containers have their own host names, but one boot."""
        return (self.boot, "" if self.boot else self.host)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def parse_identity(values: Any) -> Identity | None:
    """The identity from the result of ``to_dict``; None for anything else."""
    kinds = {field.name: {"int": int, "str": str}[str(field.type)] for field in fields(Identity)}
    if not isinstance(values, dict) or any(type(values.get(name)) is not kind for name, kind in kinds.items()):
        return None
    identity = Identity(**{name: values[name] for name in kinds})
    return identity if identity.pid > 0 else None  # 0 and below name process groups


def own_identity() -> Identity:
    """This process."""
    ticks = _ticks("self") or _created(os.getpid()) or 0
    return Identity(socket.gethostname(), _boot(), _namespace(), os.getpid(), ticks)


def identity_of(pid: int) -> Identity | None:
    """The process with this pid, here and now; None if there is none."""
    ticks = _ticks(str(pid)) if _proc_is_ours() else _created(pid)
    return Identity(socket.gethostname(), _boot(), _namespace(), pid, ticks) if ticks is not None else None


def lives(identity: Identity) -> bool | None:
    """Whether exactly that process is still running; None if that cannot be known from here."""
    here = own_identity()
    if (identity.kernel, identity.namespace) != (here.kernel, here.namespace):
        return None
    if not _exists(identity.pid):
        return False
    if here.boot and not _proc_is_ours():
        return None
    found = identity_of(identity.pid)
    if found is not None:
        return found.ticks == identity.ticks
    return False if not _hidden(identity.pid) else None


def send_signal(identity: Identity, number: int) -> bool:
    """Signal exactly that process; False if it is gone, or cannot be identified.

    Where the system supports it, the process is held by a descriptor between check and signal: its pid
    cannot be reused in that moment.
    """
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
            if lives(identity):
                os.kill(identity.pid, number)
                return True
            return False
        descriptor = os.pidfd_open(identity.pid)
        try:
            if lives(identity):
                signal.pidfd_send_signal(descriptor, number)
                return True
        finally:
            os.close(descriptor)
    return False


# ---------------------------------------------------------------------------------------------- what the system says


def _boot() -> str:
    with contextlib.suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink(PROC / "self/ns/pid")
    return ""


def _ticks(name: str) -> int | None:
    """Start of a process in ticks since the boot; None if it is gone, or a zombie."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = (PROC / name / "stat").read_text(encoding="utf-8", errors="replace")
        state, *numbers = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
        return None if state in "ZX" else int(numbers[18])
    return None


def _created(pid: int) -> int | None:
    """The same where there is no /proc: a time that such systems note at the start and do not change."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return round(100 * process.create_time())
    return None


def _proc_is_ours() -> bool:
    """Whether /proc shows this process's namespace: a new one without a new /proc sees that of another."""
    with contextlib.suppress(OSError, ValueError):
        return int(os.readlink(PROC / "self")) == os.getpid()
    return False


def _exists(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 kills a process
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _hidden(pid: int) -> bool:
    """Whether /proc hides other users' processes from us (its option hidepid)."""
    return _exists(pid) and not (PROC / str(pid) / "stat").exists() and _proc_is_ours()
