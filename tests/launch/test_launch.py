"""Launches with real processes: they start, are watched, named when they fail, stopped, begun anew, and none is left.

Each start costs MindSpore's import and the meeting of the ranks, about 6 s on a quiet machine; what differs between
back ends only in the starting is tested thoroughly for one and, marked slow, for the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pangu_lab.errors import InputError
from pangu_lab.launch import LaunchFailed, Patience, launch
from pangu_lab.launch.hosts import free_port
from pangu_lab.presets import preset
from pangu_lab.runs.heartbeat import read_beat

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = str(Path(__file__).with_name("rank_program.py"))
ALL = ("local", pytest.param("msrun", marks=pytest.mark.slow), pytest.param("mpirun", marks=pytest.mark.slow))
pytestmark = pytest.mark.multiprocess


def skip_without(backend: str) -> None:
    if backend == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("Open MPI is not installed")


def processes_of(run: Path) -> list[psutil.Process]:
    """Everything that has this run's folder in its command line, but us."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def start(run: Path, fault: str = "", **arguments):
    """Launch two ranks; the result or the error, and the events with the time each came."""
    events: list[dict] = []
    program = [PROGRAM, fault] if fault else [PROGRAM]

    def note(event: dict) -> None:
        events.append({**event, "at": time.monotonic()})

    try:
        outcome = launch(preset("debug"), run, 2, program=program, on_event=note, **arguments)
    except (LaunchFailed, InputError) as error:
        outcome = error
    assert not processes_of(run), "a process is left"
    return outcome, events


def seconds_to_the_end(run: Path, events: list[dict], rank: int = 1) -> float:
    """From the rank's last sign of life to the launcher's verdict."""
    failed = next(event for event in events if event["kind"] == "failed")
    return failed["at"] - time.monotonic() + time.time() - read_beat(run, rank).time


# ------------------------------------------------------------------------------------------------- a good end


@pytest.mark.parametrize("backend", ["local", pytest.param("msrun", marks=pytest.mark.slow), "mpirun"])
def test_ranks_meet_and_add_up_and_end(tmp_path, backend):
    skip_without(backend)
    result, events = start(tmp_path / "run", backend=backend)
    assert (result.reason, result.step, result.world, result.attempts) == ("finished", 6, 2, 1)
    cores = len(os.sched_getaffinity(0))
    for rank in (0, 1):
        saw = (tmp_path / "run" / f"saw-{rank}").read_text()
        assert saw == f"OMP_NUM_THREADS={max(1, cores // 2)} MS_NODE_ID={rank} DEVICE_ID={rank}"
        assert (tmp_path / "run" / "logs" / f"rank_{rank}.log").exists()
    states = [event["state"] for event in events if event["kind"] == "rank" and event["rank"] == 1]
    assert states[0] == "starting" and states[-1] == "done" and events[-1]["kind"] == "ended"


# ------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("backend", ALL)
def test_a_killed_rank_is_named_and_the_others_are_ended(tmp_path, backend):
    skip_without(backend)
    error, events = start(tmp_path / "run", "die", backend=backend)
    assert isinstance(error, LaunchFailed) and error.rank == 1
    word = "was killed by SIGKILL" if backend == "local" else "ended without a word"
    assert str(error).startswith(f"rank 1 {word}")
    assert seconds_to_the_end(tmp_path / "run", events) < 20


@pytest.mark.parametrize("backend", ALL)
def test_a_rank_that_cannot_compile_is_named_with_the_lines_that_help(tmp_path, backend):
    skip_without(backend)
    error, events = start(tmp_path / "run", "compile", backend=backend)
    assert isinstance(error, LaunchFailed) and error.rank == 1
    assert error.lines[0].startswith("ValueError: MatMul inputs should have the same dimension")
    assert any("x = self.product(x, x)" in line for line in error.lines), "the network's own line"
    assert str(error).count("\n") == len(error.lines) <= 12
    assert seconds_to_the_end(tmp_path / "run", events) < 20


