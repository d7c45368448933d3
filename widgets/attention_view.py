"""``AttentionView``: the attention of every head of every layer, and that of the query layer.

All heads of the chosen layer are shown side by side as small pictures, the chosen one as a large one; hovering over a
token shows its row over the text. In the query layer a row is not a token: it is the query of a position, "what
follows here?". The page holds all layers of the text, as 16-bit numbers, so switching layers needs no kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from pangu_lab.errors import InputError
from pangu_lab.lm import PanguLM
from widgets.base import LabWidget, escape, piece_of
from widgets.still import COLORS

MOST_TOKENS = 64  # more are too small to be told apart
MEAN = -1  # as a head: the mean of all
WHOLE = 65535  # represents a probability of 1 on the page
CELL, LEFT, TOP = 20, 76, 66  # of the picture without scripts


class AttentionView(LabWidget):
    """Where does a model look while it reads ``text``?

    Args:
        lm: a model that can be looked into: ``PanguLM.load("verse")``, or of a run, a checkpoint or a release.
        text: the text to begin with, of at most 64 tokens.
        layer: "query_layer", or the number of a block.
        head: a number, or ``"mean"``.

    Attributes:
        seen: what is shown, as ``lm.attention(text)`` gives it.

    Raises:
        InputError: there is no such layer or head, or no attention of that text.
    """

    _script = "attention_view"
    _sections = ("attention",)
    text = traitlets.Unicode().tag(sync=True)
    tokens = traitlets.List().tag(sync=True)
    shape = traitlets.List().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    layer = traitlets.Int(-1).tag(sync=True)
    head = traitlets.Int(MEAN).tag(sync=True)
    row = traitlets.Int(-1).tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        lm: PanguLM,
        text: str = "春天来了，我们一起去公园。",
        layer: str | int = "query_layer",
        head: str | int = "mean",
        **values: Any,
    ) -> None:
        layers, heads = lm.config.num_layers, lm.config.num_heads
        number = layers - 1 if layer == "query_layer" else layer
        if not isinstance(number, int) or not 0 <= number < layers:
            raise InputError(f'no layer {layer!r}: there are 0 to {layers - 2} and "query_layer"')
        if head != "mean" and (not isinstance(head, int) or not 0 <= head < heads):
            raise InputError(f'no head {head!r}: there are 0 to {heads - 1} and "mean"')
        self.lm = lm
        super().__init__(layer=number, head=MEAN if head == "mean" else head, **values)
        self.read(text)

    def read(self, text: str) -> None:
        """Show this text instead.

        Raises:
            InputError: it is empty or too long, or the model cannot be looked into.
        """
        count = len(self.lm.engine.tokenizer.encode(text))
        if count > MOST_TOKENS:
            raise InputError(f"the text has {count} tokens; at most {MOST_TOKENS} are shown")
        self.seen = self.lm.attention(text)
        with self.hold_sync():
            self.text, self.note, self.row = text, "", -1
            self.tokens = [piece_of(self.lm.engine.tokenizer, index) for index in self.seen.ids]
            self.shape = list(self.seen.probabilities.shape)
            self.data = np.round(self.seen.probabilities * WHOLE).astype("<u2").tobytes()

    def picture(self) -> np.ndarray:
        """(seq, seq) of the chosen layer and head, [query, key]."""
        layer = self.seen.probabilities[self.layer]
        return layer.mean(0) if self.head == MEAN else layer[self.head]

    def _do_text(self, content: dict[str, Any]) -> None:
        try:
            self.read(str(content.get("text", "")))
        except InputError as error:
            self.note = str(error)

    # ---------------------------------------------------------------- without a page

    def _title(self) -> str:
        last = self.layer == len(self.seen.layers) - 1
        layer = self.word("attention", "query_layer" if last else "block", number=self.layer)
        head = self.word("attention", "mean") if self.head == MEAN else f"{self.word('attention', 'head')} {self.head}"
        return f"{layer} · {head}"

    def still_text(self) -> str:
        lines = [f"{self._title()}:"]
        for token, row in zip(self.tokens, self.picture()):
            most = [place for place in np.argsort(-row, kind="stable")[:3] if row[place] > 0]
            lines.append(f"{token} → " + ", ".join(f"{self.tokens[place]} {row[place]:.0%}" for place in most))
        return "\n".join(lines)

    def still_html(self) -> str:
        last = self.layer == len(self.seen.layers) - 1
        told = self.word("attention", "asks" if last else "looks")
        return (
            f'<div style="font-family:sans-serif;font-size:13px"><b>{escape(self._title())}</b> {escape(told)}</div>'
            f"{attention_svg(self.picture(), self.tokens)}"
        )


def attention_svg(picture: np.ndarray, tokens: list[str]) -> str:
    """A square a pair of tokens, the darker the more the row's token looks at the column's (root of the weight)."""
    parts = []
    for place, token in enumerate(tokens):
        at = CELL * place + CELL / 2
        parts.append(f'<text x="{LEFT - 6}" y="{TOP + at + 4}" text-anchor="end">{escape(token)}</text>')
        parts.append(f'<text transform="translate({LEFT + at + 4},{TOP - 6}) rotate(-90)">{escape(token)}</text>')
        parts += [
            f'<rect x="{LEFT + CELL * key}" y="{TOP + CELL * place}" width="{CELL - 1}" height="{CELL - 1}" '
            f'fill="{COLORS[0]}" fill-opacity="{picture[place, key] ** 0.5:.2f}"/>'
            for key in range(place + 1)
        ]
    wide, high = LEFT + CELL * len(tokens) + 4, TOP + CELL * len(tokens) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" '
        f'style="max-width:100%;background:#fff" font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )
