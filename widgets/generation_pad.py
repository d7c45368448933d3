"""``GenerationPad``: generate text interactively; two settings or two checkpoints side by side.

A separate thread generates tokens, a few at a time for each column in turn, so a running cell blocks neither the
text nor Stop. A history keeps earlier texts, with their prompt and settings. A switch shows the boundaries of the
tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import traitlets

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import CompletionStream, Engine, stream
from pangu_lab.generate.text import TokenizerLike
from pangu_lab.lm import PanguLM
from widgets.base import LabWidget, escape
from widgets.still import COLORS

SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
SHOW_SECONDS = 0.08  # the minimum time between two updates of the page
HISTORY = 20
Source = PanguLM | Engine
logger = logging.getLogger(__name__)


class GenerationPad(LabWidget):
    """A prompt, and what one or two columns make of it.

    Args:
        models: one or two models (``PanguLM.load("verse")``, or an engine); with two there is a column for each.
        prompt: what to begin with; for ``verse`` a title, ``"《春夜》\\n"``.
        sampling: settings to begin with: one for all columns, or a list with one for each; with two the columns stand
            side by side. The model's own when not given.

    Attributes:
        outputs: what each column has written: "text", its "pieces" (see ``pieces_of``), "state" ("writing", "waiting",
            "done", "refused"), "reason" (why it ended), "tokens", "seconds", "seed", "note".
        history: what was written before, the newest first.
        show_tokens: whether the pieces are coloured in turn.
    """

    _script = "generation_pad"
    _sections = ("pad",)
    prompt = traitlets.Unicode().tag(sync=True)
    columns = traitlets.List().tag(sync=True)
    outputs = traitlets.List().tag(sync=True)
    writing = traitlets.Bool(False).tag(sync=True)
    history = traitlets.List().tag(sync=True)
    models = traitlets.List().tag(sync=True)
    show_tokens = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        *models: Source,
        prompt: str = "春天来了，",
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        **values: Any,
    ) -> None:
        if not models:
            raise InputError("GenerationPad needs a model: GenerationPad(PanguLM.load('verse'))")
        self._engines = [model.engine if isinstance(model, PanguLM) else model for model in models]
        chosen = list(sampling) if isinstance(sampling, (list, tuple)) else [sampling]
        count = max(len(models), len(chosen))
        columns = [
            _column(number % len(models), chosen[number % len(chosen)] or models[number % len(models)].sampling)
            for number in range(count)
        ]
        self._lock, self._thread = threading.Lock(), None
        self._streams: list[CompletionStream] = []
        super().__init__(
            prompt=prompt, columns=columns, outputs=[_empty() for _ in columns], models=_names(models), **values
        )

    # ---------------------------------------------------------------- writing

    def write(self, prompt: str | None = None) -> None:
        """Begin to write after ``prompt`` (what the page shows when not given), without waiting.

        Raises:
            InputError: it writes already, or settings cannot work; columns say which.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise InputError("it is still writing: stop it first")
            if prompt is not None:
                self.prompt = prompt
            self._begin()

    def _begin(self) -> None:
        outputs, streams = [], {}
        for number, column in enumerate(self.columns):
            try:
                streams[number] = stream(self._engines[column["model"]], self.prompt, _sampling(column))
                outputs.append({**_empty(), "state": "waiting"})
            except InputError as error:
                outputs.append({**_empty(), "state": "refused", "note": str(error)})
        self.outputs = outputs
        if streams:
            self._streams, self.writing = list(streams.values()), True
            self._thread = threading.Thread(target=self._write, args=(streams,), name="generation pad", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the token that is being made."""
        for pieces in self._streams:
            pieces.cancel()

    def wait(self, seconds: float = 600.0) -> bool:
        """Wait until nothing is written any more; whether that came about in time."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.writing

    def close(self) -> None:
        """Stop writing and take the widget off the page."""
        if hasattr(self, "_streams"):
            self.stop()
        super().close()

    def _write(self, streams: dict[int, CompletionStream]) -> None:
        """The thread: every column that has room writes a piece in turn."""
        columns = [dict(column) for column in self.columns]
        outputs, begun, shown = [dict(output) for output in self.outputs], {}, 0.0
        live = dict(streams)
        try:
            while live:
                for number, pieces in list(live.items()):
                    pool = self._engines[columns[number]["model"]].runner.pool
                    if number not in begun and len(begun.keys() & live.keys()) and pool.free < pieces.slots_needed:
                        continue  # another column holds the cache; it ends some time
                    begun.setdefault(number, time.monotonic())
                    outputs[number] = _advance(pieces, outputs[number], begun[number])
                    if outputs[number]["state"] != "writing":
                        del live[number]
                if time.monotonic() - shown > SHOW_SECONDS:
                    self._cut(columns, outputs, streams)
                    self.outputs, shown = [dict(output) for output in outputs], time.monotonic()
        finally:
            for pieces in streams.values():
                pieces.close()
            self._cut(columns, outputs, streams)
            with self.hold_sync():
                self.outputs, self.writing = outputs, False
                self.history = [{"prompt": self.prompt, "columns": columns, "outputs": outputs}, *self.history][
                    :HISTORY
                ]

    def _cut(
        self, columns: list[dict[str, Any]], outputs: list[dict[str, Any]], streams: dict[int, CompletionStream]
    ) -> None:
        """Where the tokens of every column's text end; not for each token: it takes as long as the text is."""
        for number, pieces in streams.items():
            tokenizer = self._engines[columns[number]["model"]].tokenizer
            outputs[number]["pieces"] = pieces_of(tokenizer, pieces.completion.ids, outputs[number]["text"])

    # ---------------------------------------------------------------- from the page

    def _do_write(self, content: dict[str, Any]) -> None:
        self.write(str(content.get("prompt", "")))

    def _do_stop(self, content: dict[str, Any]) -> None:
        self.stop()

    def _do_beside(self, content: dict[str, Any]) -> None:
        """A second column, or no second column."""
        if self.writing:
            return
        if len(self.columns) > 1:
            self.columns, self.outputs = self.columns[:1], self.outputs[:1]
        else:
            first = self.columns[0]
            other = {"model": (first["model"] + 1) % len(self._engines), "settings": dict(first["settings"])}
            self.columns, self.outputs = [first, other], [*self.outputs, _empty()]

    def _do_recall(self, content: dict[str, Any]) -> None:
        """Show what was written before, with its prompt and settings."""
        number = int(content.get("number", -1))
        if not self.writing and 0 <= number < len(self.history):
            entry = self.history[number]
            with self.hold_sync():
                self.prompt, self.columns, self.outputs = entry["prompt"], entry["columns"], entry["outputs"]

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        lines = [
            f"{self.models[column['model']]} ({_told(column)}): {self.prompt}{self._written(output) or ' …'}"
            for column, output in zip(self.columns, self.outputs)
        ]
        return "\n".join(lines)

    def _written(self, output: dict[str, Any]) -> str:
        return "|".join(text for text, _ in output["pieces"]) if self.show_tokens else output["text"]

    def _written_html(self, output: dict[str, Any]) -> str:
        if not self.show_tokens:
            return escape(output["text"])
        return "".join(
            f'<span style="border-bottom:3px solid {COLORS[number % len(COLORS)]}">{escape(text)}</span>'
            for number, (text, _) in enumerate(output["pieces"])
        )

    def still_html(self) -> str:
        cell = '<td style="vertical-align:top;text-align:left;white-space:pre-wrap">'
        heads = "".join(
            f"<th style='text-align:left'>{escape(self.models[column['model']])}<br><small>{escape(_told(column))}</small></th>"
            for column in self.columns
        )
        texts = "".join(
            f'{cell}<span style="opacity:.6">{escape(self.prompt)}</span>{self._written_html(output)}</td>'
            for output in self.outputs
        )
        return f"<table><tr>{heads}</tr><tr>{texts}</tr></table>"


def pieces_of(tokenizer: TokenizerLike, ids: Sequence[int], text: str) -> list[tuple[str, list[int]]]:
    """``text`` cut where one of its tokens ends and the next begins: (piece, the ids that made it), joined ``text``.

    Several ids make one piece where a character is spread over tokens. What the tokens hold beyond ``text`` (a stop
    string, or what may yet become one) is left out.
    """
    stream, pieces, waiting, place = tokenizer.stream(), [], [], 0
    for index in ids:
        made = stream.push(index)
        waiting.append(index)
        if made and place < len(text):
            pieces.append((text[place : place + len(made)], waiting))
            waiting, place = [], place + len(made)
    if place < len(text):  # half a character, shown as what it is when nothing follows
        pieces.append((text[place:], waiting))
    return pieces


def _names(models: Sequence[Source]) -> list[str]:
    """What columns are headed by: checkpoints of different runs may have one name, then the later ones are numbered."""
    names = [model.name for model in models]
    return [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def _column(model: int, sampling: SamplingConfig) -> dict[str, Any]:
    return {"model": model, "settings": {name: getattr(sampling, name) for name in SETTINGS}}


def _empty() -> dict[str, Any]:
    return {"text": "", "pieces": [], "state": "", "reason": "", "tokens": 0, "seconds": 0.0, "seed": None, "note": ""}


def _sampling(column: dict[str, Any]) -> SamplingConfig:
    """The settings of a column.

    Raises:
        InputError: one is out of its range.
    """
    given = {name: value for name, value in column["settings"].items() if name in SETTINGS}
    return dataclasses.replace(SamplingConfig(), **given)


def _told(column: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in column["settings"].items() if value is not None)


def _advance(pieces: CompletionStream, output: dict[str, Any], begun: float) -> dict[str, Any]:
    """One more piece of a column's text, or its end."""
    try:
        text = next(pieces, None)
    except InputError as error:
        return {**output, "state": "refused", "note": str(error)}
    except Exception as error:  # the network failed; unsaid, the text would stand still and nobody would know why
        logger.exception("the network failed")
        return {**output, "state": "refused", "note": f"{type(error).__name__}: {error}"}
    done = pieces.completion
    told = {
        "tokens": pieces.tokens,
        "seconds": time.monotonic() - begun,
        "seed": done.seed,
        "note": " ".join(done.warnings),
    }
    if text is None:
        return {**output, **told, "state": "done", "text": done.text, "reason": done.finish_reason}
    return {**output, **told, "state": "writing", "text": output["text"] + text}