@pytest.mark.slow
@pytest.mark.parametrize("backend", ALL)
def test_an_exception_is_told_and_not_the_end_of_the_rank_that_waited(tmp_path, backend):
    skip_without(backend)
    error, _ = start(tmp_path / "run", "raise", backend=backend)
    assert error.rank == 1 and error.lines[:2] == ("ValueError: a wrong number", "and a second line")


@pytest.mark.parametrize("backend", ALL)
def test_a_rank_that_stands_still_is_named_with_where_it_stands(tmp_path, backend):
    skip_without(backend)
    error, _ = start(tmp_path / "run", "stand", backend=backend, patience=Patience(step=4))
    assert str(error).startswith("rank 1 hangs: no progress for")
    assert any("in do_fault" in line for line in error.lines), "its Python stack"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ALL)
def test_a_stopped_process_is_named_though_it_cannot_answer(tmp_path, backend):
    skip_without(backend)
    error, _ = start(tmp_path / "run", "freeze", backend=backend, patience=Patience(heartbeat=4, step=15))
    assert str(error).startswith("rank 1 hangs:") and error.rank == 1


@pytest.mark.slow
def test_a_mistake_of_the_user_found_by_a_rank_is_one_line_and_is_not_tried_again(tmp_path):
    error, events = start(tmp_path / "run", "refuse", restarts=3)
    assert isinstance(error, InputError) and str(error) == "data.path: holds nothing; give another"
    assert [event["kind"] for event in events].count("started") == 1


def test_a_failed_launch_is_begun_anew_and_its_logs_are_kept(tmp_path):
    result, events = start(tmp_path / "run", "once", restarts=1)
    assert (result.reason, result.attempts) == ("finished", 2)
    assert [event["attempt"] for event in events if event["kind"] == "restart"] == [2]
    old = tmp_path / "run" / "logs" / "attempt-1" / "rank_1.log"
    assert "only the first time" in old.read_text()
    assert "only the first time" not in (tmp_path / "run" / "logs" / "rank_1.log").read_text()


@pytest.mark.slow
def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path, monkeypatch):
    import socket

    from pangu_lab.launch import launcher

    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    ports = iter([taken.getsockname()[1], free_port()])
    monkeypatch.setattr(launcher, "free_port", lambda: next(ports))
    with taken:
        result, events = start(tmp_path / "run")
    assert result.reason == "finished" and result.attempts == 1
    assert [event["kind"] for event in events].count("started") == 2


# ---------------------------------------------------------------------------------------------------- stopping

LAUNCHER = """
import sys
from pangu_lab.launch import launch
from pangu_lab.presets import preset
run, backend, program, more = sys.argv[1:5]
result = launch(preset("debug"), run, 2, backend, program=[program, more])
print(result.reason, result.step)
"""


def start_apart(run: Path, backend: str) -> subprocess.Popen:
    """A launcher in a process of its own, with ranks that go on until they are stopped; returns when they work."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run), backend, PROGRAM, "endless"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not all((beat := read_beat(run, rank)) and beat.state == "training" for rank in (0, 1)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    return process


def wait_until_gone(run: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(run)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("how", ["ctrl-c", pytest.param("file", marks=pytest.mark.slow)])
def test_all_ranks_stop_at_the_same_step_and_save(tmp_path, backend, how):
    skip_without(backend)
    run = tmp_path / "run"
    process = start_apart(run, backend)
    if how == "file":
        (run / "stop").touch()
    else:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    saved = [(run / f"saved-{rank}").read_text() for rank in (0, 1)]
    assert process.returncode == 0 and saved[0] == saved[1]
    assert out.split() == [*("signal" if how == "ctrl-c" else "stop file").split(), saved[0]]
    wait_until_gone(run, 5)


STOPPED_AT_ONCE = """
import sys, time
from pathlib import Path
from pangu_lab.launch.worker import run_rank
from pangu_lab.runs.heartbeat import beat

run = Path(sys.argv[sys.argv.index("--run") + 1])

