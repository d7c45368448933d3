"""The command line with real training in every rank: a killed rank, a new attempt, Ctrl-C and the ``stop`` file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pangu_lab.runs import read_curves
from pangu_lab.runs.heartbeat import read_beat
from tests.launch.test_launch import processes_of

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(900)]


def start(run: Path, data: Path, *more: str) -> subprocess.Popen:
    """``pangu-lab launch`` of the debug preset over two data ranks, with a checkpoint every 10 steps."""
    words = [
        sys.executable,
        "-m",
        "pangu_lab.cli",
        "launch",
        "--preset",
        "debug",
        "--run",
        str(run),
        "--data",
        str(data / "train"),
        "--set",
        "parallel.data=2",
        "--set",
        "train.checkpoint_every=10",
        "--json",
        *more,
    ]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen, run: Path) -> None:
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoints/step-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)


def kill_rank(run: Path, rank: int) -> None:
    os.kill(read_beat(run, rank).pid, signal.SIGKILL)


def ended(process: subprocess.Popen) -> tuple[int, dict, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, json.loads(out.splitlines()[-1]), err


def test_a_killed_rank_is_named_and_the_launch_exits_1_within_20_seconds(tmp_path, debug_data):
    process = start(tmp_path / "run", debug_data, "--steps", "100000")
    wait_for_checkpoint(process, tmp_path / "run")
    kill_rank(tmp_path / "run", 1)
    killed = time.monotonic()
    code, told, err = ended(process)
    assert time.monotonic() - killed < 20 and code == 1 and told["rank"] == 1
    assert "rank 1 was killed by SIGKILL" in err and "rank_1.log" in err
    assert not processes_of(tmp_path / "run")


def test_a_new_attempt_goes_on_from_the_last_good_checkpoint(tmp_path, debug_data):
    run = tmp_path / "run"
    process = start(run, debug_data, "--steps", "60", "--restarts", "2")
    wait_for_checkpoint(process, run)
    kill_rank(run, 0)
    code, told, _ = ended(process)
    assert code == 0 and (told["reason"], told["step"], told["attempts"]) == ("finished", 60, 2)
    resumed = [event["resumed_from"] for event in read_curves(run).others if event["kind"] == "start"]
    assert len(resumed) == 2 and resumed[0] == 0 and resumed[1] >= 10
    assert [event["step"] for event in read_curves(run).steps] == list(range(1, 61))


@pytest.mark.parametrize("how", ["ctrl-c", "stop file"])
def test_all_ranks_stop_with_a_checkpoint_of_that_step(tmp_path, debug_data, how):
    run = tmp_path / "run"
    process = start(run, debug_data, "--steps", "100000")
    wait_for_checkpoint(process, run)
    if how == "ctrl-c":
        process.send_signal(signal.SIGINT)
    else:
        (run / "stop").touch()
    code, told, _ = ended(process)
    assert code == 0 and told["reason"] == ("signal" if how == "ctrl-c" else "stop file")
    assert (run / "checkpoints" / f"step-{told['step']:08d}" / "manifest.json").exists()
    assert not processes_of(run)
