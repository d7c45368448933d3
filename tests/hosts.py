"""Two hosts on one machine: network namespaces joined by a cable, each with addresses and a loopback of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A namespace, the end of the cable in it, and its address there."""

    name: str
    cable: str
    address: str

    @property
    def within(self) -> tuple[str, ...]:
        """The words that go before a command to run it on this host."""
        return ("ip", "netns", "exec", self.name)

    def cable_is(self, state: str) -> None:
        """Pull the cable ("down") or plug it in ("up"): nobody is told that a connection has ended."""
        assert ip("-n", self.name, "link", "set", self.cable, state)


def ip(*words: str) -> bool:
    """Run ``ip``; whether it could."""
    if shutil.which("ip") is None:
        return False
    return subprocess.run(["ip", *words], capture_output=True, timeout=20).returncode == 0


@contextlib.contextmanager
def joined_hosts() -> Iterator[list[Host]]:
    """Two hosts, or none where the machine does not allow it; nothing of them stays."""
    hosts = [
        Host(f"pangu-lab-{os.getpid()}-{number}", f"pl{os.getpid() % 100000}v{number}", f"10.231.77.{number}")
        for number in (1, 2)
    ]
    one, other = hosts
    try:
        made = all(ip("netns", "add", host.name) for host in hosts) and ip(
            "link",
            "add",
            one.cable,
            "netns",
            one.name,
            "type",
            "veth",
            "peer",
            "name",
            other.cable,
            "netns",
            other.name,
        )
        for host in hosts:
            made = made and ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            made = made and all(ip("-n", host.name, "link", "set", link, "up") for link in (host.cable, "lo"))
        yield hosts if made else []
    finally:
        for host in hosts:
            ip("netns", "del", host.name)
