"""HCCL rank tables: the JSON file that assigns a device to each rank of an Ascend cluster.

Version "1.0": ``server_count``; ``server_list`` with the ``server_id`` (an IP address), ``device`` (``device_id``,
``device_ip``, ``rank_id``) and ``host_nic_ip`` of each server; and ``status`` "completed". Every value is a string. On
a mistake HCCL waits for many minutes, so everything is checked here, and one line names the mistake.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.files import write_json_atomic
from pangu_lab.ranges import shown
from pangu_lab.reading import content_of, read_json

HCCN_CONF = "/etc/hccn.conf"  # where an Ascend driver keeps the devices' addresses
MAX_DEVICES = 16  # of one server
MAX_SERVERS = 1 << 14  # more than any cluster has


@dataclass(frozen=True)
class Device:
    device_id: int
    device_ip: str
    rank_id: int


@dataclass(frozen=True)
class Server:
    server_id: str
    devices: tuple[Device, ...]
    host_nic_ip: str = "reserve"


@dataclass(frozen=True)
class RankTable:
    """A checked table. Servers are in its order; ranks are 0 … world − 1 over all of them."""

    servers: tuple[Server, ...]

    @property
    def world(self) -> int:
        return sum(len(server.devices) for server in self.servers)

    def to_json(self) -> dict[str, Any]:
        """The table as HCCL reads it."""
        servers = [
            {
                "server_id": server.server_id,
                "device": [
                    {"device_id": str(d.device_id), "device_ip": d.device_ip, "rank_id": str(d.rank_id)}
                    for d in server.devices
                ],
                "host_nic_ip": server.host_nic_ip,
            }
            for server in self.servers
        ]
        return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}


def _require(valid: bool, where: str, message: str) -> None:
    if not valid:
        raise InputError(f"{where}: {message}")


# ------------------------------------------------------------------------------------------------------- check


def read_rank_table(path: Path | str) -> RankTable:
    """Read and check a rank table.

    Raises:
        InputError: the file is missing, is not JSON, or holds a mistake; one line names it.
    """
    return parse_rank_table(read_json(path, "the rank table"), str(path))


def parse_rank_table(table: Any, where: str = "rank table") -> RankTable:
    """Check a table's content; error messages begin with ``where``."""
    _require(isinstance(table, dict), where, "must be a JSON object")
    for key in ("version", "server_count", "server_list", "status"):
        _require(key in table, where, f"has no '{key}'")
    _require(table["version"] == "1.0", where, f'version is {shown(table["version"], repr)}; only "1.0" is known')
    _require(table["status"] == "completed", where, f'status is {shown(table["status"], repr)} instead of "completed"')
    listed = table["server_list"]
    _require(isinstance(listed, list) and bool(listed), where, "server_list must be a list with at least one server")
    _require(len(listed) <= MAX_SERVERS, where, f"server_list has {len(listed)} servers, more than {MAX_SERVERS}")
    count = _number(table["server_count"], where, "server_count")
    _require(count == len(listed), where, f"server_count is {count}, but server_list has {len(listed)}")
    servers = tuple(_server(entry, f"{where}: server_list[{index}]") for index, entry in enumerate(listed))
    result = RankTable(servers)
    _check_whole(result, where)
    return result


def _server(entry: Any, where: str) -> Server:
    _require(isinstance(entry, dict), where, "must be an object")
    for key in ("server_id", "device"):
        _require(key in entry, where, f"has no '{key}'")
    server_id = _address(entry["server_id"], where, "server_id")
    devices = entry["device"]
    _require(isinstance(devices, list) and bool(devices), where, "device must be a list with at least one device")
    nic = entry.get("host_nic_ip", "reserve")
    if nic != "reserve":
        _address(nic, where, "host_nic_ip")
    return Server(
        server_id,
        tuple(_device(item, f"{where} ({server_id}), device[{index}]") for index, item in enumerate(devices)),
        nic,
    )


