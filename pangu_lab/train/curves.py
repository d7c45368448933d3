"""Curves of a run, as a picture and as text: both are drawn from the run's events alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.train.events import Curves, read_curves


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias towards the first value."""
    result, average, total = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(average / total)
    return result


def plot_curves(runs: Sequence[Path | str], png: Path | str) -> Path:
    """Loss (raw, smoothed, held-out), learning rate and gradient norm of one or more runs, to a PNG file.

    Raises:
        InputError: a run has no steps yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["loss", "loss"], ["lr", "norm"]], height_ratios=[2, 1])
    for number, run in enumerate(runs):
        _draw(axes, _curves(run), f"C{number}", Path(run).name)
    for name, title in (("loss", "loss (nats a token)"), ("lr", "learning rate"), ("norm", "gradient norm")):
        axes[name].set(title=title, xlabel="step")
        axes[name].grid(alpha=0.3)
    axes["loss"].legend()
    axes["norm"].set_yscale("log")
    figure.savefig(png, dpi=120)
    return Path(png)


def _curves(run: Path | str) -> Curves:
    curves = read_curves(run)
    if not curves.steps:
        raise InputError(f"{run}: no steps to draw yet")
    return curves


def _draw(axes, curves: Curves, color: str, name: str) -> None:
    steps, losses = [e["step"] for e in curves.steps], [e["loss"] for e in curves.steps]
    axes["loss"].plot(steps, losses, color=color, alpha=0.25, linewidth=1)
    axes["loss"].plot(steps, smoothed(losses), color=color, label=f"{name}: training, smoothed")
    if curves.evals:
        axes["loss"].plot([e["step"] for e in curves.evals], [e["loss"] for e in curves.evals], "o--", color=color,
                          label=f"{name}: held out")
    axes["lr"].plot(steps, [e["lr"] for e in curves.steps], color=color)
    axes["norm"].plot(steps, [e["grad_norm"] for e in curves.steps], color=color)


def text_curve(run: Path | str, width: int = 72, height: int = 12) -> str:
    """The loss curve in characters: ``·`` training, ``o`` held out."""
    curves = _curves(run)
    points = [(e["step"], e["loss"], "·") for e in curves.steps] + [(e["step"], e["loss"], "o") for e in curves.evals]
    points = [point for point in points if math.isfinite(point[1])]
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    last = max(p[0] for p in points)
    grid = [[" "] * width for _ in range(height)]
    for step, loss, mark in points:
        row = round((high - loss) / max(high - low, 1e-9) * (height - 1))
        grid[row][round(step / max(last, 1) * (width - 1))] = mark
    lines = [f"{high - (high - low) * i / (height - 1):7.3f} ┤{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    foot = f"{'0':<{width - len(str(last))}}{last}"
    return "\n".join([*lines, " " * 8 + "└" + "─" * width, " " * 9 + foot, " " * 9 + "step   · training loss   o held-out loss"])
