"""Pictures of generation: the effect of each sampling step on the distribution, and what the cache is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sampling import Stage
from pangu_lab.generate.text import TokenizerLike
from pangu_lab.plotting import font_families, new_figure, save_png


def plot_stages(stages: Sequence[Stage], tokenizer: TokenizerLike, png: Path | str, count: int = 10) -> Path:
    """The likeliest tokens before and after every step that changed something, one panel per step, to a PNG file.

    Args:
        stages: from ``explain``.
        count: tokens shown: those that were likeliest for the model itself, and in any case the likeliest of the end.
    """
    shown = [stage for stage in stages if stage.changed]
    tokens = shown_tokens(shown, count)
    figure = new_figure(2.3 * len(shown) + 0.6, 0.32 * count + 1.1)
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    highest = max(stage.probabilities[tokens].max() for stage in shown)
    for axes, stage in zip(panels, shown):
        values = stage.probabilities[tokens]
        axes.barh(range(count), values, color=["#4c78a8" if value else "#e0e0e0" for value in values])
        for place, value in enumerate(values):
            axes.text(
                value,
                place,
                f" {value:{'.1%' if value >= 0.001 else '.2%'}}" if value else " –",
                va="center",
                fontsize=8,
            )
        axes.set(title=stage.name, xlim=(0, highest * 1.35), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    names = [written(tokenizer, index) for index in tokens]
    panels[0].set_yticks(range(count), names, fontfamily=font_families())
    panels[0].invert_yaxis()
    return save_png(figure, png, 110)


def shown_tokens(stages: Sequence[Stage], count: int) -> list[int]:
    """The model's likeliest, the first first; the half that is least likely gives way to what the end has instead."""
    left = [index for index, share in stages[-1].top(count // 2) if share]
    kept = list(dict.fromkeys([*left, *(index for index, _ in stages[0].top(count))]))[:count]
    return sorted(kept, key=lambda index: -stages[0].probabilities[index])


def written(tokenizer: TokenizerLike, index: int) -> str:
    """A token in readable form: blanks and line ends as signs, and a piece without text by its name."""
    text = tokenizer.decode([index]).replace("\n", "↵").replace(" ", "␣")
    name = getattr(tokenizer, "piece", None)
    return text or (name(index) if name else f"#{index}")


def decode_seconds(engine: Engine, ids: Sequence[int], cached: bool) -> np.ndarray:
    """Seconds that each next token takes, (len(ids) − 1,), when the text so far is ``ids[:1]``, ``ids[:2]`` and so on.

    With ``cached`` only the newest token goes through the network; without, the whole text does, every time.
    The first token is fed once before the clock starts, so that compiling is not counted.
    """
    engine.prefill(ids[:1])
    engine.step(ids[1])
    engine.prefill(ids[:1])
    seconds = []
    for length in range(2, len(ids) + 1):
        started = time.perf_counter()
        if cached:
            engine.step(ids[length - 1])
        else:
            engine.prefill(ids[:length])
        seconds.append(time.perf_counter() - started)
    engine.reset()
    return np.array(seconds)


def plot_seconds(seconds: Mapping[str, np.ndarray], png: Path | str) -> Path:
    """Milliseconds per token over the length of the text, a line for each entry, to a PNG file."""
    figure = new_figure(7, 3)
    axes = figure.subplots()
    for name, values in seconds.items():
        axes.plot(
            np.arange(2, len(values) + 2), 1000 * values, label=f"{name}: {1000 * np.median(values):.1f} ms (median)"
        )
    axes.set(xlabel="tokens in the text", ylabel="ms for the next one", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    return save_png(figure, png, 110)
