"""``StartForm``: name a text and the minutes; see what to expect, and train a model on it. Both are the public command line."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import traitlets

from pangu_lab.errors import InputError
from pangu_lab.start import default_folder
from widgets.base import LabWidget
from widgets.command import command_text
from widgets.launching import StartedRun, ask, outcome, start_text
from widgets.monitor import RunMonitor
from widgets.watched import Watched


class StartControls(LabWidget):
    """The upper part of a ``StartForm``: the text, the minutes, the command, two buttons, and what the commands said last."""

    _script = "start"
    _sections = ("start",)
    text = traitlets.Unicode().tag(sync=True)
    minutes = traitlets.Float(30.0).tag(sync=True)
    command = traitlets.Unicode().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)

    def _do_start(self, content: dict[str, Any]) -> None:
        self.start()

    def _do_advise(self, content: dict[str, Any]) -> None:
        self.advise()

    def still_text(self) -> str:
        return "\n".join(filter(None, (self.command, self.said)))


class StartForm(Watched):
    """One's own text to a trained model: ``pangu-lab advise`` and ``pangu-lab start``, with the run's monitor below.

    Args:
        text: a file, a folder, an archive or a pattern; can be changed on the page.
        minutes: for everything; can be changed on the page.
        out: the run's folder; ``runs/NAME`` after the text by default.
    """

    def __init__(
        self, text: Path | str = "", minutes: float = 30.0, out: Path | str | None = None, **values: Any
    ) -> None:
        self.out = None if out is None else Path(out)
        self.controls = StartControls(text=str(text), minutes=minutes, **values)
        self.controls.start, self.controls.advise = self.start, self.advise
        self.monitor = RunMonitor(self.run, **values)
        self.controls.observe(lambda change: self._changed(), ["text", "minutes"])
        self._changed()
        super().__init__(self.controls, monitor=self.monitor)

    @property
    def run(self) -> Path:
        """The folder that the run has or will have."""
        return self.out or Path(default_folder((self.controls.text.strip(),)))

    def words(self, verb: str) -> list[str]:
        """The command of ``start`` or ``advise``; no shell has touched it.

        Raises:
            InputError: no text is named.
        """
        text = self.controls.text.strip()
        if not text:
            raise InputError("name a text: a file, a folder or an archive")
        words = [
            "pangu-lab",
            verb,
            f"./{text}" if text.startswith("-") else text,
            "--minutes",
            f"{self.controls.minutes:g}",
        ]
        return words + (["--out", str(self.out)] if self.out is not None else [])

    def advise(self) -> threading.Thread:
        """Have the text looked at and a few steps timed, in a process of its own, without waiting; what it says is then shown.

        Raises:
            InputError: no text is named, or an answer is awaited.
        """
        words = self.words("advise")
        if self.controls.busy:
            raise InputError("the text is being looked at: wait for the answer")
        self.controls.busy, self.controls.said = True, ""
        asking = threading.Thread(target=self._ask, args=(words,), name="advise", daemon=True)
        asking.start()
        return asking

    def _ask(self, words: list[str]) -> None:
        try:
            self.controls.said = ask(words)
        except InputError as error:
            self.controls.send({"kind": "refused", "text": str(error)})
        finally:
            self.controls.busy = False

    def start(self) -> StartedRun:
        """Begin, or go on with what was interrupted, without waiting; at the end its samples and the next commands are shown.

        Raises:
            InputError: no text is named, or a run is going on there.
        """
        started = start_text(self.words("start"), self.run)
        self.controls.said = ""
        self.monitor.show(self.run)
        threading.Thread(target=self._tell, args=(started,), name="start", daemon=True).start()
        return started

    def _tell(self, started: StartedRun) -> None:
        if said := outcome(started):
            self.controls.said = said

    def _changed(self) -> None:
        self.controls.command = command_text(self.words("start")) if self.controls.text.strip() else ""
        self.monitor.show(self.run)
