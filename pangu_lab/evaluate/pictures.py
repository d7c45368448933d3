"""Results as images: each value with its interval, and the baselines to compare it with; verse over the temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.evaluate.run import Result
from pangu_lab.evaluate.statistics import wilson_interval
from pangu_lab.evaluate.verse import VerseMeasure
from pangu_lab.plotting import cjk_font, new_figure, save_png


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
    return save_png(figure, png, 110)


def plot_temperatures(measured: Mapping[str, Mapping[float, VerseMeasure]], png: Path | str) -> Path:
    """Form, rhyme and tonal pattern of poems over the temperature that they were written at, to a PNG file.

    Args:
        measured: by name, what ``measure_temperatures`` found; bars are the 95 % intervals of the shares.
    """
    shares = {"form": "right form", "rhyme": "all even lines rhyme", "pattern": "tones all right"}
    colors = ("#4c78a8", "#f58518", "#54a24b")
    figure = new_figure(10, 3.2)
    panels = figure.subplots(1, len(shares), sharey=True)
    for axes, (share, title) in zip(panels, shares.items()):
        for number, (name, by_temperature) in enumerate(measured.items()):
            values = [100 * getattr(found, share) for found in by_temperature.values()]
            edges = [wilson_interval(getattr(found, share) * found.n, found.n) for found in by_temperature.values()]
            bars = [
                [max(0.0, sign * (100 * edge[side] - value)) for edge, value in zip(edges, values)]
                for side, sign in ((0, -1), (1, 1))
            ]
            places = [
                temperature + 0.012 * number for temperature in by_temperature
            ]  # side by side: bars would hide each other
            axes.errorbar(places, values, bars, marker="o", capsize=3, label=name, color=colors[number % 3])
        axes.set(title=title, xlabel="temperature", ylim=(-3, 103), xticks=list(next(iter(measured.values()))))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("% of the poems")
    panels[0].legend(fontsize=8)
    return save_png(figure, png, 110)
