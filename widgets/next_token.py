"""``NextToken``: the distribution of the next token, step by step.

A text, the model's own distribution over what follows, and the effect of each penalty and sampler, in the order in
which they are applied. Sliders change the settings; a click on a token appends it and shows the next distribution. The
probability of a word can be looked up: it is the product over its tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np
import traitlets

from pangu_lab.config import SLIDERS, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, History, choose, explain
from pangu_lab.generate.text import unknown_ids
from widgets.base import LabWidget, escape, piece_of
from widgets.still import COLORS

SHOWN = 14


class NextToken(LabWidget):
    """Which token follows ``text``?

    Args:
        engine: of a model, ``PanguLM.load("verse").engine``.
        text: the text so far.
        sampling: the settings to begin with; the engine's own when not given.

    Attributes:
        stages: the model's own distribution and what each step of the chain leaves of it: "name", whether it "changed"
            anything, how many tokens are "left", "entropy" in bits.
        tokens: the likeliest: "id", "piece" and its "shares", a probability for each stage.
        sought: of a word that was asked for: "tokens" (of each "piece", "rank" and "probability", the model's own) and their
            product "probability".
    """

    _script = "next_token"
    _sections = ("next",)
    text = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    sliders = traitlets.Dict(SLIDERS).tag(sync=True)
    stages = traitlets.List().tag(sync=True)
    tokens = traitlets.List().tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)
    length = traitlets.List().tag(sync=True)
    wanted = traitlets.Unicode().tag(sync=True)
    sought = traitlets.Dict().tag(sync=True)

    def __init__(
        self, engine: Engine, text: str = "春天来了，", sampling: SamplingConfig | None = None, **values: Any
    ) -> None:
        self.engine = engine
        self._lock, self._logits = threading.Lock(), None
        self._ids: list[int] = []
        sampling = sampling or engine.sampling
        super().__init__(settings={name: getattr(sampling, name) for name in SLIDERS}, **values)
        self.observe(lambda change: self._distribution(), "settings")
        self.write(text)

    @property
    def sampling(self) -> SamplingConfig:
        """The settings as they stand.

        Raises:
            InputError: one of them is out of range.
        """
        chosen = {name: value for name, value in self.settings.items() if name in SLIDERS}
        return dataclasses.replace(SamplingConfig(), **chosen)

    def write(self, text: str) -> None:
        """Begin with ``text``; what is longer than the model's sequence loses its oldest tokens."""
        ids = self.engine.tokenizer.encode(text) or [self.engine.tokenizer.eod_id]
        self._read(ids[-self.engine.max_length :], text)

    def add(self, index: int) -> None:
        """Write the token ``index`` behind the text.

        Raises:
            InputError: the model's sequence is full, or there is no such token.
        """
        if len(self._ids) >= self.engine.max_length:
            raise InputError(f"the sequence is full: the model holds {self.engine.max_length} tokens")
        piece = self.engine.tokenizer.text_bytes(index).decode("utf-8", "replace")
        self._read([*self._ids, index], self.text + piece)

    def draw(self) -> int:
        """Draw a token as generation would, write it, and give its id."""
        index = choose(self._logits, self.sampling, self._history(), float(np.random.default_rng().random()))
        self.add(index)
        return index

    def seek(self, text: str) -> None:
        """How likely is it that ``text`` follows? ``sought`` says it, of an empty text nothing.

        Raises:
            InputError: there is no room for so much behind the text.
        """
        with self.hold_sync():
            self.wanted, self.sought = text, {}
            self.sought = self._chain(text) if text else {}

    def _chain(self, text: str) -> dict[str, Any]:
        tokenizer, known = self.engine.tokenizer, len(self._ids)
        whole = tokenizer.encode(self.text + text)
        new = (
            whole[known:] if whole[:known] == self._ids else tokenizer.encode(text)
        )  # words may be cut anew over the seam
        if known + len(new) > self.engine.max_length:
            raise InputError(f"no room for {len(new)} more tokens: the model holds {self.engine.max_length}")
        with self._lock:
            logits = np.array(self._rows([*self._ids, *new])[known - 1 : -1], np.float64)
        probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
        tokens = [
            {
                "piece": piece_of(tokenizer, index),
                "rank": int((row > row[index]).sum()) + 1,
                "probability": float(row[index]),
            }
            for row, index in zip(probabilities, new)
        ]
        return {"tokens": tokens, "probability": float(np.prod([token["probability"] for token in tokens]))}

    def _rows(self, ids: list[int]) -> np.ndarray:
        """Logits of what follows each token; a model may have more than its tokenizer has pieces."""
        return self.engine.logits(ids)[:, : self.engine.tokenizer.vocab_size]

    def _history(self) -> History:
        """What generation would look at here: it never writes the unknown piece."""
        return History(prompt=self._ids, unknown=unknown_ids(self.engine.tokenizer))

    def _read(self, ids: list[int], text: str) -> None:
        with self._lock:
            self._logits, self._ids = np.array(self._rows(ids)[-1]), list(ids)
        with self.hold_sync():
            self.text, self.length = text, [len(ids), self.engine.max_length]
            self._distribution()
            with contextlib.suppress(InputError):
                self.seek(self.wanted)

    def _distribution(self) -> None:
        try:
            stages = explain(self._logits, self.sampling, self._history())
        except InputError as error:
            self.note = str(error)
            return
        first, last = stages[0], stages[-1]
        shown = list(
            dict.fromkeys(
                [index for index, _ in last.top(SHOWN) if last.probabilities[index] > 0]
                + [index for index, _ in first.top(SHOWN)]
            )
        )[:SHOWN]
        with self.hold_sync():
            self.note = ""
            self.tokens = [
                {
                    "id": index,
                    "piece": piece_of(self.engine.tokenizer, index),
                    "shares": [float(stage.probabilities[index]) for stage in stages],
                }
                for index in shown
            ]
            self.stages = [
                {
                    "name": stage.name,
                    "changed": stage.changed,
                    "left": int((stage.probabilities > 0).sum()),
                    "entropy": _entropy(stage.probabilities),
                }
                for stage in stages
            ]

    def _do_text(self, content: dict[str, Any]) -> None:
        self.write(str(content.get("text", "")))

    def _do_add(self, content: dict[str, Any]) -> None:
        self.add(int(content["id"]))

    def _do_seek(self, content: dict[str, Any]) -> None:
        self.seek(str(content.get("text", "")))

    def _do_draw(self, content: dict[str, Any]) -> None:
        self.draw()

    def still_text(self) -> str:
        rows = [
            f"{token['piece']:<8} " + " → ".join(f"{share:7.2%}" for share in self._shares(token))
            for token in self.tokens
        ]
        return "\n".join([f"{self.text} …", self._told(), " → ".join(self._steps()), *rows])

    def _told(self) -> str:
        """The settings, and how many tokens they leave of how many."""
        settings = ", ".join(
            f"{self.word('next', name)}={value}" for name, value in self.settings.items() if value is not None
        )
        if not self.stages:
            return settings
        return f"{settings}: " + self.word(
            "next", "left_of", left=f"{self.stages[-1]['left']:,}", whole=f"{self.stages[0]['left']:,}"
        )

    def _changed(self) -> list[int]:
        """The model's own distribution and the steps that do something."""
        return [number for number, stage in enumerate(self.stages) if stage["changed"]]

    def _steps(self) -> list[str]:
        return [
            self.word("next", f"stage_{self.stages[number]['name']}").removeprefix("stage_")
            for number in self._changed()
        ]

    def _shares(self, token: dict[str, Any]) -> list[float]:
        return [token["shares"][number] for number in self._changed()]

    def still_html(self) -> str:
        heads = "".join(f"<th>{escape(name)}</th>" for name in self._steps())
        bars = "".join(
            f'<tr><td>{escape(token["piece"])}</td><td><div style="width:{300 * token["shares"][-1]:.0f}px;height:10px;'
            f'background:{COLORS[0]}"></div></td>'
            + "".join(f"<td>{share:.2%}</td>" for share in self._shares(token))
            + "</tr>"
            for token in self.tokens
        )
        return (
            f"<div>{escape(self.text)} …</div><div><small>{escape(self._told())}</small></div>"
            f"<table><tr><th></th><th></th>{heads}</tr>{bars}</table>"
        )


def _entropy(probabilities: np.ndarray) -> float:
    """In bits: how many yes-no questions the choice is worth."""
    some = probabilities[probabilities > 0]
    return float(-(some * np.log2(some)).sum())
