"""How far a run has come and how long it still takes, wherever runs are listed."""

from __future__ import annotations

import json
import time

import pytest

from pangu_lab.cli import main
from pangu_lab.identity import own_identity
from pangu_lab.runs import EventLog
from pangu_lab.runs.status import seconds_left, step_text, summarise
from tests.runs.conftest import write_run


@pytest.fixture
def going(runs, monkeypatch):
    """A run that goes on here: 10 of 100 steps, a second each, with two minutes to go."""
    folder = write_run(runs / "going", [])
    clock, now = [0.0], time.time()
    monkeypatch.setattr(time, "time", lambda: clock[0])
    clock[0] = now - 10.0
    log = EventLog(folder)
    log.write("start", step=0, parameters=1000, budget=120.0)
    for step in range(1, 11):
        clock[0] += 1.0
        log.write("step", step=step, loss=5.0, epoch=0.25 * step, tokens=500 * step, tokens_per_second=500.0)
    log.close()
    (folder / "status.json").write_text(
        json.dumps(
            {"state": "training", "step": 10, "steps": 100, "heartbeat": now, "process": own_identity().to_dict()}
        )
    )
    return folder


def test_a_run_that_goes_on_tells_the_time_left_and_one_that_has_ended_does_not(going, runs):
    found = summarise(going)
    assert found.state == "training" and found.seconds_left == pytest.approx(90.0, abs=0.01)
    assert (found.epochs, found.tokens_per_parameter) == (2.5, 5.0)
    assert summarise(runs / "a").seconds_left is None


def test_no_more_time_is_promised_than_the_budget_has():
    last = {"step": 10, "time": 1000.0}
    assert seconds_left({"time": 900.0, "budget": 120.0}, last, 100, 1.0, 1005.0) == 15.0
    assert seconds_left({"time": 900.0, "budget": 120.0}, {}, 100, None, 1005.0) == 15.0, (
        "while the first step compiles"
    )
    assert seconds_left({"time": 900.0, "budget": None}, last, 100, 1.0, 1005.0) == 85.0
    assert seconds_left({}, {}, 100, None, 1005.0) is None
    assert seconds_left({"time": 900.0, "budget": 20.0}, last, 100, 1.0, 1005.0) == 0.0


def test_tables_of_runs_have_epochs_and_time_left_and_no_column_that_is_empty(going, runs, capsys):
    for words in (["runs", str(runs)], ["runs", str(runs), "--compare", "going", "a"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(column in out for column in ("time left", "epochs", "parameter", "1 min 30 s")), out
    assert main(["runs", str(runs), "--compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "time left" not in out and "epochs" not in out


def test_what_a_bar_says_of_a_step():
    step = {"step": 3, "loss": 5.25, "epoch": 0.5, "tokens": 3000, "tokens_per_second": 1234.5}
    assert step_text(step, 2000) == "loss 5.250 · 1,234 tokens/s · epoch 0.50 · 1.5 tokens/parameter"
    assert step_text({"step": 1, "loss": 5.25}, 2000) == "loss 5.250"
