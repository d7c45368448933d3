"""A run that ends with its minutes: ``train.minutes`` fits the schedule, so that the rate reaches its end when the time does.

How many steps the time holds is known only while they are made. With "wsd" the rate stays until the time that is left is
what the cooldown needs; with "cosine" the number of steps is set when the warm-up is over. After that it is set right each
time that a quarter of the remaining steps is done, with "wsd" without a jump of the rate. Each choice is written to an event
and saved in a checkpoint at once, so that a run that resumes goes on with it. The minutes are the run's: what earlier
processes spent counts.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from pangu_lab.config import TrainConfig
from pangu_lab.train.schedule import last_step

MEASURED = 3  # steps before anything is concluded from their speed
CLOSE = 4  # steps at least between two looks
WORTH = 0.03  # a change of this share of the remaining steps is worth making
SCHEDULE = ("steps", "decay_steps", "cooldown")  # the settings that are chosen


class Timetable:
    """Follows the time of a run.

    Args:
        config: the settings as asked for; ``steps`` is the most that are made.

    Attributes:
        evaluating, saving: seconds that the last evaluation and the last checkpoint took; both come again at the end.
    """

    def __init__(self, config: TrainConfig):
        self.most, self.minutes = config.steps, config.minutes
        self.evaluating = self.saving = 0.0
        self._begun, self._before = time.monotonic(), 0.0
        self._mark: tuple[int, float] | None = None  # a step and when it was done: from there speed is measured
        self._next: int | None = None  # the step at which the choice is looked at again; None before the first choice

    @property
    def seconds(self) -> float:
        """Spent in this run, earlier processes included."""
        return self._before + time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds until the minutes are over; infinite without any."""
        return math.inf if self.minutes is None else 60.0 * self.minutes - self.seconds

    def restore(self, state: Mapping[str, Any], config: TrainConfig) -> TrainConfig:
        """Go on from the state of a checkpoint; the settings with the schedule that was chosen before it, if no other is set."""
        self._before = state.get("seconds", 0.0)
        chosen = state.get("schedule")
        if not chosen or config.decay_steps is not None:
            return config
        self._look_again(state["step"], chosen["steps"])
        return dataclasses.replace(config, **{name: chosen[name] for name in SCHEDULE})

    def state(self, config: TrainConfig) -> dict[str, Any]:
        """What a checkpoint keeps; JSON."""
        chosen = {} if self._next is None else {"schedule": {name: getattr(config, name) for name in SCHEDULE}}
        return {"seconds": round(self.seconds, 3), **chosen}

    def expected(self, config: TrainConfig, step: int) -> int:
        """The number of steps that the run will come to, as far as is known after ``step``."""
        if self._next is not None or not math.isfinite(self.left) or (pace := self._pace(step)) is None:
            return config.steps
        return min(self.most, self._last(step, pace))

    def fit(self, config: TrainConfig, step: int) -> TrainConfig | None:
        """The settings with another schedule, if one is to be chosen after ``step``; else None."""
        if self.minutes is None:
            return None
        if self._mark is None:
            self._mark = (step, time.monotonic())  # the first step compiled
        pace = self._pace(step)
        if pace is None or step >= last_step(config) or (self._next is not None and step < self._next):
            return None
        last = min(self.most, self._last(step, pace))
        if self._next is None:
            if step < _begin(config, last):
                return None
            first = step
        elif abs(last - config.steps) <= WORTH * (config.steps - step):
            self._look_again(step, config.steps)
            return None
        else:
            first = _virtual_begin(config, step, last)
        self._look_again(step, last)
        new = dataclasses.replace(config, steps=last, decay_steps=last)
        if config.schedule == "wsd":
            new = dataclasses.replace(new, cooldown=(last - first) / last)
        same = (last_step(config), _begin(config, config.steps)) == (last, _begin(new, last))
        return None if same and config.steps == last else new

    def _pace(self, step: int) -> float | None:
        """Seconds a step, with what evaluations and checkpoints take; None while it is not known."""
        if self._mark is None or step - self._mark[0] < MEASURED:
            return None
        return (time.monotonic() - self._mark[1]) / (step - self._mark[0])

    def _last(self, step: int, pace: float) -> int:
        return step + max(1, int((self.left - self.evaluating - self.saving) / max(pace, 1e-9)))

    def _look_again(self, step: int, last: int) -> None:
        self._next, self._mark = step + max(CLOSE, (last - step) // 4), (step, time.monotonic())


def _begin(config: TrainConfig, last: int) -> int:
    """The step after which the rate falls, when ``last`` is the last one."""
    return (
        max(config.warmup_steps, round(last * (1.0 - config.cooldown)))
        if config.schedule == "wsd"
        else config.warmup_steps
    )


def _virtual_begin(config: TrainConfig, step: int, last: int) -> int:
    """Where a straight line to ``last`` would have begun that has the rate of ``step`` there: no jump when ``last`` changes."""
    begun, end = _begin(config, last_step(config)), last_step(config)
    done = (step - begun) / max(1, end - begun)
    return step if done <= 0.0 else max(0, round((step - done * last) / (1.0 - done)))