def work(place):
    time.sleep(1.2)  # between two heartbeats
    beat("compiling", 0)
    (run / "stop").touch()
    time.sleep(0.5)
    (run / "saved").touch()
    return "stop file"

run_rank(run, work)
"""


def test_a_run_stopped_in_the_second_in_which_it_began_still_saves(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(STOPPED_AT_ONCE)
    result = launch(preset("debug"), tmp_path / "run", 1, program=[str(program)])
    assert result.reason == "stop file" and (tmp_path / "run" / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "msrun", "mpirun"])
def test_ranks_whose_launcher_was_killed_save_and_go(tmp_path, backend):
    skip_without(backend)
    run = tmp_path / "run"
    process = start_apart(run, backend)
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(run, 30)
    assert (run / "saved-0").read_text() == (run / "saved-1").read_text()


def test_a_second_launch_in_the_same_folder_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    process = psutil.Process()
    from pangu_lab.files import write_json_atomic

    write_json_atomic(run / "status.json", {"pid": os.getpid(), "started": process.create_time(), "state": "training"})
    with pytest.raises(InputError, match=f"process {os.getpid()} is training here"):
        launch(preset("debug"), run, 2)


def test_a_rank_table_needs_an_ascend_device(tmp_path):
    if list(Path("/dev").glob("davinci[0-9]*")):
        pytest.skip("this machine has Ascend devices")
    from pangu_lab.launch import create_rank_table, write_rank_table

    write_rank_table(create_rank_table("127.0.0.1", [0, 1], ["192.168.1.1", "192.168.1.2"]), tmp_path / "t.json")
    with pytest.raises(InputError, match="this machine has no Ascend device"):
        launch(preset("debug"), tmp_path / "run", backend="ranktable", rank_table=tmp_path / "t.json")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------- several hosts

NODE = """
import sys
from pangu_lab.launch import LaunchFailed, launch
from pangu_lab.presets import preset
run, hosts, node, port, program, fault, backend = sys.argv[1:8]
where = {"master_addr": "127.0.0.1", "node_rank": int(node), "master_port": int(port)} if node else {}
try:
    result = launch(preset("debug"), run, backend=backend, hosts=hosts, program=[program, fault], **where)
    print(result.reason, result.plan.node_rank)
except LaunchFailed as error:
    print(error)
    sys.exit(1)
"""


def two_launchers(folder: Path, fault: str = "") -> list[tuple[int, str]]:
    """A launcher for each of two hosts, both of which are this machine; exit code and output of each."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    port = str(free_port())
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, str(folder / "run"), str(hosts), str(node), port, PROGRAM, fault, "local"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    ended = [(node.communicate(timeout=120)[0], node.returncode) for node in nodes]
    assert not processes_of(folder / "run")
    return [(code, out.strip()) for out, code in ended]


def test_launchers_of_two_hosts_meet(tmp_path):
    assert two_launchers(tmp_path) == [(0, "finished 0"), (0, "finished 1")]


@pytest.mark.slow
def test_a_rank_that_dies_on_one_host_ends_the_other(tmp_path):
    first, second = two_launchers(tmp_path, "die")
    assert first[0] == second[0] == 1
    assert first[1].startswith("on host 127.0.0.2: rank 1 was killed by SIGKILL")
    assert second[1].startswith("rank 1 was killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "msrun"])
def test_two_hosts_with_networks_of_their_own_find_themselves_and_each_other(tmp_path, two_hosts, backend):
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{host.address} slots=1\n" for host in two_hosts))
    nodes = [
        subprocess.Popen(
            [*host.within, sys.executable, "-c", NODE, str(tmp_path / "run"), str(hosts), "", "", PROGRAM, "", backend],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in two_hosts
    ]
    ended = [(node.communicate(timeout=120)[0].strip(), node.returncode) for node in nodes]
    assert ended == [("finished 0", 0), ("finished 1", 0)]
    assert not processes_of(tmp_path / "run")
