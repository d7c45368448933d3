"""Results as an image: each value with its interval, and the baselines to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.evaluate.run import Result
from pangu_lab.plotting import cjk_font, new_figure


def plot_results(results: Sequence[Result], png: Path | str, names: Sequence[str] | None = None) -> Path:
    """Plot results to a PNG file: shares in percent with their 95 % intervals, and baselines as dashed lines.

    Args:
        results: of one task on the same questions; with a different n the intervals show what more questions are worth.
        names: row labels; task and model when not given.

    Raises:
        InputError: there are no results, or one of them holds baselines alone.
    """
    if not results or any(result.value is None for result in results):
        raise InputError("a picture needs results of a model: these hold baselines alone")
    figure = new_figure(8, 1.4 + 0.5 * len(results))
    axes = figure.subplots()
    for row, result in enumerate(results):
        low, high = (100 * edge for edge in result.interval)
        axes.plot([low, high], [row, row], color="#4c78a8", linewidth=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(100 * result.value, row, "o", color="#4c78a8")
        axes.text(high + 0.6, row, f"{100 * result.value:.1f} %  (n {result.n})", va="center", fontsize=9)
    for color, (name, value) in zip(("#e45756", "#f58518", "#54a24b", "#b279a2"), results[0].baselines.items()):
        axes.axvline(100 * value, color=color, linestyle="--", linewidth=1, label=f"{name} {100 * value:.1f} %")
    labels = names or [f"{result.task}, {result.model or 'model'}" for result in results]
    axes.set_yticks(range(len(results)), labels, fontfamily=cjk_font() or "sans-serif")
    axes.set(xlabel=f"{results[0].metric.replace('_', ' ')}, %", ylim=(len(results) - 0.4, -0.6), xlim=(0, 100))
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(png, dpi=110)
    return Path(png)
