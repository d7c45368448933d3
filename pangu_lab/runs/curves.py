"""Curves of a run, as an image and as text: both are drawn from the run's events alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.plotting import new_figure, save_png
from pangu_lab.runs.events import Curves, read_curves
from pangu_lab.runs.units import BITS, LOSS, NONE, Vocabulary, bits_per_character, common_unit

TITLES = {
    LOSS: "loss (nats a token)",
    BITS: "bits per character (the vocabularies differ)",
    NONE: "loss (nats a token; the vocabularies differ: do not compare)",
}


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias towards the first value (divided by 1 − weightᵗ).

    At value t the weight is at most 1 − 10 / t: a loss falls fast at first, and an average over more than a tenth of what
    there is would lie far above it.
    """
    result, average, total = [], 0.0, 0.0
    for number, value in enumerate(values, 1):
        kept = min(weight, max(0.0, 1 - 10 / number))
        average = kept * average + (1 - kept) * value
        total = kept * total + (1 - kept)
        result.append(average / total)
    return result


def plot_curves(runs: Sequence[Path | str], png: Path | str) -> Path:
    """Loss (raw, smoothed, held-out), learning rate and gradient norm of one or more runs, to a PNG file.

    Runs of different vocabularies are drawn in bits per character, where each knows its characters.

    Where a run has a loss scale (fp16), a further panel shows it, with a cross at each step that overflowed.

    Raises:
        InputError: a run has no steps yet.
    """
    figure = new_figure(10, 6)
    curves = [_curves(run) for run in runs]
    small = ["lr", "norm"] + ["scale"] * any(e.get("loss_scale", 1.0) != 1.0 for one in curves for e in one.steps)
    axes = figure.subplot_mosaic([["loss"] * len(small), small], height_ratios=[2, 1])
    vocabularies = [Vocabulary.of(one.start, one.start.get("vocab_size", 0)) for one in curves]
    unit = common_unit(vocabularies)
    for number, (run, one, vocabulary) in enumerate(zip(runs, curves, vocabularies)):
        _draw(axes, one, f"C{number}", Path(run).name, vocabulary.characters_per_token if unit == BITS else None)
    for name, title in (
        ("loss", TITLES[unit]),
        ("lr", "learning rate"),
        ("norm", "gradient norm"),
        ("scale", "loss scale (×: overflow)"),
    ):
        if name in axes:
            axes[name].set(title=title, xlabel="step")
            axes[name].grid(alpha=0.3)
    axes["loss"].legend()
    axes["norm"].set_yscale("log")
    return save_png(figure, png, 100)


def _curves(run: Path | str) -> Curves:
    curves = read_curves(run)
    if not curves.steps:
        raise InputError(f"{run}: no steps to draw yet")
    return curves


def _draw(axes, curves: Curves, color: str, name: str, characters_per_token: float | None) -> None:
    steps, losses = [e["step"] for e in curves.steps], [e["loss"] for e in curves.steps]
    evals = [(e["step"], e["loss"]) for e in curves.evals]
    if characters_per_token is not None:
        losses = [_nan(bits_per_character(loss, characters_per_token)) for loss in losses]
        evals = [(e["step"], _nan(e.get("bits_per_character"))) for e in curves.evals]
    axes["loss"].plot(steps, losses, color=color, alpha=0.25, linewidth=1)
    axes["loss"].plot(steps, smoothed(losses), color=color, label=f"{name}: training, smoothed")
    if evals:
        axes["loss"].plot(*zip(*evals), "o--", color=color, label=f"{name}: held out")
    axes["lr"].plot(steps, _values(curves.steps, "lr"), color=color)
    axes["norm"].plot(steps, _values(curves.steps, "grad_norm"), color=color)
    if "scale" in axes:
        both = sorted(curves.steps + curves.overflows, key=lambda event: event["step"])
        axes["scale"].plot([e["step"] for e in both], [e.get("loss_scale", 1.0) for e in both], color=color)
        axes["scale"].plot(
            [e["step"] for e in curves.overflows],
            [e.get("loss_scale", 1.0) for e in curves.overflows],
            "x",
            color=color,
        )
        axes["scale"].set_yscale("log", base=2)


def _values(events: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [_nan(event.get(name)) for event in events]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def text_curve(run: Path | str, width: int = 72, height: int = 12) -> str:
    """The loss curve in characters: ``·`` training, ``o`` held out."""
    curves = _curves(run)
    points = [(e["step"], e["loss"], "·") for e in curves.steps] + [(e["step"], e["loss"], "o") for e in curves.evals]
    points = [point for point in points if math.isfinite(point[1])]
    if not points:
        raise InputError(f"{run}: no finite loss to draw yet")
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    last = max(p[0] for p in points)
    grid = [[" "] * width for _ in range(height)]
    for step, loss, mark in points:
        row = round((high - loss) / max(high - low, 1e-9) * (height - 1))
        grid[row][round(step / max(last, 1) * (width - 1))] = mark
    lines = [f"{high - (high - low) * i / (height - 1):7.3f} ┤{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    lines += [
        f"{'':8}└{'─' * width}",
        f"{'':9}{'0':<{width - len(str(last))}}{last}",
        f"{'':9}step   · training loss   o held-out loss",
    ]
    return "\n".join(lines)
