"""Learning rate, batch growth and loss scale: the numbers that change during training. Both are plain Python and resumable."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pangu_lab.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of update number ``step`` (from 1): linear warm-up from 0 to start_lr, then on to end_lr.

    "cosine" goes there by a half cosine. "wsd" (warm-up, stable, decay) keeps start_lr and goes down in a straight line
    over the last ``cooldown`` of the steps: until that begins, the number of steps can still be changed.
    """
    if step <= config.warmup_steps:
        return config.start_lr * step / config.warmup_steps
    last = max(last_step(config), config.warmup_steps + 1)
    first = config.warmup_steps
    if config.schedule == "wsd":
        first = min(last - 1, max(first, round(last * (1.0 - config.cooldown))))
        return config.start_lr + (config.end_lr - config.start_lr) * min(1.0, max(0.0, (step - first) / (last - first)))
    part = min(1.0, (step - first) / (last - first))
    return config.end_lr + 0.5 * (config.start_lr - config.end_lr) * (1.0 + math.cos(math.pi * part))


def last_step(config: TrainConfig) -> int:
    """The step at which the rate reaches its final value."""
    return config.decay_steps or config.steps


def batches_of_step(config: TrainConfig, step: int) -> int:
    """How many batches of ``data.batch_size`` records make update number ``step`` (from 1)."""
    return 2 ** sum(step > doubling for doubling in config.batch_doublings)


def rate_change(before: TrainConfig, now: TrainConfig, step: int) -> str:
    """A note for the user when a run continues after ``step`` with another schedule; empty if nothing changes."""
    old, new = learning_rate(before, step + 1), learning_rate(now, step + 1)
    if math.isclose(old, new, rel_tol=0.01):
        return ""
    return (
        f"the learning rate is {new:.3g} now where it was {old:.3g} at step {step}: its schedule ended at step "
        f"{last_step(before)} and ends at step {last_step(now)} now; "
        f"train.decay_steps={last_step(before)} keeps it"
    )


@dataclass
class LossScale:
    """Keeps small fp16 gradients above zero: doubles after ``window`` good steps, halves on an overflow.

    With ``active`` false (fp32) the scale stays 1.
    """

    active: bool
    value: float
    window: int
    floor: float
    good_steps: int = 0

    @classmethod
    def from_config(cls, config: TrainConfig, active: bool) -> LossScale:
        return cls(active, config.loss_scale if active else 1.0, config.loss_scale_window, config.loss_scale_floor)

    def good(self) -> None:
        """Count a step without overflow."""
        self.good_steps += 1
        if self.active and self.good_steps >= self.window:
            self.value, self.good_steps = self.value * 2.0, 0

    def overflow(self) -> bool:
        """Lower the scale after an overflow; False when it cannot go any lower."""
        self.good_steps = 0
        if not self.active or self.value / 2.0 < self.floor:
            return False
        self.value /= 2.0
        return True
