"""Following a run: bit by bit, with resumes, cut lines, a hundred thousand steps; what it says of itself."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import time

import numpy as np
import pytest

from pangu_lab.identity import own_identity
from pangu_lab.runs.status import seconds_left
from widgets.run_data import MAX_BUCKETS, RunFollower
from widgets.run_state import head_of, log_tail, logs_of


def test_steps_arrive_as_they_are_written_and_a_half_written_line_waits(written_run):
    run = written_run()
    follower = RunFollower(run.folder)
    assert follower.poll() and len(follower.steps) == 0
    run.step(1, 6.0)
    with open(run.events, "a") as handle:
        handle.write('{"v": 1, "time": 1.0, "kind": "step", "step": 2, "lo')
    assert follower.poll() and follower.steps.rows()["loss"].tolist() == [6.0]
    with open(run.events, "a") as handle:
        handle.write('ss": 5.5}\n')
    assert follower.poll() and follower.steps.rows()["loss"].tolist() == [6.0, 5.5]
    assert not follower.poll()


def test_a_resume_takes_back_steps_and_evaluations_and_leaves_a_mark(written_run):
    run = written_run()
    for step in range(1, 8):
        run.step(step, 10.0 - step)
    run.write("eval", step=7, loss=3.0, perplexity=20.0)
    run.write("start", step=4, resumed_from=4, steps=20)
    run.step(5, 1.0)
    follower = RunFollower(run.folder)
    follower.poll()
    assert follower.steps.rows()["step"].tolist() == [1, 2, 3, 4, 5]
    assert follower.steps.rows()["loss"].tolist() == [9, 8, 7, 6, 1] and follower.evals == []
    assert [mark["step"] for mark in follower.marks if mark["kind"] == "resume"] == [4]


def test_a_run_begun_anew_in_the_same_folder_is_read_from_its_start(written_run):
    run = written_run()
    for step in range(1, 5):
        run.step(step)
    follower = RunFollower(run.folder)
    follower.poll()
    run.events.unlink()
    run.write("start", step=0, resumed_from=0, steps=5)
    run.step(1, 2.0)
    follower.poll()
    assert follower.steps.rows()["loss"].tolist() == [2.0] and follower.steps.generation == 1


def test_many_steps_become_few_rows_that_lose_no_peak(written_run):
    steps = RunFollower(written_run().folder).steps
    losses = np.random.default_rng(0).random(5000)
    losses[[17, 4321]] = 9.0, np.nan
    for number, loss in enumerate(losses, 1):
        steps.add({"step": number, "time": number, "tokens": number, "loss": loss})
    rows = steps.rows()
    assert MAX_BUCKETS / 2 < len(rows["step"]) <= MAX_BUCKETS and rows["count"].sum() == 5000
    assert rows["step"][-1] == 5000 and rows["loss.high"].max() == 9.0
    assert rows["loss"][0] == pytest.approx(losses[: steps.width].mean(), rel=1e-6)
    tail = steps.rows(100)
    for name in rows:
        np.testing.assert_array_equal(tail[name], rows[name][100:])


def test_the_load_of_experts_is_kept_beside_the_steps(written_run):
    run = written_run()
    run.step(1)
    run.step(2, expert_load=[[1.0, 0.0], [0.5, 0.5]], aux_loss=1.25, drop_rate=0.1)
    follower = RunFollower(run.folder)
    follower.poll()
    rows = follower.steps.rows()
    np.testing.assert_array_equal(rows["expert_load"], [[np.nan, np.nan], [0.75, 0.25]])
    assert rows["aux_loss"][1] == 1.25 and rows["drop_rate"][1] == np.float32(0.1)


def test_csv_holds_every_step_in_full_and_the_evaluations(written_run):
    run = written_run("with, comma")
    run.write("eval", step=0, loss=6.2, perplexity=490.0)
    run.step(1, 1 / 3)
    run.step(2, float("nan"))
    run.write("eval", step=2, loss=5.5, perplexity=244.7)
    follower = RunFollower(run.folder)
    follower.poll()
    rows = list(csv.DictReader(io.StringIO(follower.csv())))
    assert [row["step"] for row in rows] == ["0", "1", "2"] and rows[1]["run"] == "with, comma"
    assert float(rows[1]["loss"]) == 1 / 3 and rows[2]["loss"] == ""
    assert [row["eval_perplexity"] for row in rows] == ["490", "", "244.7"]


def test_time_left_comes_from_the_last_steps_or_from_the_time_budget(written_run):
    run = written_run()
    for step in range(1, 11):
        run.step(step)
    run.status("training", 10)
    follower = RunFollower(run.folder)
    follower.poll()
    now = follower.last_event["time"] + 3.0
    for budget, left in ((None, 97.0), (1000.0, 97.0), (120.0, 120.0 - 103.0), (60.0, 0.0)):
        start = {**follower.facts, "budget": budget}
        assert seconds_left(start, follower.last_step, 20, follower.seconds_a_step(), now) == pytest.approx(left)


def test_steps_are_as_many_as_the_run_expects_now(written_run):
    run = written_run()
    run.step(1, steps=400)
    follower = RunFollower(run.folder)
    follower.poll()
    assert head_of(follower, None)["steps"] == 400
    run.write("schedule", step=1, steps=300)
    follower.poll()
    assert head_of(follower, None)["steps"] == 300 and follower.facts["preset"] == "debug"


def test_a_dead_run_says_at_which_step_and_shows_the_lines_that_help(written_run):
    run = written_run()
    run.step(1)
    run.status("training", 1, pid=2**22 + 1)
    (run.folder / "logs" / "rank_0.log").write_text(
        'noise\nTraceback (most recent call last):\n  File "step.py", line 3, in f\nRuntimeError: no <memory>\n'
    )
    follower = RunFollower(run.folder)
    follower.poll()
    head = head_of(follower, None)
    assert head["state"] == "died" and head["step"] == 1 and "RuntimeError: no <memory>" in head["lines"]
    assert logs_of(run.folder) == ["rank_0"] and log_tail(run.folder, "rank_0")[0] == "noise"
    assert log_tail(run.folder, "../../etc/passwd") == []


def test_a_launcher_is_known_by_its_identity_and_not_by_its_number(tmp_path):
    from widgets.run_state import state_of

    def write(**changes) -> str:
        process = dataclasses.replace(own_identity(), **changes).to_dict()
        (tmp_path / "launch.json").write_text(
            json.dumps({"pid": os.getpid(), "process": process, "state": "running", "time": time.time()})
        )
        return state_of(tmp_path)[0]

    assert write() == "starting"
    assert write(ticks=1) == "died", "this number was the launcher's once"
    assert write(boot="another", host="elsewhere") == "starting", "another host's cannot be judged from here"
