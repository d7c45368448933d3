"""Where a launch runs: hosts files and rank tables typed, pasted and opened, checked in one line, never overwritten unasked."""

from __future__ import annotations

import json

import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch import merge_rank_tables, prepare, read_rank_table, server_table, write_rank_table
from pangu_lab.presets import preset
from widgets.target_form import TargetForm

CONF = "address_0=192.168.1.100\nnetmask_0=255.255.255.0\naddress_1=192.168.1.101\n"
TOOL = (
    "[root@b ~]# hccn_tool -i 0 -ip -g\nipaddr:192.168.2.100\nnetmask:255.255.255.0\n"
    "[root@b ~]# hccn_tool -i 1 -ip -g\nipaddr:192.168.2.101\nnetmask:255.255.255.0\n"
)


@pytest.fixture
def form_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **values: TargetForm("runs", **values)


def page(form, **content):
    """What a page sends; the line with which it was refused, if it was."""
    said = []
    form.send = lambda message, buffers=None: said.append(message)
    form._received(form, content, [])
    return said[0]["text"] if said else ""


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "--nproc 4"),
        ({"nproc": 1}, "--nproc 1"),
        ({"backend": "mpirun"}, "--backend mpirun --nproc 4"),
        ({"backend": "msrun", "nproc": 2}, "--backend msrun --nproc 2"),
    ],
)
def test_one_machine_is_a_back_end_and_a_number(form_of, values, words):
    form = form_of(**values)
    assert " ".join(form.target.words(4)) == words and form.ready() == form.target and form.errors == {}


def test_lines_of_a_hosts_file_are_checked_as_they_are_typed_and_written_when_needed(form_of, tmp_path):
    form = form_of(backend="mpirun", several=True)
    assert form.errors == {}, "an empty box is no mistake yet"
    with pytest.raises(InputError, match="hosts: names no host; write a line"):
        form.ready()
    for text, message in (
        ("a slots=x", "hosts, line 1: 'a slots=x' is not 'NAME' or 'NAME slots=N'"),
        ("a slots=2\na slots=2", "hosts, line 2: a is listed twice"),
        ("a", "give --nproc N"),
    ):
        form.hosts_text = text
        assert message in form.errors["hosts"] and form.machines == []
        with pytest.raises(InputError, match="hosts, line"):
            form.ready()
    form.nproc = 3
    assert form.errors == {} and form.machines[0]["ranks"] == 3
    form.nproc, form.hosts_text = 0, "a slots=2\nb slots=2  # the other\n\n"
    assert [(one["name"], one["first"]) for one in form.machines] == [("a", 0), ("b", 2)] and form.file_state == "new"
    assert " ".join(form.ready().words(1)) == "--backend mpirun --hosts runs/hosts"
    assert (
        tmp_path / "runs" / "hosts"
    ).read_text() == "a slots=2\nb slots=2  # the other\n" and form.file_state == "same"


def test_a_file_with_something_else_is_opened_or_replaced_only_when_asked(form_of, tmp_path):
    (tmp_path / "mine").write_text("c slots=8\n")
    form = form_of(several=True, hosts_text="a slots=1", node_rank=0, master_addr="10.0.0.1")
    form.hosts_file = "mine"
    assert form.file_state == "other"
    with pytest.raises(InputError, match="mine holds something else: replace it, open it, or name another file"):
        form.ready()
    assert "holds something else" in page(form, do="write") and (tmp_path / "mine").read_text() == "c slots=8\n"
    assert page(form, do="open") == "" and form.hosts_text == "c slots=8\n" and form.file_state == "same"
    form.hosts_text = "a slots=1"
    assert page(form, do="write", replace=True) == "" and (tmp_path / "mine").read_text() == "a slots=1\n"
    assert " ".join(form.ready().words(1)) == "--hosts mine --master-addr 10.0.0.1 --node-rank 0"
    assert form_of(several=True, hosts_file="mine").hosts_text == "a slots=1\n", "an empty form opens the file it names"
    form.hosts_file = str(tmp_path)
    assert "cannot be the file" in form.errors["file"]


