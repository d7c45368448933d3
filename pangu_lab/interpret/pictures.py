"""A model's structure and attention as pictures: parameters by part, queries, attention.

What is drawn is computed in ``activations.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.model.parameters import POSITION, QUERY, QUERY_LAYER, WORD, parameter_specs
from pangu_lab.plotting import font_families, new_figure

PARTS = ("word embedding", "positions", "attention", "feed-forward", "experts", "layer norms", "query layer")
COLORS = ("#4c78a8", "#72b7b2", "#f58518", "#54a24b", "#9d755d", "#bab0ac", "#e45756")


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many parameters each part of the network has; they add up to ``config.num_parameters``."""
    counts = dict.fromkeys(PARTS, 0)
    for name, spec in parameter_specs(config).items():
        counts[_part(name)] += spec.size
    return {part: count for part, count in counts.items() if count}


def _part(name: str) -> str:
    if name == WORD:
        return "word embedding"
    if name == POSITION:
        return "positions"
    if name == QUERY or name.startswith(QUERY_LAYER):
        return "query layer"
    if "layernorm" in name:
        return "layer norms"
    if ".attention." in name:
        return "attention"
    return "experts" if ".experts." in name or ".router." in name else "feed-forward"


def plot_parameters(configs: Mapping[str, ModelConfig], png: Path | str) -> Path:
    """Where the parameters of one or more models are, in percent, one bar per model, to a PNG file."""
    figure = new_figure(8, 1.1 + 0.42 * len(configs))
    axes = figure.subplots()
    for row, config in enumerate(configs.values()):
        left = 0.0
        for part, count in parameters_by_part(config).items():
            share = 100 * count / config.num_parameters
            axes.barh(row, share, left=left, color=COLORS[PARTS.index(part)], height=0.7)
            if share > 4:
                axes.text(left + share / 2, row, f"{share:.0f} %", ha="center", va="center", fontsize=8, color="white")
            left += share
    names = [f"{name}: {_short(config.num_parameters)}" for name, config in configs.items()]
    axes.set_yticks(range(len(configs)), names)
    axes.set(xlim=(0, 100), xlabel="% of the parameters")
    axes.invert_yaxis()
    used = [part for part in PARTS if any(part in parameters_by_part(config) for config in configs.values())]
    handles = [figure.axes[0].barh(0, 0, color=COLORS[PARTS.index(part)]) for part in used]
    figure.legend(handles, used, loc="outside upper center", ncols=len(used), fontsize=8, frameon=False)
    figure.savefig(png, dpi=100)
    return Path(png)


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def plot_query_distance(found: Mapping[str, np.ndarray], png: Path | str) -> Path:
    """``query_distance`` as a picture, a row a layer, the query layer on top, to a PNG file."""
    figure = new_figure(6.5, 0.9 + 0.4 * len(found))
    axes = figure.subplots()
    values = np.stack(list(found.values()))
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=max(1e-9, values.max()), origin="lower")
    for (row, place), value in np.ndenumerate(values):
        axes.text(place, row, f"{value:.1f}" if value else "0", ha="center", va="center", fontsize=8,
                  color="white" if value > 0.6 * values.max() else "black")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xticks(range(values.shape[1]))
    axes.set(xlabel="position")
    figure.colorbar(image, label="difference of the queries")
    figure.savefig(png, dpi=100)
    return Path(png)


def plot_attention(activations: Mapping[str, np.ndarray], layers: Sequence[str], tokens: Sequence[str],
                   png: Path | str) -> Path:
    """Where each head of some traced layers looks, a row a layer and a column a head, to a PNG file.

    Args:
        activations: of ``trace``; its first text is drawn.
        layers: such as ``blocks.0`` and ``query_layer``.
        tokens: the text's, for the axes: queries downwards, keys to the right.
    """
    heads = activations[f"{layers[0]}.attention.probabilities"].shape[1]
    figure = new_figure(1.5 * heads + 1.0, 1.7 * len(layers) + 0.6)
    axes = figure.subplots(len(layers), heads, sharex=True, sharey=True, squeeze=False)
    for row, layer in enumerate(layers):
        for head in range(heads):
            probabilities = activations[f"{layer}.attention.probabilities"][0, head]
            axes[row, head].imshow(probabilities, cmap="Blues", vmin=0, vmax=1)
            axes[row, head].set_title(f"{layer}, head {head}" if head == 0 else f"head {head}", fontsize=8)
    for axis in [panel.xaxis for panel in axes[-1]] + [panel.yaxis for panel in axes[:, 0]]:
        axis.set_ticks(range(len(tokens)), list(tokens), fontfamily=font_families(), fontsize=6)
    for panel in axes[-1]:
        panel.tick_params(axis="x", rotation=90)
    figure.savefig(png, dpi=100)
    return Path(png)
