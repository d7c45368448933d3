"""Watches the held-out loss of a run: which step was the best, whether there is any gain, whether it learns by heart.

``best.json`` names the best checkpoint. A process that was killed between saving it and writing its name loses nothing:
the evaluation stands in the events before the checkpoint is saved, and the next process finds both.
"""

from __future__ import annotations

import math
from typing import Any

from pangu_lab.checkpoint.best import FILE, Best, read_best
from pangu_lab.checkpoint.folder import step_folder
from pangu_lab.errors import InputError
from pangu_lab.runs.events import Curves, read_curves
from pangu_lab.train.evaluation import HeldOutLoss
from pangu_lab.train.run_folder import RunFolder

BY_HEART = "learns by heart"
EVALUATIONS = 2  # in a row above the best, before it is said
GAP = 1.005  # and this much above it


class Watch:
    """Follows the evaluations of a run, on the rank that owns its folder.

    Attributes:
        best: the best step whose checkpoint is saved; None before the first.
        since: evaluations after it.
        hopeless: whether the last evaluation has used up ``train.patience``.
    """

    def __init__(self, run: RunFolder, eval_every: int, patience: int | None = None):
        self.run, self.eval_every, self.patience = run, eval_every, patience
        self.best: Best | None = None
        self.since = 0
        self.hopeless = self.told = False
        self._training_at_best = math.nan
        self._losses: list[float] = []  # of training since the last evaluation

    def resume(self, step: int) -> None:
        """Take over what earlier processes found up to ``step``, from which the run goes on."""
        curves = read_curves(self.run.folder)
        self.best = self._still_there(step)
        for event in (event for event in curves.evals if 0 < event["step"] <= step):
            found = Best(event["step"], event["loss"], event.get("records") or 0)
            if self._is_better(found) and self._saved(found.step):
                self.best = found
        (self.run.folder / FILE).unlink(missing_ok=True) if self.best is None else self.best.write(self.run.folder)
        self.told = any(BY_HEART in event.get("text", "") for event in curves.others if event["kind"] == "warning")
        if self.best is not None:
            self.since = sum(self.best.step < event["step"] <= step for event in curves.evals)
            self._training_at_best = self._training_loss(curves, self.best.step)

    def _still_there(self, step: int) -> Best | None:
        try:
            best = read_best(self.run.folder)
        except InputError as error:
            self.run.warn(str(error))
            return None
        return best if best is not None and best.step <= step and self._saved(best.step) else None

    def _saved(self, step: int) -> bool:
        return step_folder(self.run.checkpoints, step).is_dir()

    def _training_loss(self, curves: Curves, step: int) -> float:
        """The mean training loss of the steps before an evaluation."""
        return _mean([event["loss"] for event in curves.steps if step - self.eval_every < event["step"] <= step])

    def step(self, loss: float) -> None:
        """A training step was made."""
        self._losses.append(loss)

    def is_best(self, step: int, held_out: HeldOutLoss) -> bool:
        """Take an evaluation; whether its step should be saved as the best so far."""
        training, self._losses = _mean(self._losses), []
        if self._is_better(Best(step, held_out.loss, held_out.records)):
            self._training_at_best = training
            return True
        self.since += 1
        self.hopeless = self.patience is not None and self.since >= self.patience
        self._look(step, held_out.loss, training)
        return False

    def _is_better(self, found: Best) -> bool:
        if not math.isfinite(found.loss):
            return False
        return self.best is None or found.records != self.best.records or found.loss < self.best.loss

    def keep(self, step: int, held_out: HeldOutLoss) -> None:
        """The best step so far has been saved: write its name."""
        self.best, self.since = Best(step, held_out.loss, held_out.records), 0
        self.best.write(self.run.folder)

    def _look(self, step: int, loss: float, training: float) -> None:
        """Say once that the held-out loss rises while the training loss falls."""
        best = self.best
        if self.told or best is None or self.since < EVALUATIONS:
            return
        if loss > GAP * best.loss and training < self._training_at_best:
            self.told = True
            self.run.warn(
                f"from step {best.step} on it {BY_HEART}: held-out loss {best.loss:.2f} at step {best.step}, "
                f"{loss:.2f} now at step {step}; the best is kept: --from {self.run.folder}@best"
            )


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else math.nan