def test_a_rank_table_is_made_of_what_each_server_says(form_of, tmp_path):
    form = form_of(backend="ranktable", node_rank=1)
    with pytest.raises(InputError, match="the rank table has no server yet"):
        form.ready()
    form.entry = {"server": "10.0.0.1", "devices": "", "addresses": CONF}
    assert form.entry_devices == "0: 192.168.1.100, 1: 192.168.1.101"
    with pytest.raises(InputError, match="10.0.0.1 is typed but not added"):
        form.ready()
    assert page(form, do="add_server") == "" and form.entry == {}
    form.add_server("10.0.0.2", "0-1", TOOL)
    form.add_server("10.0.0.3", "4,6", "192.168.3.100 192.168.3.101")
    assert [(one["name"], one["first"], one["ranks"]) for one in form.machines] == [
        ("10.0.0.1", 0, 2),
        ("10.0.0.2", 2, 2),
        ("10.0.0.3", 4, 2),
    ]
    assert page(form, do="remove", place=2) == ""
    assert " ".join(form.ready().words(1)) == "--rank-table runs/hccl.json --node-rank 1"
    table = read_rank_table("runs/hccl.json")
    assert [[(d.device_id, d.device_ip, d.rank_id) for d in one.devices] for one in table.servers] == [
        [(0, "192.168.1.100", 0), (1, "192.168.1.101", 1)],
        [(0, "192.168.2.100", 2), (1, "192.168.2.101", 3)],
    ]
    assert prepare(preset("debug"), tmp_path / "run", rank_table="runs/hccl.json", node_rank=1)[1].world == 4
    again = form_of(backend="ranktable")
    assert again.machines == form.machines and again.file_state == "same"
    again.add_server("10.0.0.3", "4,6", "192.168.3.100,192.168.3.101")
    with pytest.raises(InputError, match="hccl.json holds something else"):
        again.ready()
    assert read_rank_table("runs/hccl.json") == table


@pytest.mark.parametrize(
    "entry, message",
    [
        (("10.0.0", "", "192.168.1.1"), "server_id is '10.0.0', which is not an IP address"),
        (("10.0.0.1", "0-x", "192.168.1.1"), "write numbers such as 0-7"),
        (("10.0.0.1", "0-99999999", "192.168.1.1"), "device_id 99999999 is above 15"),
        (("10.0.0.1", "0-2", CONF), "the text has no address for device 2, only for 0, 1"),
        (("10.0.0.1", "0-2", "192.168.1.1,192.168.1.2"), "3 devices, but 2 addresses"),
        (("10.0.0.1", "0,0", "192.168.1.1,192.168.1.2"), "device_id 0 is listed twice"),
        (("10.0.0.1", "", "one two"), "device_ip is 'one', which is not an IP address"),
        (("10.0.0.1", "0", ""), "/etc/hccn.conf: not readable, so the devices' addresses are not known"),
    ],
)
def test_a_mistake_in_a_server_is_told_in_the_words_of_the_command(form_of, entry, message):
    form = form_of(backend="ranktable")
    form.entry = dict(zip(("server", "devices", "addresses"), entry))
    assert message in form.errors["entry"] and "\n" not in form.errors["entry"]
    assert message in page(form, do="add_server") and form.machines == []


def test_tables_made_on_the_servers_are_merged_and_what_does_not_go_together_changes_nothing(form_of):
    tables = [server_table(f"10.0.0.{n}", "0-1", f"192.168.{n}.1,192.168.{n}.2") for n in (1, 2)]
    form = form_of(backend="ranktable")
    files = [{"name": f"{n}.json", "text": json.dumps(table.to_json())} for n, table in enumerate(tables)]
    assert page(form, do="add_tables", files=files) == "" and form.table == merge_rank_tables(tables)
    write_rank_table(tables[0], "one.json")
    with pytest.raises(InputError, match="the merged table: server_id 10.0.0.1 is listed twice"):
        form.add_table("one.json")
    with pytest.raises(InputError, match="different numbers of devices"):
        form.add_server("10.0.0.9", "0", "192.168.9.1")
    assert "broken.json is not readable JSON" in page(
        form, do="add_tables", files=[{"name": "broken.json", "text": "{"}]
    )
    assert form.table == merge_rank_tables(tables)


def test_a_named_table_with_a_mistake_is_refused_in_one_line(form_of, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"version": "1.0"}))
    form = form_of(backend="ranktable", table_file="bad.json")
    assert form.errors["table"] == "bad.json: has no 'server_count'"
    with pytest.raises(InputError, match="bad.json: has no 'server_count'"):
        form.ready()
    form.table_file = "other.json"
    assert form.errors == {}


def test_it_is_told_without_a_page_too(form_of):
    form = form_of(backend="mpirun", several=True, hosts_text="<b> slots=2")
    assert "! hosts, line 1" in form.still_text() and "<b>" not in form.still_html()
    form.hosts_text = "a slots=2\nb slots=1"
    assert form.still_text() == "Start with mpirun (Open MPI)\n  a: ranks 0 to 1\n  b: rank 2"
