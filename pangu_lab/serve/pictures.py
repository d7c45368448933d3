"""The picture of a load: what more streams at once cost, and bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pangu_lab.plotting import new_figure, save_png
from pangu_lab.serve.load import Load, percentile


def plot_loads(loads: Sequence[Load], png: Path | str) -> Path:
    """Tokens a second, and the waiting times (half of them are below the line, 99 of 100 below the band's edge), by
    number of streams, to a PNG file."""
    figure = new_figure(8.4, 3.2)
    left, right = figure.subplots(1, 2)
    streams = [load.streams for load in loads]
    left.plot(streams, [load.tokens_per_second for load in loads], marker="o", label="all streams together")
    left.plot(streams, [load.tokens_per_second / load.streams for load in loads], marker="o", label="each stream")
    left.set(xlabel="streams", ylabel="tokens a second", xticks=streams, ylim=(0, None))
    left.legend()
    for name, values in (("first token", "first_token"), ("between tokens", "between_tokens")):
        half, most = ([1000 * (percentile(getattr(load, values), share) or 0) for load in loads] for share in (50, 99))
        [line] = right.plot(streams, half, marker="o", label=name)
        right.fill_between(streams, half, most, alpha=0.15, color=line.get_color())
    right.set(xlabel="streams", ylabel="milliseconds, p50 to p99", xticks=streams, ylim=(0, None))
    right.legend()
    return save_png(figure, png, 80)
