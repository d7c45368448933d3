"""Hosts files, and which of the hosts this machine is."""

from __future__ import annotations

import socket

import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch.hosts import Host, free_port, own_index, read_hosts


def test_a_hosts_file_has_a_line_a_machine(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# the cluster\nnode-a slots=8\n\n10.0.0.2   slots = 4  # smaller\nnode-c\n")
    assert read_hosts(path, 2) == [Host("node-a", 8), Host("10.0.0.2", 4), Host("node-c", 2)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no host"),
        ("a slots=x", "line 1: 'a slots=x' is not 'NAME' or 'NAME slots=N'"),
        ("a slots=1\nb slots=1\na slots=2", "line 3: a is listed twice"),
        ("a", "say how many ranks start there"),
        ("a slots=0", "say how many ranks start there"),
        ("a; reboot slots=1", "is not 'NAME'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_hosts(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such hosts file"):
        read_hosts(tmp_path / "none")


def test_this_machine_finds_itself_by_name_and_by_address():
    assert own_index(["192.0.2.7", socket.gethostname()]) == 1
    assert own_index(["127.0.0.1", "192.0.2.7"]) == 0
    with pytest.raises(InputError, match="is none of 192.0.2.7, 192.0.2.8: give --node-rank K, from 0 to 1"):
        own_index(["192.0.2.7", "192.0.2.8"])
    with pytest.raises(InputError, match="is more than one of"):
        own_index(["127.0.0.1", "localhost"])


def test_a_free_port_can_be_opened():
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
