"""The run folder and its owner: one at a time, wherever it is, and none that was overtaken writes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pangu_lab import locking
from pangu_lab.checkpoint.folder import list_checkpoints
from pangu_lab.errors import InputError
from pangu_lab.identity import own_identity
from pangu_lab.locking import LockLost
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.presets import preset
from pangu_lab.runs import read_events
from pangu_lab.runs import status as runs
from pangu_lab.runs.status import STATUS, read_status
from pangu_lab.train import train
from pangu_lab.train.loop import TrainingFailed
from pangu_lab.train.ranks import Ranks
from pangu_lab.train.run_folder import RunFolder
from pangu_lab.train.saving import newest_together, save_together

ROOT = Path(__file__).resolve().parents[2]
OWN = """
import sys
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from pangu_lab.train.run_folder import RunFolder
run = RunFolder(sys.argv[1])
try:
    run.open(preset("debug"), "auto")
except InputError as error:
    print("held", error, flush=True)
    sys.exit(3)
with run.running(10):
    print("mine", flush=True)
    sys.stdin.readline()
"""


def start(folder, *within) -> subprocess.Popen:
    """An owner of the run in a process of its own, without the training."""
    return subprocess.Popen(
        [*within, sys.executable, "-c", OWN, str(folder)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def open_run(folder) -> RunFolder:
    run = RunFolder(folder)
    run.open(preset("debug"), "auto")
    return run


def save(run, step, value=0.0):
    save_together(run, step, {"a": np.full(10, value, np.float32)}, {}, {"step": step}, preset("debug"), Ranks(Mesh()))


def warnings_of(folder):
    return [event["text"] for event in read_events(folder) if event["kind"] == "warning"]


@pytest.fixture
def elsewhere():
    """The identity of a process on another host."""
    return dataclasses.replace(own_identity(), host="elsewhere", boot="another")


def take_over(folder, who):
    """What another process does that takes the lock over."""
    (folder / "lock").write_text(
        json.dumps({"process": who.to_dict(), "token": "theirs", "beats": 1, "since": 1e9, "firm": True}).ljust(
            locking.SIZE
        )
    )


# ------------------------------------------------------------------------------------------------------- one owner


def test_of_two_starts_in_a_new_folder_one_trains(tmp_path):
    for number in range(3):
        owners = [start(tmp_path / f"run{number}") for _ in range(2)]
        try:
            answers = [owner.stdout.readline() for owner in owners]
            assert sorted(answer.split()[0] for answer in answers) == ["held", "mine"]
        finally:
            for owner in owners:
                owner.communicate(timeout=30)
        assert not (tmp_path / f"run{number}" / "lock").exists()


def test_a_refused_start_changes_nothing(tmp_path):
    owner = start(tmp_path / "run")
    try:
        assert owner.stdout.readline() == "mine\n"
        (tmp_path / "run" / "stop").touch()
        with pytest.raises(InputError, match=f"{owner.pid} is training here .on host .* stop it first .create the"):
            RunFolder(tmp_path / "run").open(preset("debug").replace(**{"train.steps": 7}), "auto")
        assert (tmp_path / "run" / "stop").exists() and "steps: 7" not in (tmp_path / "run" / "config.yaml").read_text()
    finally:
        owner.communicate(timeout=30)


def test_a_start_that_fails_gives_the_folder_back(tmp_path):
    run = open_run(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").mkdir()
    with pytest.raises(IsADirectoryError), run.running(10):
        pytest.fail("it must not begin")
    (tmp_path / "run" / "events.jsonl").rmdir()
    with pytest.raises(InputError, match="train.seed"):
        save_run = open_run(tmp_path / "run")
        with save_run.running(10):
            save(save_run, 1)
        RunFolder(tmp_path / "run").open(preset("debug").replace(**{"train.seed": 5}), "auto")
    with open_run(tmp_path / "run").running(10):
        assert (tmp_path / "run" / "lock").exists()
    assert not (tmp_path / "run" / "lock").exists()


def test_a_killed_owner_is_seen_as_died_and_followed_without_a_wait(tmp_path):
    owner = start(tmp_path / "run")
    assert owner.stdout.readline() == "mine\n"
    assert read_status(tmp_path / "run")["state"] == "starting"
    owner.kill()
    owner.wait()
    assert read_status(tmp_path / "run")["state"] == "died"
    began = time.monotonic()
    with open_run(tmp_path / "run").running(10):
        assert time.monotonic() - began < 0.5
        assert read_status(tmp_path / "run")["state"] == "starting"


def test_a_clock_that_was_set_neither_kills_a_run_nor_lets_another_in(tmp_path, monkeypatch):
    owner = start(tmp_path / "run")
    try:
        assert owner.stdout.readline() == "mine\n"
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1e9)
        assert read_status(tmp_path / "run")["state"] == "starting"
        with pytest.raises(InputError, match="is training here"):
            open_run(tmp_path / "run")
    finally:
        owner.communicate(timeout=30)


def test_a_status_of_an_older_version_is_read(tmp_path):
    open_run(tmp_path / "run").lock.release()
    sleeper = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(sleeper.pid).create_time()
    (tmp_path / "run" / STATUS).write_text(json.dumps({"pid": sleeper.pid, "started": started, "state": "training"}))
    try:
        assert read_status(tmp_path / "run")["state"] == "training"
        with pytest.raises(InputError, match=f"process {sleeper.pid} is training here"):
            open_run(tmp_path / "run")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert read_status(tmp_path / "run")["state"] == "died"
    open_run(tmp_path / "run").lock.release()


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_a_status_of_another_shape_is_the_users_to_mend(tmp_path, content):
    (tmp_path / STATUS).write_text(content)
    with pytest.raises(InputError, match="status.json: the run's status"):
        read_status(tmp_path)


def test_an_owner_in_another_pid_namespace_is_seen_to_live_and_to_die(tmp_path, another_namespace):
    owner = start(tmp_path / "run", *another_namespace)
    try:
        assert owner.stdout.readline() == "mine\n"
        assert read_status(tmp_path / "run")["state"] == "starting"
        with pytest.raises(InputError, match="is training here .*in another container"):
            open_run(tmp_path / "run")
    finally:
        owner.kill()
        owner.stdout.read()  # to the end of the last process; with its standard input closed it would leave by itself
        owner.wait()
    deadline = time.monotonic() + 10
    while read_status(tmp_path / "run")["state"] != "died" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read_status(tmp_path / "run")["state"] == "died"
    open_run(tmp_path / "run").lock.release()


# ------------------------------------------------------------------------------------------------------ other hosts


def test_a_run_on_another_host_is_judged_by_its_beats(tmp_path, elsewhere, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])

    def write(beats, heartbeat):
        (tmp_path / STATUS).write_text(
            json.dumps(
                {
                    "pid": 1,
                    "process": elsewhere.to_dict(),
                    "beats": beats,
                    "step": 5,
                    "state": "training",
                    "heartbeat": heartbeat,
                }
            )
        )
        return read_status(tmp_path)

    assert write(1, time.time())["state"] == "training"
    now[0] += runs.SILENT_SECONDS - 1
    assert write(1, time.time())["state"] == "training"
    now[0] += 2
    died = write(1, time.time())
    assert died["state"] == "died" and died["reason"] == "no sign of life from host elsewhere (last heard of at step 5)"
    assert write(2, time.time() - 1e6)["state"] == "training", "it moves: its clock is wrong"


def test_a_run_that_fell_silent_long_ago_on_another_host_is_dead_at_the_first_look(tmp_path, elsewhere):
    (tmp_path / STATUS).write_text(
        json.dumps({"process": elsewhere.to_dict(), "beats": 9, "state": "training", "heartbeat": time.time() - 1e5})
    )
    assert read_status(tmp_path)["state"] == "died"


def test_an_owner_that_was_overtaken_writes_nothing_more(tmp_path, elsewhere):
    folder = tmp_path / "run"
    run = open_run(folder)
    with run.running(10):
        save(run, 4)
        status, events = (folder / STATUS).read_text(), (folder / "events.jsonl").read_text()
        take_over(folder, elsewhere)
        with pytest.raises(LockLost, match="on host elsewhere"):
            save(run, 8)
        with pytest.raises(LockLost):
            run.event("step", step=8)
        run.status(state="saving", step=8)
        run.finish("failed", 8, "overtaken")
    assert (folder / STATUS).read_text() == status and (folder / "events.jsonl").read_text() == events
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert json.loads((folder / "lock").read_text())["token"] == "theirs"


def test_an_owner_that_was_suspended_while_it_wrote_gives_its_checkpoint_no_name(tmp_path, elsewhere, monkeypatch):
    run = open_run(tmp_path / "run")
    with run.running(10):
        monkeypatch.setattr(run.keeper, "written", lambda *given: take_over(tmp_path / "run", elsewhere))
        with pytest.raises(LockLost):
            save(run, 8)
    assert list_checkpoints(run.checkpoints) == []


def test_training_that_was_overtaken_stops_without_a_checkpoint(debug_config, tmp_path, elsewhere):
    folder = tmp_path / "run"

    def overtaken(done, total, text):
        if done == 2:
            take_over(folder, elsewhere)

    with pytest.raises(TrainingFailed, match="has taken over; this process stops and writes no more"):
        train(debug_config.replace(**{"train.steps": 50, "train.checkpoint_every": 1}), folder, progress=overtaken)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-00000001"]
    assert [event["kind"] for event in read_events(folder)][-1] != "end"


# ------------------------------------------------------------------------------------------------- after a kill


def test_left_overs_of_a_killed_owner_go_and_a_checkpoint_moved_away_comes_back(tmp_path, caplog):
    folder = tmp_path / "run"
    run = open_run(folder)
    with run.running(10):
        save(run, 4)
    left = [
        ".status.json.abcdefgh",
        ".config.yaml.12345678",
        "checkpoints/.step-00000008.shards/shard",
        "checkpoints/.step-00000008.partial-abcdefgh/shard",
        ".tokenizer.partial-abcdefgh/model",
        ".mine/notes",
    ]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    old = folder / "checkpoints" / ".step-00000004.old-abcdefgh"
    old.mkdir()
    (folder / "checkpoints" / "step-00000004").rename(old / "old")
    again = RunFolder(folder)
    with pytest.raises(InputError, match="train.start_lr"):  # the run has a checkpoint: its settings hold
        again.open(preset("debug").replace(**{"train.start_lr": 0.5}), "auto")
    run = open_run(folder)
    with run.running(10):
        assert newest_together(run, False, Ranks(Mesh())).step == 4
    assert sorted(os.listdir(folder / "checkpoints")) == ["step-00000004"]
    assert {name for name in os.listdir(folder) if name.startswith(".")} == {".mine", ".reserve"}
    assert "step-00000004: put back" in caplog.text


def test_a_new_run_may_begin_beside_what_a_launcher_was_writing(tmp_path):
    folder = tmp_path / "run"
    (folder / "heartbeat").mkdir(parents=True)
    for name in (".launch.json.abcdefgh", ".config.yaml.abcdefgh", "launch.yaml"):
        (folder / name).write_text("half")
    open_run(folder).lock.release()
    assert (folder / ".launch.json.abcdefgh").exists() and not (folder / ".config.yaml.abcdefgh").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        open_run(tmp_path / "other")
    assert os.listdir(tmp_path / "other") == ["notes.txt"]


def test_falling_back_and_starting_over_are_told_by_name(debug_config, tmp_path, caplog):
    folder = tmp_path / "run"
    config = debug_config.replace(
        **{"train.steps": 4, "train.checkpoint_every": 2, "data.eval_path": "", "train.keep_checkpoints": 1}
    )
    train(config, folder)
    os.truncate(folder / "checkpoints" / "step-00000004" / "shard-00000.safetensors", 1000)
    with pytest.raises(InputError, match="no good checkpoint is left, damaged are step-00000004.*--start-over"):
        train(config, folder)
    assert [event["resumed_from"] for event in read_events(folder) if event["kind"] == "start"] == [0]
    result = train(config, folder, resume="start-over")
    assert result.step == 4
    assert [event["resumed_from"] for event in read_events(folder) if event["kind"] == "start"] == [0, 0]
    assert sorted(os.listdir(folder / "checkpoints")) == ["step-00000004", "step-00000004.damaged"]
    for text in ("set aside as step-00000004.damaged", "starting over at step 0"):
        assert text in caplog.text and any(text in warning for warning in warnings_of(folder))


def test_a_word_for_resume_that_is_not_known_is_refused(debug_config, tmp_path):
    with pytest.raises(InputError, match="resume='restart' is not known"):
        train(debug_config, tmp_path / "run", resume="restart")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_run_that_died_of_a_full_disk_says_so(small_disk):
    run = open_run(small_disk / "run")
    with run.running(10):
        with pytest.raises(OSError) as caught, open(small_disk / "other", "wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        with pytest.raises(OSError):
            run.status(state="saving", step=7)
        run.finish("failed", 7, f"{type(caught.value).__name__}: {caught.value}")
    status = read_status(small_disk / "run")
    assert (status["state"], status["step"]) == ("failed", 7) and "No space left on device" in status["reason"]
