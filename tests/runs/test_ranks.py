"""The ranks of a run on several hosts: what each writes, how old it is, and that no host judges another's processes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from pangu_lab.cli import main
from pangu_lab.identity import own_identity
from pangu_lab.runs import ranks
from pangu_lab.runs.heartbeat import Heartbeat, beat_file
from pangu_lab.runs.ranks import RankReader, read_ranks

BEAT = """
import sys
from pangu_lab.runs import heartbeat
heartbeat.start_heartbeat(sys.argv[1], 1)
heartbeat.beat("training", 7)
print("beating", flush=True)
sys.stdin.read()
"""


def write(run, rank, state="training", step=3, age=0.0, **who):
    """A heartbeat as a process would have left it, ``age`` seconds ago."""
    identity = dataclasses.replace(own_identity(), **who)
    beat = {
        "rank": rank,
        "pid": identity.pid,
        "started": 1.0,
        "host": identity.host,
        "state": state,
        "step": step,
        "time": time.time() - age,
        "process": identity.to_dict(),
    }
    path = beat_file(run, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(beat))


def test_each_rank_is_a_line_with_its_host_process_step_and_age(tmp_path):
    heartbeat = Heartbeat(tmp_path, 0)
    heartbeat.beat("training", 5)
    heartbeat.stop()
    write(tmp_path, 1, host="node-b", boot="another", pid=41, step=4, age=3)
    write(tmp_path, 10, "done", host="node-c", boot="a third", pid=1 << 22, age=500)
    mine, other, last = read_ranks(tmp_path)
    assert (mine.rank, mine.host, mine.pid) == (0, socket.gethostname(), os.getpid()) and mine.age < 5
    assert (other.rank, other.host, other.pid, other.state, other.step) == (
        1,
        "node-b",
        41,
        "training",
        4,
    ) and 3 <= other.age < 60
    assert (last.rank, last.state) == (10, "done")


def test_a_process_that_ended_here_is_gone_and_one_elsewhere_is_silent_at_most(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write(tmp_path, 0, pid=ended.pid)
    write(tmp_path, 1, host="node-b", boot="another", pid=ended.pid)
    write(tmp_path, 2, host="node-b", boot="another", pid=ended.pid, age=1000)
    write(tmp_path, 3, namespace="pid:[1]", pid=ended.pid)
    assert [one.state for one in read_ranks(tmp_path)] == ["gone", "training", "silent", "training"]


def test_ages_are_of_this_hosts_clock_once_a_heartbeat_was_seen_to_change(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now[0])
    reader = RankReader(tmp_path)
    assert reader.read() == []
    write(tmp_path, 0, host="node-b", boot="another", age=5000)  # its clock is behind, or it died long ago
    assert reader.read()[0].state == "silent"
    write(tmp_path, 0, host="node-b", boot="another", age=4999)
    assert reader.read()[0].age == 0.0 and reader.read()[0].state == "training"
    now[0] += 20
    assert reader.read()[0].age == 20.0
    now[0] += 20
    assert reader.read()[0].state == "silent"


def test_ranks_of_an_earlier_larger_launch_and_damaged_files_are_left_out(tmp_path):
    for rank in range(4):
        write(tmp_path, rank)
    beat_file(tmp_path, 1).write_text("{")
    (tmp_path / "launch.json").write_text(json.dumps({"world": 3}))
    assert [one.rank for one in read_ranks(tmp_path)] == [0, 2]


def test_a_rank_in_a_machine_of_its_own_writes_that_machines_name_and_is_not_judged_by_our_processes(tmp_path):
    """Host name and process numbers of their own, as in another container: its pid means another process here, or none."""
    within = [
        "unshare",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        'hostname node-b && exec "$@"',
        "sh",
    ]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    rank = subprocess.Popen(
        [*within, sys.executable, "-c", BEAT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert rank.stdout.readline() == b"beating\n"
        end = time.monotonic() + 30
        while (seen := read_ranks(tmp_path)[0]).step != 7:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert (seen.host, seen.state) == ("node-b", "training") and seen.pid < 10
    finally:
        rank.communicate(b"", timeout=30)
    assert read_ranks(tmp_path)[0].state == "training", "ended without a word, which nobody here can know"


def test_the_command_lists_them(tmp_path, capsys):
    assert main(["runs", str(tmp_path), "--ranks"]) == 2 and "no run here" in capsys.readouterr().err
    (tmp_path / "launch.json").write_text(json.dumps({"world": 2}))
    assert main(["runs", str(tmp_path), "--ranks"]) == 0 and "no heartbeats" in capsys.readouterr().out
    write(tmp_path, 0)
    write(tmp_path, 1, host="node-b", boot="another", pid=41)
    assert main(["runs", str(tmp_path), "--ranks", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("node-b" in line and "41" in line and "training" in line for line in lines)
    assert [one["host"] for one in json.loads(lines[-1])] == [socket.gethostname(), "node-b"]
