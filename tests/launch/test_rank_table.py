"""Rank tables: what is made is good, what is merged is numbered anew, and every mistake has its line."""

from __future__ import annotations

import copy
import json

import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch.rank_table import (
    create_rank_table,
    merge_rank_tables,
    parse_rank_table,
    read_hccn_conf,
    read_rank_table,
    server_table,
    write_rank_table,
)


def server(number: int, devices: int = 2):
    return create_rank_table(
        f"10.0.0.{number}", range(devices), [f"192.168.{number}.{100 + i}" for i in range(devices)]
    )


def two_servers() -> dict:
    return merge_rank_tables([server(1), server(2)]).to_json()


def test_a_table_has_exactly_the_published_form():
    assert server(1).to_json() == {
        "version": "1.0",
        "server_count": "1",
        "status": "completed",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "host_nic_ip": "reserve",
                "device": [
                    {"device_id": "0", "device_ip": "192.168.1.100", "rank_id": "0"},
                    {"device_id": "1", "device_ip": "192.168.1.101", "rank_id": "1"},
                ],
            }
        ],
    }


def test_merging_numbers_ranks_through_in_the_order_given():
    table = merge_rank_tables([server(2), server(1)])
    assert [s.server_id for s in table.servers] == ["10.0.0.2", "10.0.0.1"]
    assert [[d.rank_id for d in s.devices] for s in table.servers] == [[0, 1], [2, 3]]
    again = merge_rank_tables([parse_rank_table(table.to_json()), server(3)])
    assert again.world == 6 and [d.rank_id for d in again.servers[2].devices] == [4, 5]


def test_writing_and_reading_give_the_same_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "sub" / "table.json"
    write_rank_table(server(1), path)
    assert read_rank_table(path) == server(1)
    with pytest.raises(InputError, match="exists already"):
        write_rank_table(server(2), path)


def test_device_addresses_come_from_the_drivers_file(tmp_path):
    conf = tmp_path / "hccn.conf"
    conf.write_text(
        "# made by the driver\naddress_0=192.168.100.100\nnetmask_0=255.255.255.0\naddress_3 = 192.168.103.100\n"
    )
    assert read_hccn_conf(conf) == {0: "192.168.100.100", 3: "192.168.103.100"}
    table = create_rank_table("10.0.0.1", [0, 3], hccn_conf=conf)
    assert [(d.device_id, d.device_ip, d.rank_id) for d in table.servers[0].devices] == [
        (0, "192.168.100.100", 0),
        (3, "192.168.103.100", 1),
    ]
    with pytest.raises(InputError, match="no address for device 1"):
        create_rank_table("10.0.0.1", [0, 1], hccn_conf=conf)
    with pytest.raises(InputError, match="give them with --device-ips"):
        create_rank_table("10.0.0.1", [0, 1], hccn_conf=tmp_path / "none")


@pytest.mark.parametrize(
    "devices, addresses, found",
    [
        ("", "192.168.0.1, 192.168.0.2", {0: "192.168.0.1", 1: "192.168.0.2"}),
        ("4-5", "192.168.0.1\n192.168.0.2\n", {4: "192.168.0.1", 5: "192.168.0.2"}),
        ("", "address_4=192.168.0.1\naddress_5=192.168.0.2\n", {4: "192.168.0.1", 5: "192.168.0.2"}),
        ("5", "address_4=192.168.0.1\naddress_5=192.168.0.2\n", {5: "192.168.0.2"}),
        (
            "",
            "ipaddr:192.168.0.1\nnetmask:255.255.255.0\nipaddr:192.168.0.2\nnetmask:255.255.255.0\n",
            {0: "192.168.0.1", 1: "192.168.0.2"},
        ),
        (
            "",
            "$ hccn_tool -i 3 -ip -g\nipaddr:192.168.0.1\n$ hccn_tool -i 7 -ip -g\nipaddr: 192.168.0.2\n",
            {3: "192.168.0.1", 7: "192.168.0.2"},
        ),
    ],
)
def test_a_server_is_made_of_a_list_of_the_drivers_file_or_of_its_tools_answers(devices, addresses, found):
    table = server_table("10.0.0.1", devices, addresses)
    assert {device.device_id: device.device_ip for device in table.servers[0].devices} == found


def change(table, path, value):
    """Set what ``path`` (keys and places) leads to; a value of None takes it away."""
    target = table
    for step in path[:-1]:
        target = target[step]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value


DEVICE = ("server_list", 1, "device", 0)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("version",), None, "has no 'version'"),
        (("version",), "0.1", 'only "1.0" is known'),
        (("status",), "initializing", 'instead of "completed"'),
        (("server_count",), "3", "server_count is 3, but server_list has 2"),
        (("server_count",), 2, "must be a whole number in quotes"),
        (("server_list",), [], "at least one server"),
        (("server_list", 0, "server_id"), "10.0.0", "which is not an IP address"),
        (("server_list", 0, "server_id"), "10.0.0.2", "server_id 10.0.0.2 is listed twice"),
        (("server_list", 0, "host_nic_ip"), "eth0", "host_nic_ip is 'eth0'"),
        (("server_list", 0, "device"), [], "at least one device"),
        (("server_list", 0, "device"), None, "has no 'device'"),
        ((*DEVICE, "device_ip"), "192.168.1.100", "device_ip 192.168.1.100 is listed twice"),
        ((*DEVICE, "device_ip"), "", "which is not an IP address"),
        ((*DEVICE, "device_id"), "1", "device_id 1 is listed twice"),
        ((*DEVICE, "device_id"), "16", "device_id 16 is above 15"),
        ((*DEVICE, "device_id"), None, "has no 'device_id'"),
        ((*DEVICE, "rank_id"), "0", "rank_id 0 is listed twice"),
        ((*DEVICE, "rank_id"), "7", "rank_id 2 is missing: 4 devices need the ranks 0 to 3"),
        ((*DEVICE, "rank_id"), "-1", "must be a whole number in quotes"),
        (("server_list", 1, "device", 1), None, "different numbers of devices (10.0.0.1: 2, 10.0.0.2: 1)"),
    ],
)
def test_each_mistake_is_named_in_one_line(path, value, message):
    table = copy.deepcopy(two_servers())
    parse_rank_table(table)
    change(table, path, value)
    if path[-2:] == ("device", 1):  # one device less also leaves a gap in the ranks; close it
        table["server_list"][1]["device"][0]["rank_id"] = "2"
    with pytest.raises(InputError) as caught:
        parse_rank_table(table, "t.json")
    text = str(caught.value)
    assert message in text and text.startswith("t.json") and "\n" not in text


def test_a_file_that_is_no_table_is_the_users_to_mend(tmp_path):
    path = tmp_path / "t.json"
    for content, message in (("{", "not readable JSON"), (json.dumps([1]), "must be a JSON object")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_rank_table(path)
    with pytest.raises(InputError, match="is not there"):
        read_rank_table(tmp_path / "none.json")


def test_a_server_cannot_be_merged_twice():
    with pytest.raises(InputError, match="server_id 10.0.0.1 is listed twice"):
        merge_rank_tables([server(1), server(1)])
    with pytest.raises(InputError, match="no rank tables"):
        merge_rank_tables([])
    with pytest.raises(InputError, match="2 devices, but 1 addresses"):
        create_rank_table("10.0.0.1", [0, 1], ["192.168.1.1"])
