"""Plans: which commands run where, for each back end and one or many hosts; what cannot work is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch import fit_layout, merge_rank_tables, prepare, write_rank_table
from pangu_lab.launch.plan import clean_environment
from pangu_lab.presets import preset
from tests.launch.test_rank_table import server

DEBUG = preset("debug")


def hosts_file(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def plan_of(folder: Path, **arguments):
    return prepare(DEBUG, folder / "run", **arguments)[1]


def test_local_starts_a_scheduler_and_each_rank(tmp_path):
    plan = plan_of(tmp_path, nproc=2)
    commands = plan.here.commands
    assert [command.name for command in commands] == ["scheduler", "rank 0", "rank 1"]
    assert all(
        c.argv == (sys.executable, "-m", "pangu_lab.launch.worker", "--run", str(tmp_path / "run")) for c in commands
    )
    assert [c.env["MS_ROLE"] for c in commands] == ["MS_SCHED", "MS_WORKER", "MS_WORKER"]
    assert [c.env.get("MS_NODE_ID") for c in commands] == [None, "0", "1"]
    ports = {c.env["MS_SCHED_PORT"] for c in commands}
    assert len(ports) == 1 and plan.master == f"127.0.0.1:{ports.pop()}"
    assert [Path(c.log).name for c in commands] == ["scheduler.log", "rank_0.log", "rank_1.log"]
    assert {c.env["PANGU_LAB_LOCAL_RANKS"] for c in commands} == {"2"}


def test_a_single_process_needs_no_scheduler(tmp_path):
    plan = plan_of(tmp_path)
    assert [c.name for c in plan.here.commands] == ["rank 0"] and plan.master == ""
    assert "MS_ROLE" not in plan.here.commands[0].env


def test_msrun_finds_this_python_first(tmp_path):
    (command,) = plan_of(tmp_path, nproc=2, backend="msrun", master_port=12345).here.commands
    assert command.env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    words = list(command.argv)
    for option, value in (
        ("--worker_num", "2"),
        ("--local_worker_num", "2"),
        ("--master_port", "12345"),
        ("--worker_log_name", "rank"),
        ("--join", "True"),
    ):
        assert words[words.index(option) + 1] == value
    assert words[-5:] == ["python", "-m", "pangu_lab.launch.worker", "--run", str(tmp_path / "run")]


def test_variables_of_collectives_and_what_is_asked_for_reach_every_rank_and_secrets_none(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    monkeypatch.setenv("PANGU_LAB_TOKEN", "secret")
    hosts = hosts_file(tmp_path, "one slots=2\ntwo slots=2\n")
    for backend in ("local", "msrun", "mpirun"):
        plan = plan_of(
            tmp_path,
            backend=backend,
            hosts=hosts,
            node_rank=0,
            master_addr="10.0.0.1",
            variables=["LD_LIBRARY_PATH", "MY_FLAG=a b"],
        )
        for command in (command for host in plan.hosts for command in host.commands):
            assert command.env["NCCL_SOCKET_IFNAME"] == "eth1" and command.env["LD_LIBRARY_PATH"] == "/opt/lib"
            assert command.env["MY_FLAG"] == "a b" and "PANGU_LAB_TOKEN" not in command.env
            if command.role == "mpirun":
                words = list(command.argv)
                assert {"NCCL_SOCKET_IFNAME", "LD_LIBRARY_PATH", "MY_FLAG"} < {
                    words[i + 1] for i, word in enumerate(words) if word == "-x"
                }
        if backend != "mpirun":
            assert any("--env LD_LIBRARY_PATH --env 'MY_FLAG=a b'" in line for line in plan.lines())


@pytest.mark.parametrize(
    "word, said",
    [
        ("RANK_ID=3", "sets it"),
        ("OMPI_COMM_WORLD_RANK=1", "sets it"),
        ("NOT SET", "NAME or NAME=VALUE"),
        ("SURELY_UNSET", "not set here"),
    ],
)
def test_a_variable_that_cannot_be_handed_over_is_refused(tmp_path, word, said):
    with pytest.raises(InputError, match=said):
        plan_of(tmp_path, nproc=2, variables=[word])


def test_mpirun_hands_every_variable_over(tmp_path):
    scheduler, mpirun = plan_of(tmp_path, nproc=2, backend="mpirun").here.commands
    assert scheduler.env["MS_ROLE"] == "MS_SCHED" and mpirun.env["MS_ROLE"] == "MS_WORKER"
    words = list(mpirun.argv)
    assert {words[i + 1] for i, word in enumerate(words) if word == "-x"} == set(mpirun.env)
    assert words[words.index("-np") + 1] == "2" and "--oversubscribe" in words
    assert ("--allow-run-as-root" in words) == (os.geteuid() == 0)


def test_several_hosts_number_ranks_through_and_meet_at_the_first(tmp_path):
    hosts = hosts_file(tmp_path, "10.0.0.1 slots=2\n10.0.0.2 slots=1\n10.0.0.3 slots=1")
    plan = plan_of(tmp_path, hosts=hosts, node_rank=1)
    assert [list(host.ranks) for host in plan.hosts] == [[0, 1], [2], [3]] and plan.world == 4
    assert [c.name for c in plan.hosts[0].commands] == ["scheduler", "rank 0", "rank 1"]
    assert [c.name for c in plan.here.commands] == ["rank 2"]
    rank_3 = plan.hosts[2].commands[0].env
    assert (rank_3["MS_NODE_ID"], rank_3["DEVICE_ID"], rank_3["MS_WORKER_NUM"]) == ("3", "0", "4")
    assert (rank_3["MS_SCHED_HOST"], rank_3["MS_SCHED_PORT"]) == ("10.0.0.1", "8118")
    text = plan.lines()
    assert [line for line in text if line.startswith("# host")] == [
        "# host 10.0.0.1 (node rank 0): ranks 0 to 1",
        "# host 10.0.0.2 (node rank 1): rank 2",
        "# host 10.0.0.3 (node rank 2): rank 3",
    ]
    assert any(line.startswith("# start there: pangu-lab launch") and line.endswith("--node-rank 2") for line in text)


def test_mpirun_starts_other_hosts_itself(tmp_path):
    hosts = hosts_file(tmp_path, "10.0.0.1 slots=2\n10.0.0.2 slots=2")
    plan = plan_of(tmp_path, hosts=hosts, backend="mpirun")
    assert len(plan.hosts[0].commands) == 2 and plan.hosts[1].commands == ()
    words = list(plan.hosts[0].commands[1].argv)
    assert words[words.index("--hostfile") + 1] == str(hosts) and words[words.index("-np") + 1] == "4"
    with pytest.raises(InputError, match="leave out --node-rank"):
        plan_of(tmp_path, hosts=hosts, backend="mpirun", node_rank=1)


def test_a_rank_table_gives_each_rank_its_device_and_no_scheduler(tmp_path):
    write_rank_table(merge_rank_tables([server(1), server(2)]), tmp_path / "table.json")
    plan = plan_of(tmp_path, rank_table=tmp_path / "table.json", backend="ranktable", node_rank=1)
    assert [c.name for c in plan.here.commands] == ["rank 2", "rank 3"] and plan.master == ""
    env = plan.here.commands[1].env
    assert env["RANK_TABLE_FILE"] == str(tmp_path / "table.json")
    assert (env["RANK_ID"], env["RANK_SIZE"], env["DEVICE_ID"]) == ("3", "4", "1")
    assert not [name for name in env if name.startswith("MS_")]


def test_what_is_printed_can_be_typed(tmp_path):
    line = plan_of(tmp_path, nproc=2).lines()[2]
    assert line.startswith("env PYTHONUNBUFFERED=1 ") and line.endswith("rank_0.log 2>&1")
    assert f" {sys.executable} -m pangu_lab.launch.worker --run " in line
    msrun = plan_of(tmp_path, nproc=2, backend="msrun").lines()[1]
    assert f"PATH={Path(sys.executable).parent}:$PATH" in msrun


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backend": "msrnu"}, "unknown back end 'msrnu' .did you mean 'msrun'"),
        ({"backend": "ranktable"}, "--rank-table FILE goes with --backend ranktable"),
        ({"backend": "msrun", "rank_table": "t.json"}, "--rank-table FILE goes with --backend ranktable"),
        ({"nproc": 2, "node_rank": 1}, "--node-rank 1 does not exist: there are 1 hosts"),
        ({"nproc": 2, "master_port": 80}, "--master-port 80 must be between 1024 and 65535"),
        ({"nproc": 3}, "batch_size=4 must be a multiple of 3"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_of(tmp_path, **arguments)
    assert "\n" not in str(caught.value)


def test_msrun_wants_equal_hosts(tmp_path):
    hosts = hosts_file(tmp_path, "10.0.0.1 slots=1\n10.0.0.2 slots=3")
    with pytest.raises(InputError, match="same number of ranks on every host"):
        plan_of(tmp_path, hosts=hosts, backend="msrun", node_rank=0)


def test_ranks_out_of_the_servers_order_are_refused(tmp_path):
    table = merge_rank_tables([server(1), server(2)]).to_json()
    first, second = table["server_list"]
    first["device"][0]["rank_id"], second["device"][0]["rank_id"] = "2", "0"
    from pangu_lab.files import write_json_atomic

    write_json_atomic(tmp_path / "t.json", table)
    with pytest.raises(InputError, match="ranks must follow the order of the servers"):
        plan_of(tmp_path, rank_table=tmp_path / "t.json", backend="ranktable", node_rank=0)


def test_the_data_dimension_takes_what_the_others_leave():
    assert fit_layout(DEBUG, 4).parallel.data == 4
    assert fit_layout(DEBUG.replace(**{"parallel.tensor": 2}), 4).parallel.data == 2
    chosen = DEBUG.replace(**{"parallel.data": 2})
    assert fit_layout(chosen, 2) == chosen
    with pytest.raises(InputError, match="4 processes do not fit the layout pipeline 1 × data 2 × tensor 1 = 2"):
        fit_layout(chosen, 4)
    with pytest.raises(InputError, match="parallel.tensor=3 must divide model.num_heads=4"):
        fit_layout(DEBUG.replace(**{"parallel.tensor": 3}), 3)


def test_without_a_number_of_processes_the_layout_gives_it(tmp_path):
    config, plan = prepare(DEBUG.replace(**{"parallel.tensor": 2, "parallel.data": 2}), tmp_path / "run")
    assert plan.world == 4 == config.parallel.world_size
    assert prepare(preset("13B"), tmp_path / "run")[1].world == 16
    with pytest.raises(InputError, match="3 processes do not fit the layout pipeline 1 × data 2 × tensor 8 = 16"):
        prepare(preset("13B"), tmp_path / "run", nproc=3)


def test_a_rank_table_wants_powers_of_two(tmp_path):
    write_rank_table(merge_rank_tables([server(1), server(2), server(3)]), tmp_path / "table.json")
    with pytest.raises(InputError, match="parallel.data=6 must be a power of two on Ascend"):
        prepare(
            DEBUG.replace(**{"data.batch_size": 6}),
            tmp_path / "run",
            rank_table=tmp_path / "table.json",
            backend="ranktable",
            node_rank=0,
        )


def test_an_outer_launch_leaves_no_trace_in_the_ranks(monkeypatch):
    for name in ("MS_ROLE", "RANK_ID", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    env = clean_environment({"RANK_ID": "5"})
    assert env["RANK_ID"] == "5" and env["KEPT"] == "1"
    assert not {"MS_ROLE", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE"} & set(env)
