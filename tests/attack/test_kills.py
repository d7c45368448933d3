"""The campaign of kills: a training that is killed again and again ends as one that never was.

Killed is with SIGKILL, at moments drawn from a seed: while it starts, compiles, steps, evaluates or saves. The next
start goes on by itself. In the end every loss is equal to the last bit, and nothing lies in the run folder that an
undisturbed run does not have.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pangu_lab.checkpoint import list_checkpoints
from pangu_lab.checkpoint.folder import Checkpoint
from pangu_lab.runs import read_curves
from pangu_lab.runs.status import read_status
from pangu_lab.train import train

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import sys\nfrom pangu_lab.presets import load_yaml\nfrom pangu_lab.train import train\n"
    "train(load_yaml(sys.argv[1]), sys.argv[2])"
)


def undisturbed(debug_config, folder: Path, steps: int) -> Path:
    """A folder with the settings, and a run that nobody kills."""
    config = debug_config.replace(
        **{
            "train.steps": steps,
            "train.checkpoint_every": 5,
            "train.eval_every": 50,
            "train.log_every": 1,
            "train.keep_checkpoints": 2,
        }
    )
    train(config, folder / "run")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return folder


def losses(run: Path) -> dict[int, float]:
    """Step → loss; a step that was taken again counts as it was the last time."""
    return {event["step"]: event["loss"] for event in read_curves(run).steps}


def content(run: Path) -> set[str]:
    """What lies in a run folder, but for logs and the names of a run's end."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*")} - {"stop"}


LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("kills, steps", [(3, 60), pytest.param(100, 400, marks=LONG)])
def test_a_training_killed_again_and_again_ends_as_one_that_never_was(debug_config, tmp_path, kills, steps):
    whole = undisturbed(debug_config, tmp_path, steps)
    run, moments = tmp_path / "killed" / "run", random.Random(kills)
    command = [sys.executable, "-c", START, str(whole / "config.yaml"), str(run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        before = len(losses(run)) if (run / "events.jsonl").exists() else 0
        wanted, deadline = (
            before + moments.randrange(0, max(2, steps // kills)),
            time.monotonic() + moments.uniform(0, 120),
        )
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and (not (run / "events.jsonl").exists() or len(losses(run)) < wanted)
        ):
            time.sleep(moments.uniform(0.01, 0.1))
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        assert not (run / "status.json").exists() or read_status(run)["state"] == "died"
        for path in list_checkpoints(run / "checkpoints")[-1:]:
            Checkpoint(path)  # whole, or it would not have its name
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert killed >= 3, "it ended before it could be killed"
    assert losses(run) == losses(whole / "run") and len(losses(run)) == steps
    assert content(run) == content(whole / "run")
