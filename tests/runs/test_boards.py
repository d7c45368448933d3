"""What TensorBoard and SwanLab are given: read back from event files, or seen by a stand-in."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.runs import boards


def records(data):
    """The messages of one of TensorBoard's event files: each is length, checksum, message, checksum."""
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + size]
        at += 16 + size


def scalars(folder):
    """(tag, step, time, value) of every scalar in a folder of event files."""
    from tensorboardX.proto.event_pb2 import Event

    events = [Event.FromString(data) for path in folder.iterdir() for data in records(path.read_bytes())]
    return [
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events
        for value in event.summary.value
    ]


def test_tensorboard_gets_every_scalar_once_with_its_step_and_time_however_often_it_is_written(runs, tmp_path, capsys):
    out = tmp_path / "board"
    assert main(["runs", str(runs), "--tensorboard", str(out)]) == 0
    boards.export_tensorboard(runs / "a", out)
    found = scalars(out / "a")
    losses = [(step, when, value) for tag, step, when, value in found if tag == "train/loss"]
    assert losses == [(step, 1000.0 + step, pytest.approx(6.1 - 0.1 * step)) for step in range(1, 21)]
    assert ("eval/perplexity", 20, 2000.0, 90.0) in found and len(scalars(out / "b")) == 10 * 3 + 2
    assert {tag for tag, *_ in found} == {
        "train/loss",
        "train/lr",
        "train/tokens_per_second",
        "eval/loss",
        "eval/perplexity",
    }


def test_an_export_never_replaces_something_else(runs, tmp_path):
    (tmp_path / "board" / "a").mkdir(parents=True)
    (tmp_path / "board" / "a" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are not an export"):
        boards.export_tensorboard(runs / "a", tmp_path / "board")
    assert (tmp_path / "board" / "a" / "notes.txt").read_text() == "mine"


def append(run, *events):
    with open(run / "events.jsonl", "a") as handle:
        handle.writelines(json.dumps({"v": 1, "time": 3000.0, **event}) + "\n" for event in events)


def test_a_followed_run_arrives_as_it_grows_and_takes_back_what_a_resume_does_again(runs, tmp_path):
    def arrives(step, when, value):
        end = time.monotonic() + 20
        while ("train/loss", step, when, pytest.approx(value)) not in scalars(tmp_path / "board" / "b"):
            assert time.monotonic() < end
            time.sleep(0.1)

    def ticks():
        yield
        arrives(10, 1010.0, 4.2)
        append(runs / "b", {"kind": "start", "resumed_from": 8}, {"kind": "step", "step": 9, "loss": 1.5})
        yield
        arrives(9, 3000.0, 1.5)

    boards.follow(lambda: [runs / "b"], lambda run: boards.live_tensorboard(run, tmp_path / "board"), ticks())
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    second = [Event.FromString(data) for data in records(sorted((tmp_path / "board" / "b").iterdir())[-1].read_bytes())]
    # TensorBoard drops what is at the step of such a mark, or later
    assert [event.step for event in second if event.session_log.status == SessionLog.START] == [9]


def test_runs_that_begin_while_others_are_followed_get_a_board(runs):
    given = []
    board = lambda run: SimpleNamespace(
        add=lambda event: given.append((run.name, event["step"])), close=lambda: given.append((run.name, "closed"))
    )
    now = iter([[runs / "b"], [runs / "b", runs / "a"]])
    boards.follow(lambda: next(now), board, iter(range(2)))
    assert given[:11] == [("b", step) for step in (*range(1, 11), 10)] and given[11:13] == [("a", 1), ("a", 2)]
    assert given[-2:] == [("b", "closed"), ("a", "closed")]


@pytest.fixture
def swanlab(monkeypatch):
    """Stands in for the package; ``logged`` and ``begun`` are what it was told."""
    told = SimpleNamespace(logged=[], begun=[], Settings=lambda **values: values)
    run = SimpleNamespace(
        log=lambda data, step: told.logged.append((step, data)), finish=lambda: told.logged.append("end")
    )
    told.init = lambda **values: told.begun.append(values) or run
    monkeypatch.setitem(sys.modules, "swanlab", told)
    monkeypatch.setitem(sys.modules, "swankit", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "swankit.callback", SimpleNamespace(SwanKitCallback=object))
    return told


def test_swanlab_gets_a_run_with_its_settings_and_every_step_and_sends_nothing(runs, tmp_path, swanlab, capsys):
    assert main(["runs", str(runs / "b"), "--swanlab", str(tmp_path / "swan")]) == 0
    (begun,) = swanlab.begun
    assert (begun["experiment_name"], begun["mode"], begun["logdir"]) == ("b", "offline", str(tmp_path / "swan"))
    assert begun["config"]["train"]["start_lr"] == 0.001 and begun["settings"]["metadata_collect"] is False
    assert swanlab.logged[0] == (1, {"train/loss": 6.0, "train/lr": 1e-3, "train/tokens_per_second": 900.0})
    assert swanlab.logged[10:] == [(10, {"eval/loss": 4.5, "eval/perplexity": 90.0}), "end"]


def test_the_real_swanlab_keeps_the_losses_on_the_disk_and_nothing_of_the_machine(runs, tmp_path):
    pytest.importorskip("swanlab", reason="SwanLab is not installed: pip install 'pangu-lab[swanlab]'")
    boards.export_swanlab(runs / "b", tmp_path / "swan")
    (kept,) = (tmp_path / "swan").glob("run-*/backup.swanlab")
    assert kept.read_bytes().count(b"train/loss") >= 10 and b"eval/perplexity" in kept.read_bytes()
    texts = [path.read_bytes() for path in (tmp_path / "swan").rglob("*") if path.is_file()]
    for word in (socket.gethostname(), sys.version.split()[0], os.getcwd(), "mindspore"):
        assert not any(re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.])".encode(), text) for text in texts), word


def test_what_cannot_be_followed_is_said_in_a_line(runs, capsys, monkeypatch):
    for line, words in (
        (["--follow"], "--follow goes with"),
        (["--swanlab", "x", "--tensorboard", "y"], "one board at a time"),
        (["--swanlab", "x", "--follow"], "one run a process"),
    ):
        assert main(["runs", str(runs), *line]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "swanlab", None)
    assert main(["runs", str(runs), "--swanlab", "x"]) == 2
    assert "pip install 'pangu-lab[swanlab]'" in capsys.readouterr().err
