"""A run with minutes: its rate reaches its end when they do, on a clock that the test moves; resumed equals straight."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_lab.checkpoint.folder import Checkpoint
from pangu_lab.config import TrainConfig
from pangu_lab.errors import InputError
from pangu_lab.runs import read_curves, read_events
from pangu_lab.train import learning_rate, loop, timetable, train, training
from pangu_lab.train.timetable import Timetable


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    found = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: found.now, perf_counter=time.perf_counter)
    for module in (timetable, loop, training):
        monkeypatch.setattr(module, "time", fake)
    return found


def rates(config: TrainConfig, clock, pace=lambda step: 1.0, compiling=5.0) -> list[float]:
    """The rate of each step that such a run makes until its minutes are over."""
    table, step, found = Timetable(config), 0, []
    clock.now += compiling
    while step < config.steps and table.left > 0:
        step += 1
        found.append(learning_rate(config, step))
        clock.now += pace(step)
        config = table.fit(config, step) or config
    return found


WSD = TrainConfig(steps=100_000, minutes=5.0, schedule="wsd", start_lr=1.0, end_lr=0.0, warmup_steps=10)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize(
    "pace",
    [lambda step: 1.0, lambda step: 2.0 if step < 80 else 1.0, lambda step: 1.0 if step < 230 else 2.0],
    ids=["even", "quicker", "slower at the end"],
)
def test_the_rate_reaches_its_end_when_the_minutes_do(clock, schedule, pace):
    begun, config = clock.now, replace(WSD, schedule=schedule)
    found = rates(config, clock, pace)
    assert found[9] == 1.0 and found[-1] < 0.03
    assert 290 <= clock.now - begun <= 300
    if schedule == "wsd":
        changes = np.diff(found[10:])
        assert changes.max() <= 1e-9 and changes.min() > -0.09, "it falls, and never in a jump"


def test_the_stable_phase_lasts_until_the_cooldown_needs_what_is_left(clock):
    found = rates(WSD, clock)
    assert len(found) == 295
    assert found.index(1.0) == 9 and sum(rate == 1.0 for rate in found) == round(0.8 * 295) - 9


def test_steps_are_the_most_that_are_made(clock):
    few = replace(WSD, steps=50)
    assert rates(few, clock) == [learning_rate(replace(few, minutes=None), step) for step in range(1, 51)]


def test_time_that_earlier_processes_spent_counts(clock):
    table = Timetable(WSD)
    clock.now += 60
    state = {"step": 40, **table.state(WSD)}
    again = Timetable(WSD)
    assert again.restore(state, WSD) == WSD and again.left == pytest.approx(240)


def test_another_decay_that_is_set_goes_before_the_one_that_was_chosen():
    state = {"step": 40, "seconds": 10.0, "schedule": {"steps": 50, "decay_steps": 50, "cooldown": 0.2}}
    assert Timetable(WSD).restore(state, WSD).steps == 50
    assert Timetable(WSD).restore(state, replace(WSD, decay_steps=90)).decay_steps == 90


def test_a_run_that_is_stopped_in_its_cooldown_ends_as_one_that_is_not(debug_config, tmp_path, clock):
    config = debug_config.replace(
        **{
            "train.minutes": 0.5,
            "train.steps": 1000,
            "train.schedule": "wsd",
            "train.eval_every": 5,
            "train.checkpoint_every": 1000,
            "train.warmup_steps": 2,
            "train.end_lr": 0.0,
        }
    )

    def tick(done, total, text):
        if done:
            clock.now += 1.0

    straight = train(config, tmp_path / "straight", progress=tick)
    assert straight.reason == "finished" and 28 <= straight.step <= 31
    steps = read_curves(tmp_path / "straight").steps
    assert steps[-1]["lr"] == 0.0 and steps[20]["lr"] == 3e-3
    chosen = [event for event in read_events(tmp_path / "straight") if event["kind"] == "schedule"]
    assert [event["steps"] for event in chosen] == [straight.step] and (
        tmp_path / "straight" / "checkpoints" / (f"step-{chosen[0]['step']:08d}")
    ).is_dir(), "a choice is saved at once"

    stopped = (
        train(config, tmp_path / "run", progress=tick, stop=lambda: clock.now >= stop_at)
        if (stop_at := clock.now + 26)
        else None
    )
    assert stopped.reason == "stopped" and chosen[0]["step"] < stopped.step < straight.step
    resumed = train(config, tmp_path / "run", progress=tick)
    assert (resumed.step, resumed.loss, resumed.eval_loss) == (straight.step, straight.loss, straight.eval_loss)
    first, second = Checkpoint(straight.checkpoint), Checkpoint(resumed.checkpoint)
    assert first.tensors and all(np.array_equal(first.read(name), second.read(name)) for name in first.tensors)

    again = train(config.replace(**{"train.minutes": 5.0}), tmp_path / "run", progress=tick)
    assert again.step == straight.step and "--init-from" in again.notes[-1], (
        "what to do is said where no steps are left"
    )


def test_the_data_set_that_is_learned_is_refused_as_held_out(debug_config, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(debug_config.data.path)
    for same in (debug_config.data.path, f"{debug_config.data.path}/../train", str(link)):
        with pytest.raises(InputError, match="holds the records of data.path"):
            train(debug_config.replace(**{"data.eval_path": same}), tmp_path / "run")
