"""Which expert the routers of a mixture of experts send each token of a text to.

``route_text`` runs the layers as evaluation does, without a capacity limit, and returns the gates of every router. The
load during training is read from a run (``runs/routing.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_lab.checkpoint.source import load_weights, tokenizer_folder
from pangu_lab.errors import InputError
from pangu_lab.plotting import cjk_font, new_figure, save_png
from pangu_lab.tokenizer import load_tokenizer


@dataclass(frozen=True)
class RoutedText:
    """The routing of a text.

    Attributes:
        pieces: the tokens as text.
        layers: the blocks with experts.
        gates: (layers, tokens, experts), the weight of each expert's output; 0 for those that were not chosen.
    """

    pieces: list[str]
    layers: tuple[int, ...]
    gates: np.ndarray

    @property
    def first_choice(self) -> np.ndarray:
        """(layers, tokens): the expert with the largest gate."""
        return self.gates.argmax(-1)


def route_text(folder: Path | str, text: str) -> RoutedText:
    """Which experts the tokens of ``text`` go to, in the run or checkpoint ``folder``.

    Raises:
        InputError: the model there is dense, or the text is empty or longer than a record.
    """
    import mindspore as ms
    from mindspore import Tensor

    from pangu_lab.evaluate.graph import RouterProbe
    from pangu_lab.model.pangu import Weights

    weights, config = load_weights(folder)
    if not config.model.moe_layers:
        raise InputError(f"{folder}: this model has no experts (model.num_experts=1)")
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    ids = tokenizer.encode(text)
    if not 0 < len(ids) <= config.model.num_positions:
        raise InputError(f"the text has {len(ids)} tokens; give between 1 and {config.model.num_positions}")
    ms.set_context(mode=ms.GRAPH_MODE)
    probe = RouterProbe(dataclasses.replace(config.model, dropout_rate=0.0), Weights(weights), len(ids))
    gates = probe(Tensor(np.array([ids], np.int32)), Tensor(np.arange(len(ids), dtype=np.int32)[None]))
    return RoutedText([tokenizer.decode([i]) or "·" for i in ids], config.model.moe_layers, gates.asnumpy())


def plot_routed_text(routed: RoutedText, png: Path | str) -> Path:
    """Plot one row per block and one column per token: the colour is the expert, its strength the gate."""
    from matplotlib.colors import to_rgb

    layers, tokens, experts = routed.gates.shape
    figure = new_figure(min(2.2 + 0.42 * tokens, 16.0), 1.4 + 0.5 * layers)
    axes = figure.subplots()
    colors = np.array([to_rgb(f"C{e % 10}") for e in range(experts)])
    chosen, depth = routed.first_choice, routed.gates.max(-1)[..., None]
    axes.imshow(1 - depth * (1 - colors[chosen]), aspect="auto")
    for layer in range(layers):
        for token in range(tokens):
            axes.text(token, layer, str(chosen[layer, token]), ha="center", va="center", fontsize=9)
    axes.set(
        yticks=range(layers),
        yticklabels=[f"block {n}" for n in routed.layers],
        xticks=range(tokens),
        title="the expert of each token; pale: a small gate",
    )
    axes.set_xticklabels(routed.pieces, fontfamily=cjk_font() or "sans-serif")
    return save_png(figure, png, 120)
