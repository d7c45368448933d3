"""How evenly a run's experts were used during training, as an image, from the run's events alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pangu_lab.errors import InputError
from pangu_lab.plotting import new_figure, save_png
from pangu_lab.runs.events import FILE, read_curves


def plot_load(runs: Sequence[Path | str], png: Path | str) -> Path:
    """Plot the share of the tokens that each expert was sent over training, one panel per run.

    The share is the mean over the blocks with experts; the dashed lines mark an even load.

    Raises:
        InputError: a run has no step of a model with experts.
    """
    figure = new_figure(5.5 * len(runs), 3.6)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, run in zip(panels, runs):
        steps = [event for event in read_curves(run).steps if "expert_load" in event]
        if not steps:
            raise InputError(f"{run}: no steps of a model with experts to draw")
        try:
            load = np.array([np.mean(np.atleast_2d(event["expert_load"]), axis=0) for event in steps])
        except ValueError:  # lists of different lengths
            raise InputError(f"{run}: its steps have different numbers of experts: {FILE} is damaged") from None
        axes.stackplot([event["step"] for event in steps], load.T, alpha=0.85)
        for edge in range(1, load.shape[1]):
            axes.axhline(edge / load.shape[1], color="#333333", linestyle="--", linewidth=0.7)
        dropped = np.mean([event.get("drop_rate", 0.0) for event in steps])
        axes.set(
            title=f"{Path(run).name}: {dropped:.1%} dropped",
            xlabel="step",
            ylim=(0, 1),
            xlim=(steps[0]["step"], steps[-1]["step"]),
        )
    panels[0].set_ylabel("share of the tokens, one colour per expert")
    return save_png(figure, png, 80)