def _device(entry: Any, where: str) -> Device:
    _require(isinstance(entry, dict), where, "must be an object")
    for key in ("device_id", "device_ip", "rank_id"):
        _require(key in entry, where, f"has no '{key}'")
    device = _number(entry["device_id"], where, "device_id")
    _require(device < MAX_DEVICES, where, f"device_id {device} is above {MAX_DEVICES - 1}")
    return Device(device, _address(entry["device_ip"], where, "device_ip"), _number(entry["rank_id"], where, "rank_id"))


def _number(value: Any, where: str, key: str) -> int:
    valid = isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) is not None
    _require(valid, where, f'{key} is {shown(value, repr)}; it must be a whole number in quotes, such as "0"')
    return int(value)


def _address(value: Any, where: str, key: str) -> str:
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise InputError(f"{where}: {key} is {shown(value, repr)}, which is not an IP address") from None
    return value


def _check_whole(table: RankTable, where: str) -> None:
    """Checks over several entries: no duplicates, no gaps, equal numbers of devices."""
    _no_duplicates([server.server_id for server in table.servers], where, "server_id")
    for server in table.servers:
        _no_duplicates(
            [device.device_id for device in server.devices], f"{where}: server {server.server_id}", "device_id"
        )
    devices = [device for server in table.servers for device in server.devices]
    _no_duplicates([device.device_ip for device in devices], where, "device_ip")
    ranks = [device.rank_id for device in devices]
    _no_duplicates(ranks, where, "rank_id")
    missing = sorted(set(range(len(ranks))) - set(ranks))
    _require(
        not missing,
        where,
        f"rank_id {missing[0] if missing else ''} is missing: {len(ranks)} devices need the "
        f"ranks 0 to {len(ranks) - 1}",
    )
    sizes = {len(server.devices) for server in table.servers}
    _require(
        len(sizes) == 1,
        where,
        "servers have different numbers of devices ("
        + ", ".join(f"{server.server_id}: {len(server.devices)}" for server in table.servers)
        + ")",
    )


def _no_duplicates(values: Sequence[Any], where: str, key: str) -> None:
    [(value, count)] = Counter(values).most_common(1)
    _require(count == 1, where, f"{key} {value} is listed twice")


# ---------------------------------------------------------------------------------------------- create and merge


def create_rank_table(
    server_id: str,
    device_ids: Sequence[int],
    device_ips: Sequence[str] | None = None,
    host_nic_ip: str = "reserve",
    hccn_conf: Path | str = HCCN_CONF,
) -> RankTable:
    """The table of one server; ranks follow the order of the devices.

    Args:
        server_id: the server's IP address.
        device_ids: numbers of the devices to use.
        device_ips: their addresses, in the same order; read from ``hccn_conf`` when not given.

    Raises:
        InputError: an address is missing or wrong, or something is listed twice.
    """
    if device_ips is None:
        known = read_hccn_conf(hccn_conf)
        absent = [device for device in device_ids if device not in known]
        if absent:
            raise InputError(
                f"{hccn_conf}: has no address for device {absent[0]}; give the devices' addresses with --device-ips"
            )
        device_ips = [known[device] for device in device_ids]
    if len(device_ips) != len(device_ids):
        raise InputError(f"{len(device_ids)} devices, but {len(device_ips)} addresses: give one for each device")
    devices = tuple(Device(device, ip, rank) for rank, (device, ip) in enumerate(zip(device_ids, device_ips)))
    return parse_rank_table(RankTable((Server(server_id, devices, host_nic_ip),)).to_json())


def read_hccn_conf(path: Path | str = HCCN_CONF) -> dict[int, str]:
    """Device number → address, from the driver's ``address_N=IP`` lines.

    Raises:
        InputError: there is no such file.
    """
    try:
        text = content_of(path, "the driver's list").decode("utf-8", "replace")
    except InputError:
        raise InputError(
            f"{path}: not readable, so the devices' addresses are not known; give them with --device-ips"
        ) from None
    return _driver_addresses(text)


