"""Shared by all widgets: their JavaScript and style, their texts in two languages, and the fallback without scripts.

A widget is a class derived from ``LabWidget`` with ``_script`` naming a file below ``static/``; ``common.js`` is
prepended, so that no widget needs a library, a build or a network. Where no widget can be drawn (GitHub, a file
viewer, a terminal) ``still_html`` and ``still_text`` give what it showed when the cell ran. Texts of models and files
reach the page as text, never as markup: ``textContent`` in JavaScript, ``escape`` here.
"""

from __future__ import annotations

import functools
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from pangu_lab.errors import InputError, nearest
from pangu_lab.texts import LANGUAGES, catalogue, text
from widgets import reattach

HERE = Path(__file__).resolve().parent
MARKS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})
_language = "en"

__all__ = ["LabWidget", "escape", "piece_of", "set_language", "still_block"]


def still_block(text: str) -> str:
    """Lines as they are, as HTML without scripts; viewers differ in what they make of a bare ``pre``."""
    return (
        '<pre style="font-family:monospace;font-size:12px;line-height:1.45;white-space:pre-wrap;margin:4px 0">'
        f"{escape(text)}</pre>"
    )


def piece_of(tokenizer: Any, index: int) -> str:
    """What a token adds to a text, to be looked at: blanks as marks, a special piece by its name."""
    return tokenizer.text_bytes(index).decode("utf-8", "replace").translate(MARKS) or tokenizer.piece(index)


def set_language(language: str) -> None:
    """The language in which widgets made from now on begin: ``en`` or ``zh``; each has a switch of its own.

    Raises:
        InputError: there is no catalogue in that language.
    """
    global _language
    if language not in LANGUAGES:
        raise InputError(f"unknown language '{language}'{nearest(language, LANGUAGES)}: there are en and zh")
    _language = language


@functools.cache
def _script_text(name: str) -> str:
    parts = [(HERE / "static" / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name)]
    return "\n".join(parts)


class LabWidget(anywidget.AnyWidget):
    """Base of the lab's widgets. ``language`` is ``en`` or ``zh`` and may be changed at any time."""

    _script = ""
    _sections: tuple[str, ...] = ()
    language = traitlets.Enum(LANGUAGES, default_value="en").tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)

    def __init__(self, **values: Any) -> None:
        self._esm, self._css = _script_text(self._script), (HERE / "static" / "lab.css").read_text(encoding="utf-8")
        values.setdefault("language", _language)
        chosen = {
            language: {section: catalogue(language)[section] for section in ("common", *self._sections)}
            for language in LANGUAGES
        }
        super().__init__(texts=chosen, **values)
        self.on_msg(self._received)

    def open(self) -> None:
        """Meet the page. What the page sends is then answered while a cell runs.

        JupyterLab sends a widget's messages to a subshell of the kernel. ipykernel 7.4 sends them on to whichever shell the
        widget spoke from last, which is the main one for a widget that a cell made: they would wait for the cell's end.
        A page that was loaded while a cell runs sends them to the main shell too: see ``reattach``.
        """
        super().open()
        reattach.answers(self.comm.comm_id)
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda data, asked: asked

    def word(self, section: str, key: str, **values: Any) -> str:
        """A text of the catalogue in the widget's language, its gaps filled; the key itself where it has none."""
        return text(self.language, section, key, **values)

    def _received(self, widget: Any, content: Any, buffers: Any) -> None:
        """A message of the page ``{"do": NAME, …}`` goes to the method ``_do_NAME``; what is refused is shown."""
        handler = getattr(self, f"_do_{content.get('do', '')}", None) if isinstance(content, dict) else None
        if handler is None:
            return
        try:
            handler(content)
        except InputError as error:
            self.send({"kind": "refused", "text": str(error)})

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        """What the widget shows, in characters."""
        return type(self).__name__

    def still_html(self) -> str:
        """What the widget shows, as HTML without scripts."""
        return still_block(self.still_text())

    def __repr__(self) -> str:
        return self.still_text()

    def _repr_mimebundle_(self, **options: Any):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/plain": self.still_text(), "text/html": self.still_html()}, metadata
