"""The devices a plan is made for: their memory, compute speed and bandwidth.

Peak numbers are those of the makers' data sheets; ``efficiency`` is the share of the peak that training reaches, a round
number on purpose: a plan compares layouts, it does not promise a speed. ``cpu`` is two cores as measured by this
project, with its own memory tables, because MindSpore frees much less between operators there.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from pangu_lab.errors import InputError, nearest

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One kind of device.

    Args:
        memory: bytes a device.
        flops: peak floating-point operations a second in the training type.
        efficiency: share of ``flops`` that training reaches.
        near: bytes a second between devices of one server, each direction.
        far: bytes a second between servers, for each device.
        per_server: devices in a server.
        host: bytes of a server's own memory, for what is offloaded.
        overhead: seconds of a micro-batch that its operations do not explain; what a very small model's step is made of.
        read: bytes a second from the device's own memory; what decoding is made of.
        near_delay, far_delay: seconds of a small message within a server, and between servers.
        usable: share of ``memory`` that is left to the model. The reference gives MindSpore 30 of 32 GB.
    """

    name: str
    memory: int
    flops: float
    near: float
    far: float
    per_server: int = 8
    efficiency: float = 0.4
    usable: float = 30 / 32
    host: int = 2**40
    overhead: float = 0.0
    read: float = 1.2e12
    near_delay: float = 5e-6
    far_delay: float = 10e-6

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


HARDWARE = {
    item.name: item
    for item in (
        Hardware("ascend910", 32 * GIB, 256e12, 90e9, 12.5e9),
        Hardware("ascend910b", 64 * GIB, 313e12, 196e9, 25e9, read=1.6e12),
        Hardware("v100", 32 * GIB, 125e12, 150e9, 12.5e9, read=0.9e12),
        Hardware("a100", 80 * GIB, 312e12, 300e9, 25e9, read=2.0e12),
        Hardware("h100", 80 * GIB, 989e12, 450e9, 50e9, read=3.35e12),
        Hardware(
            "cpu",
            8 * GIB,
            0.2e12,
            0.25e9,
            0.1e9,
            per_server=8,
            efficiency=0.8,
            usable=1.0,
            overhead=0.01,
            read=25e9,
            near_delay=7e-4,
            far_delay=1e-3,
        ),
    )
}


def hardware(name: str) -> Hardware:
    """The device called ``name``.

    Raises:
        InputError: there is none of that name.
    """
    if name not in HARDWARE:
        raise InputError(f"unknown hardware '{name}'{nearest(name, HARDWARE)}; there are {', '.join(HARDWARE)}")
    return HARDWARE[name]


def device_of(kind: str | Hardware, memory: int | None = None, host: int | None = None) -> Hardware:
    """The device of that name, or the one given, with other amounts of memory if they are given."""
    device = hardware(kind) if isinstance(kind, str) else kind
    given = {name: value for name, value in (("memory", memory), ("host", host)) if value is not None}
    return dataclasses.replace(device, **given)


def memory_size(text: str) -> int:
    """``32GB``, ``512 MB``, ``1TB`` → bytes. Devices are sold in powers of two, so 32GB are 32 · 2³⁰ bytes.

    Raises:
        InputError: it is no such size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])?(i?b)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"'{text}' is no amount of memory; write it as 32GB or 512MB")
    return int(float(match[1]) * 2 ** {None: 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2] and match[2].lower()])