_CONF_LINE = re.compile(r"\s*address_([0-9]{1,3})\s*=\s*(\S+)\s*")
_TOOL_COMMAND = re.compile(r".*\bhccn_tool\s+-i\s+([0-9]{1,3})\s+-ip\s+-g\s*")
_TOOL_ANSWER = re.compile(r"\s*ipaddr\s*:\s*(\S+)\s*")


def _driver_addresses(text: str) -> dict[int, str]:
    """Device number → address, from lines of ``hccn.conf`` or from what ``hccn_tool -i N -ip -g`` prints.

    The tool does not print N: where its command line is in the text, N is taken from it; else devices count from 0.
    """
    found: dict[int, str] = {}
    device = 0
    for line in text.splitlines():
        if match := _CONF_LINE.fullmatch(line):
            found[int(match[1])] = match[2]
        elif match := _TOOL_COMMAND.fullmatch(line):
            device = int(match[1])
        elif match := _TOOL_ANSWER.fullmatch(line):
            found[device] = match[1]
            device += 1
    return found


def device_numbers(text: str) -> list[int]:
    """``0-3,6`` → [0, 1, 2, 3, 6].

    Raises:
        InputError: it is not such a list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise InputError(f"--devices {shown(text)}: write numbers such as 0-7 or 0,2,4,6")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= MAX_DEVICES:
            raise InputError(f"--devices {shown(text)}: device_id {last} is above {MAX_DEVICES - 1}")
        numbers += range(first, last + 1)
    return numbers


def server_table(server_id: str, devices: str = "", addresses: str = "", host_nic_ip: str = "reserve") -> RankTable:
    """The table of one server from texts, as a person types or pastes them.

    Args:
        server_id: the server's IP address.
        devices: such as "0-7" or "0,2,4,6"; when empty, all that ``addresses`` names.
        addresses: the devices' addresses in their order, with commas or blanks between them; or the server's ``hccn.conf``;
            or what ``hccn_tool -i N -ip -g`` printed for each device. When empty, this machine's driver is asked.

    Raises:
        InputError: a text cannot be read, an address is missing or wrong, or something is listed twice.
    """
    if not addresses.strip():
        return create_rank_table(server_id, device_numbers(devices.strip() or "0-7"), None, host_nic_ip)
    known = _driver_addresses(addresses)
    if known:
        numbers = device_numbers(devices) if devices.strip() else sorted(known)
        absent = [number for number in numbers if number not in known]
        if absent:
            raise InputError(
                f"{server_id}: the text has no address for device {absent[0]}, only for "
                f"{', '.join(map(str, sorted(known)))}"
            )
        return create_rank_table(server_id, numbers, [known[number] for number in numbers], host_nic_ip)
    listed = [word for word in re.split(r"[,\s]+", addresses) if word]
    numbers = device_numbers(devices) if devices.strip() else list(range(len(listed)))
    return create_rank_table(server_id, numbers, listed, host_nic_ip)


def merge_rank_tables(tables: Sequence[RankTable]) -> RankTable:
    """One table over the servers of several, in the order given; ranks are numbered anew, server after server.

    Raises:
        InputError: a server or a device address is in more than one of them, or their numbers of devices differ.
    """
    if not tables:
        raise InputError("no rank tables to merge")
    servers, rank = [], 0
    for server in (server for table in tables for server in table.servers):
        devices = tuple(
            Device(d.device_id, d.device_ip, rank + offset)
            for offset, d in enumerate(sorted(server.devices, key=lambda d: d.rank_id))
        )
        rank += len(devices)
        servers.append(Server(server.server_id, devices, server.host_nic_ip))
    return parse_rank_table(RankTable(tuple(servers)).to_json(), "the merged table")


def write_rank_table(table: RankTable, path: Path | str, replace: bool = False) -> None:
    """Write the JSON file, whole or not at all.

    Raises:
        InputError: there is a file already and ``replace`` is not given.
    """
    if Path(path).exists() and not replace:
        raise InputError(f"{path} exists already: choose another name")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, table.to_json())
