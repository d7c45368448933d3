"""Runs beside each other in the terminal, and read back from what TensorBoard is given."""

from __future__ import annotations

import json
import os
import struct
import time

import psutil
import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from pangu_lab.train.comparison import compare_runs, export_tensorboard
from pangu_lab.train.curves import smoothed


def write_run(folder, losses, **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(preset("debug").replace(**changes).to_yaml())
    with open(folder / "events.jsonl", "w") as handle:
        for step, loss in enumerate(losses, 1):
            handle.write(json.dumps({"v": 1, "kind": "step", "time": 1000.0 + step, "step": step, "loss": loss,
                                     "lr": 1e-3, "tokens_per_second": 900.0}) + "\n")
        handle.write(json.dumps({"v": 1, "kind": "eval", "time": 2000.0, "step": len(losses), "loss": 4.5,
                                 "perplexity": 90.0}) + "\n")
    (folder / "status.json").write_text(json.dumps(
        {"pid": os.getpid(), "started": psutil.Process().create_time(), "state": "finished", "step": len(losses),
         "steps": len(losses), "reason": "finished", "heartbeat": time.time()}))
    return folder


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "a", [6.0 - 0.1 * step for step in range(20)])
    write_run(tmp_path / "runs" / "b", [6.0 - 0.2 * step for step in range(10)], **{"train.start_lr": 0.001})
    return tmp_path / "runs"


def test_a_comparison_names_the_settings_that_differ_and_losses_at_common_steps(runs):
    found = compare_runs([runs / "a", runs / "b"])
    assert found.settings == {"train.start_lr": [0.003, 0.001]}
    want = smoothed([6.0 - 0.1 * step for step in range(20)]), smoothed([6.0 - 0.2 * step for step in range(10)])
    assert found.losses[10] == [want[0][9], want[1][9]] and found.losses[20] == [want[0][19], None]
    assert [len(curve) for curve in found.curves] == [40, 40] and found.curves[1].endswith(" " * 20)
    assert found.curves[0][0] == "█" and found.curves[0].rstrip()[-1] < found.curves[0][20] < "█"


def test_the_command_line_compares_and_says_what_is_missing(runs, capsys):
    assert main(["runs", str(runs), "--compare", "a", "b", "--json"]) == 0
    out = capsys.readouterr().out
    assert "train.start_lr" in out and "█" in out
    assert json.loads(out.splitlines()[-1])["comparison"]["settings"] == {"train.start_lr": [0.003, 0.001]}
    assert main(["runs", str(runs), "--compare", "a", "nobody"]) == 2
    assert "nobody: no run here" in capsys.readouterr().err
    with pytest.raises(InputError, match="two runs or more"):
        compare_runs([runs / "a"])


def scalars(folder):
    """(tag, step, time, value) of every scalar in a folder of TensorBoard's event files: records of length, checksum,
    message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12:at + 12 + size])
            found += [(value.tag, event.step, event.wall_time, value.simple_value) for value in event.summary.value]
            at += 16 + size
    return found


def test_tensorboard_gets_every_scalar_once_with_its_step_and_time_however_often_it_is_written(runs, tmp_path, capsys):
    out = tmp_path / "board"
    assert main(["runs", str(runs), "--tensorboard", str(out)]) == 0
    export_tensorboard(runs / "a", out)
    found = scalars(out / "a")
    losses = [(step, when, value) for tag, step, when, value in found if tag == "train/loss"]
    assert losses == [(step, 1000.0 + step, pytest.approx(6.1 - 0.1 * step)) for step in range(1, 21)]
    assert ("eval/perplexity", 20, 2000.0, 90.0) in found and len(scalars(out / "b")) == 10 * 3 + 2
    assert {tag for tag, *_ in found} == {"train/loss", "train/lr", "train/tokens_per_second", "eval/loss",
                                          "eval/perplexity"}


def test_an_export_never_replaces_something_else(runs, tmp_path):
    (tmp_path / "board" / "a").mkdir(parents=True)
    (tmp_path / "board" / "a" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        export_tensorboard(runs / "a", tmp_path / "board")
    assert (tmp_path / "board" / "a" / "notes.txt").read_text() == "mine"
