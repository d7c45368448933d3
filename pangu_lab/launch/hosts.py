"""The machines of a launch: a hosts file, which of them is this one, and free ports.

A hosts file has one line per machine, ``NAME slots=N``, as Open MPI reads it; N is how many ranks start there.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from pangu_lab.errors import InputError
from pangu_lab.ranges import shown

MULTI_HOST_PORT = 8118  # default rendezvous port of launchers on several hosts; MindSpore's own default
_LINE = re.compile(r"(?P<name>[\w.:\-\[\]]+)(?:\s+slots\s*=\s*(?P<slots>[0-9]{1,6}))?")


@dataclass(frozen=True)
class Host:
    """A machine and the number of ranks it takes."""

    name: str
    slots: int


def read_hosts(path: Path | str, slots: int | None = None) -> list[Host]:
    """Read a hosts file; ``slots`` is for lines that give none.

    Raises:
        InputError: the file is missing, a line is malformed, a host is listed twice, or a number of slots is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such hosts file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file") from None
    return parse_hosts(text, str(path), slots)


def parse_hosts(text: str, where: str = "hosts file", slots: int | None = None) -> list[Host]:
    """The hosts of a hosts file's text; error messages begin with ``where``. Otherwise as ``read_hosts``."""
    hosts: list[Host] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if words:
            hosts.append(_host(f"{where}, line {number}", words, slots))
            if hosts[-1].name in [host.name for host in hosts[:-1]]:
                raise InputError(f"{where}, line {number}: {shown(hosts[-1].name)} is listed twice")
    if not hosts:
        raise InputError(f"{where}: names no host; write a line such as 'node-a slots=8' for each")
    return hosts


def _host(where: str, text: str, slots: int | None) -> Host:
    match = _LINE.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: '{shown(text)}' is not 'NAME' or 'NAME slots=N'")
    count = int(match["slots"]) if match["slots"] else slots
    if not count:
        raise InputError(
            f"{where}: say how many ranks start there: '{shown(match['name'])} slots=N', or give --nproc N"
        )
    return Host(match["name"], count)


def own_addresses() -> set[str]:
    """Names and addresses by which a hosts file may list this machine."""
    names = {"localhost", socket.gethostname(), socket.getfqdn()}
    for entries in psutil.net_if_addrs().values():
        names |= {
            entry.address.partition("%")[0] for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)
        }
    return names


def own_index(names: list[str]) -> int:
    """The index of this machine in ``names``.

    Raises:
        InputError: none of them, or more than one.
    """
    own = own_addresses()
    found = [index for index, name in enumerate(names) if name in own or _address(name) in own]
    if len(found) != 1:
        why = "is none of" if not found else "is more than one of"
        raise InputError(f"this machine {why} {', '.join(names)}: give --node-rank K, from 0 to {len(names) - 1}")
    return found[0]


def _address(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def address_of(name: str) -> str:
    """The IP address of a host; MindSpore's scheduler takes no names.

    Raises:
        InputError: this machine cannot resolve the name.
    """
    address = _address(name)
    if address is None:
        raise InputError(f"{name}: this machine cannot resolve the name; give --master-addr with an IP address")
    return address


def free_port(address: str = "127.0.0.1") -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
