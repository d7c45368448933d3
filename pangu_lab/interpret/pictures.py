"""A model's structure and attention as pictures: parameters by part, queries, attention, heads and a poem that one looks at.

What is drawn is computed in ``activations.py`` and ``heads.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.interpret.activations import Attention
from pangu_lab.interpret.heads import RELATIONS, HeadScore, verse_places, verse_relations
from pangu_lab.model.parameters import POSITION, QUERY, QUERY_LAYER, WORD, parameter_specs
from pangu_lab.plotting import font_families, new_figure, save_png
from pangu_lab.tokenizer.sentence_piece import LINE_MARK

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
    return save_png(figure, png, 100)


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def plot_query_distance(found: Mapping[str, np.ndarray], png: Path | str) -> Path:
    """``query_distance`` as a picture, a row a layer, the query layer on top, to a PNG file."""
    values = np.stack(list(found.values()))
    figure = new_figure(max(6.5, 1.8 + 0.32 * values.shape[1]), 0.9 + 0.4 * len(found))
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=max(1e-9, values.max()), origin="lower")
    for (row, place), value in np.ndenumerate(values):
        axes.text(
            place,
            row,
            f"{value:.1f}" if value else "0",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if value > 0.6 * values.max() else "black",
        )
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xticks(range(values.shape[1]))
    axes.set(xlabel="position")
    figure.colorbar(image, label="difference of the queries")
    return save_png(figure, png, 100)


def plot_attention(
    activations: Mapping[str, np.ndarray], layers: Sequence[str], tokens: Sequence[str], png: Path | str
) -> Path:
    """Where each head of some traced layers looks, a row a layer and a column a head, to a PNG file.

    Args:
        activations: of ``trace``; its first text is drawn.
        layers: such as ``blocks.0`` and ``query_layer``.
        tokens: the text's, for the axes: queries downwards, keys to the right.
    """
    heads = activations[f"{layers[0]}.attention.probabilities"].shape[1]
    side = max(1.5, 0.1 * len(tokens))  # inches of a panel: the tokens beside it can be read
    figure = new_figure(side * heads + 1.0, (side + 0.2) * len(layers) + 0.6)
    axes = figure.subplots(len(layers), heads, sharex=True, sharey=True, squeeze=False)
    for row, layer in enumerate(layers):
        for head in range(heads):
            probabilities = activations[f"{layer}.attention.probabilities"][0, head]
            axes[row, head].imshow(probabilities, cmap="Blues", vmin=0, vmax=1)
            axes[row, head].set_title(f"{layer}, head {head}" if head == 0 else f"head {head}", fontsize=8)
    for axis in [panel.xaxis for panel in axes[-1]] + [panel.yaxis for panel in axes[:, 0]]:
        axis.set_ticks(
            range(len(tokens)), [_readable(token) for token in tokens], fontfamily=font_families(), fontsize=6
        )
    for panel in axes[-1]:
        panel.tick_params(axis="x", rotation=90 if max(map(len, tokens)) > 1 else 0)  # single characters fit upright
    return save_png(figure, png, 100)


def _readable(token: str) -> str:
    return "↵" if token == LINE_MARK else token


def plot_heads(scores: Sequence[HeadScore], png: Path | str) -> Path:
    """``score_heads`` as a picture, a panel a relation: each head's share of attention, and how often that of an even look."""
    layers = sorted({score.layer for score in scores})  # blocks.0 …, query_layer
    heads = 1 + max(score.head for score in scores)
    names = [name for name in RELATIONS if any(score.relation == name for score in scores)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(0.9 + 0.62 * heads * columns, rows * (0.7 + 0.42 * len(layers)))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    highest = max(2.0, *(score.ratio for score in scores))
    for axes in panels.ravel()[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.ravel(), names):
        found = {(layers.index(score.layer), score.head): score for score in scores if score.relation == name}
        depth = np.array(
            [[_depth(found[row, head].ratio, highest) for head in range(heads)] for row in range(len(layers))]
        )
        axes.imshow(depth, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
        for (row, head), score in found.items():
            axes.text(
                head,
                row,
                f"{score.mass:.0%}\n×{score.ratio:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if depth[row, head] > 0.6 else "black",
            )
        axes.set(title=name, xticks=range(heads))
    panels[0, 0].set_yticks(range(len(layers)), layers)
    figure.supxlabel("head", fontsize=9)
    return save_png(figure, png, 110)


def _depth(ratio: float, highest: float) -> float:
    """The depth of a colour, 0 … 1: white for what an even look would give and for less."""
    return float(np.log(max(ratio, 1.0)) / np.log(highest))


def plot_poem(look: Attention, score: HeadScore, png: Path | str, lines: Sequence[int] = ()) -> Path:
    """Where a head looks in one poem, for every character to come that its relation is about, to a PNG file.

    Each panel is the poem, a line a row below its title: red is the character to come, grey what follows it, which no head
    sees; the bluer a character, the more of the look it gets.

    Args:
        look: of the poem, in the form that ``score_heads`` takes.
        score: names relation, layer and head.
        lines: only the characters of these lines, from 1.

    Raises:
        InputError: not a poem, or the relation has no place in it.
    """
    places = verse_places(look.tokens)
    wanted = places.lines[[line - 1 for line in lines]] if lines else places.lines
    asked = sorted(
        set(1 + np.flatnonzero(verse_relations(look.tokens)[score.relation].any(1))) & set(wanted.ravel().tolist())
    )
    if not asked:
        raise InputError(f"nothing in {''.join(look.tokens)[:12]!r} is asked about by the relation {score.relation!r}")
    cells = _cells(look.tokens, places.lines)
    width, height = (1 + max(cell[axis] for cell in cells) for axis in (0, 1))
    columns = min(len(asked), places.lines.shape[1])
    rows = -(-len(asked) // columns)
    cell = 0.2 if columns > 3 else 0.28  # inches
    figure = new_figure(max(3.0, cell * width * columns + 0.3), 1.15 * cell * height * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = look.probabilities[look.layers.index(score.layer), score.head]
    for panel, place in zip(panels, asked):
        _draw_poem(panel, look.tokens, cells, looks[place - 1, :place], (height, width), 45 * cell)
    for panel in panels:
        panel.axis("off")
    figure.suptitle(f"{score.layer}, head {score.head}: {score.relation}", fontsize=9)
    return save_png(figure, png, 110)


def _cells(tokens: Sequence[str], lines: np.ndarray) -> list[tuple[int, int]]:
    """Column and row of each token: the title above, then a row for each line of the poem."""
    starts = [0, *lines[:, 0].tolist()]
    rows = np.searchsorted(starts, range(len(tokens)), side="right") - 1
    return [(place - starts[row], int(row)) for place, row in enumerate(rows)]


def _draw_poem(
    panel,
    tokens: Sequence[str],
    cells: Sequence[tuple[int, int]],
    looks: np.ndarray,
    shape: tuple[int, int],
    size: float,
) -> None:
    """A poem up to the character that comes after the (seen,) ``looks``, and pale what follows."""
    shade = np.zeros(shape)
    for place, value in enumerate(looks):
        shade[cells[place][::-1]] = value
    panel.imshow(shade, cmap="Blues", vmin=0, vmax=1)
    families = font_families()
    for place, (token, (column, row)) in enumerate(zip(tokens, cells)):
        seen = place < len(looks)
        color = (
            ("white" if looks[place] > 0.6 else "black") if seen else "#e45756" if place == len(looks) else "#cccccc"
        )
        sign = _readable(token) if len(token) == 1 else "□"
        panel.text(
            column,
            row,
            sign,
            ha="center",
            va="center",
            fontsize=size,
            color=color,
            fontfamily=families,
            in_layout=False,
        )
