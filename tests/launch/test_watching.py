"""Which processes a launcher takes for its own: known by identity, whatever the clock says and whoever got a number."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pangu_lab import locking
from pangu_lab.errors import InputError
from pangu_lab.identity import identity_of, own_identity
from pangu_lab.launch import LaunchFailed, launch
from pangu_lab.launch.job import Job, Patience, rank_process
from pangu_lab.launch.launcher import Launcher, prepare
from pangu_lab.launch.processes import Processes
from pangu_lab.launch.worker import _Orphan
from pangu_lab.presets import preset
from pangu_lab.progress import silent
from pangu_lab.runs.events import EventLog, EventReader
from pangu_lab.runs.heartbeat import Beat, read_beat
from pangu_lab.runs.status import run_lock

PROGRAM = str(Path(__file__).with_name("rank_program.py"))


@pytest.fixture
def process():
    started = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield started
    started.kill()
    started.wait()


def beat_of(pid: int, **changes) -> Beat:
    who = dataclasses.replace(identity_of(pid), **changes)
    return Beat(1, pid, 0.0, who.host, process=who.to_dict())


def test_a_rank_is_known_whatever_the_clock_says(process, monkeypatch):
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1e9)
    assert rank_process(beat_of(process.pid)).pid == process.pid


@pytest.mark.parametrize("changes", [{"ticks": 1}, {"boot": "another"}, {"namespace": "pid:[1]"}])
def test_a_stranger_with_the_ranks_number_is_neither_asked_nor_ended(tmp_path, process, changes):
    job = Job(prepare(preset("debug"), tmp_path / "run", 1)[1], Patience())
    beat = beat_of(process.pid, **changes)
    assert rank_process(beat) is None and job._stack(0, beat) == ()
    job.processes.end([found for found in (rank_process(beat),) if found is not None])
    assert process.poll() is None


def test_a_session_whose_number_went_to_a_stranger_is_not_ended(process):
    processes = Processes()
    gone = dataclasses.replace(identity_of(process.pid), ticks=1)
    processes._sessions[process.pid] = gone  # of a child of ours
    processes.end(grace=0.1)
    assert process.poll() is None
    processes._sessions[process.pid] = identity_of(process.pid)
    processes.end(grace=0.1)
    assert process.wait(timeout=30) < 0


def test_a_rank_knows_its_launcher_from_a_stranger_with_its_number(tmp_path, process, monkeypatch):
    monkeypatch.setenv("PANGU_LAB_LAUNCHER", f"{process.pid}@{own_identity().host}")
    orphan = _Orphan(tmp_path)
    assert not orphan.alone()
    orphan.launcher = dataclasses.replace(orphan.launcher, ticks=1)  # another process got its number
    assert orphan.alone()


def test_a_folder_in_which_a_launcher_or_a_training_is_at_work_is_refused(tmp_path):
    run = tmp_path / "run"
    with locking.Lock(run / "heartbeat" / "node_0.lock", str(run), "launches here", "wait"):
        with pytest.raises(InputError, match=f"process {os.getpid()} launches here .*stop it first"):
            launch(preset("debug"), run, 2)
    other = subprocess.Popen(["sleep", "60"])
    try:
        with run_lock(run) as lock:
            content = json.loads(lock.path.read_text())
            content["process"] = identity_of(other.pid).to_dict()  # as if that process held it
            lock.path.write_text(json.dumps(content).ljust(locking.SIZE))
            with pytest.raises(InputError, match=f"process {other.pid} is training here"):
                launch(preset("debug"), run, 2)
    finally:
        other.kill()
        other.wait()
    assert not (run / "launch.json").exists()


def test_what_a_rank_has_to_say_of_the_run_is_told_by_its_launcher(tmp_path):
    told: list[dict] = []
    config, plan = prepare(preset("debug"), tmp_path, 1)
    launcher = Launcher(config, plan, Patience(), told.append, silent, None, own_port=True)
    EventLog(tmp_path).write("warning", text="step-00000400 is damaged")
    launcher._report_progress(EventReader(tmp_path))
    assert told == [{"kind": "warning", "text": "step-00000400 is damaged"}]


def test_the_bar_of_a_launch_says_what_that_of_a_training_says(tmp_path):
    told: list[object] = []

    def progress(done, total, text):
        told.append((done, total, text))

    progress.until = told.append
    config, plan = prepare(preset("debug"), tmp_path, 1)
    launcher = Launcher(config, plan, Patience(), print, progress, None, own_port=True)
    log = EventLog(tmp_path)
    log.write("start", step=0, steps=20, budget=60.0)
    log.write("step", step=5, steps=400, loss=5.0, epoch=0.5, tokens=71360, tokens_per_second=1000.0)
    launcher._report_progress(EventReader(tmp_path))
    assert told == [60.0, (5, 400, "loss 5.000 · 1,000 tokens/s · epoch 0.50 · 1 tokens/parameter")]


def test_what_a_killed_launcher_left_half_written_goes(tmp_path):
    config, plan = prepare(preset("debug"), tmp_path, 1)
    for name in (".launch.json.abcdefgh", ".launch.yaml.abcdefgh", ".launch.yaml.mine"):
        (tmp_path / name).write_text("half")
    Launcher(config, plan, Patience(), print, silent, None, own_port=True)._open()
    assert {name for name in os.listdir(tmp_path) if name.startswith(".")} == {".launch.yaml.mine"}


@pytest.mark.multiprocess
def test_a_launcher_that_was_overtaken_ends_its_ranks_and_writes_nothing(tmp_path):
    run = tmp_path / "run"
    elsewhere = dataclasses.replace(own_identity(), host="elsewhere", boot="another")
    pids: list[int] = []

    def overtaken() -> bool:
        if not pids and (beat := read_beat(run, 0)) is not None and beat.state == "training":
            pids.append(beat.pid)
            (run / "heartbeat" / "node_0.lock").write_text(
                json.dumps({"process": elsewhere.to_dict(), "token": "theirs", "beats": 1, "since": 1e9, "firm": True})
            )
        return False

    with pytest.raises(LaunchFailed, match="on host elsewhere .*has taken over"):
        launch(preset("debug"), run, 1, program=[PROGRAM, "endless"], stop=overtaken, restarts=3)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pids[0])
    assert json.loads((run / "launch.json").read_text())["state"] == "running"
