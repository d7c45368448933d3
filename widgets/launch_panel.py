"""``LaunchPanel``: name a run, start it, watch it. Training is the public command line in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Union

import traitlets

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from widgets.base import LabWidget
from widgets.command import command_text, launch_words
from widgets.config_form import ConfigForm
from widgets.launching import StartedRun, start_run
from widgets.monitor import RunMonitor
from widgets.watched import Watched


class LaunchControls(LabWidget):
    """The upper part of a ``LaunchPanel``: the run's name, the command, and the button that starts it."""

    _script = "launch"
    _sections = ("launch",)
    name = traitlets.Unicode().tag(sync=True)
    folder = traitlets.Unicode().tag(sync=True)
    command = traitlets.Unicode().tag(sync=True)

    def _do_start(self, content: dict[str, Any]) -> None:
        self.start()

    def still_text(self) -> str:
        return self.command


class LaunchPanel(Watched):
    """Start, stop and resume a run, with its monitor below.

    Args:
        settings: a ``ConfigForm`` (what it says when the button is pressed), a configuration, or a preset's name.
        name: of the run; can be changed on the page.
        folder: where runs are.
    """

    def __init__(self, settings: Union[ConfigForm, RunConfig, str], name: str = "first",
                 folder: Union[Path, str] = "runs", **values: Any) -> None:
        self._settings = preset(settings) if isinstance(settings, str) else settings
        self.folder = Path(folder)
        self.controls = LaunchControls(name=name, folder=str(folder), **values)
        self.controls.start = self.start
        self.monitor = RunMonitor(self.folder / name, **values)
        self.controls.observe(lambda change: self._named(), "name")
        if isinstance(self._settings, ConfigForm):
            self._settings.observe(lambda change: self._show_command(), "command")
            # why Start was refused is no longer true of other settings
            self._settings.observe(lambda change: self.controls.send({"kind": "other settings"}), ["command", "error"])
        self._show_command()
        super().__init__(self.controls, self.monitor)

    @property
    def config(self) -> RunConfig:
        """What would be trained now."""
        return self._settings.config if isinstance(self._settings, ConfigForm) else self._settings

    @property
    def run(self) -> Path:
        """The folder that the run has or will have."""
        return self.folder / self.controls.name

    def start(self) -> StartedRun:
        """Begin the run, or go on with it, without waiting.

        Raises:
            InputError: the settings on the form do not work, there is no data, or a run is going on.
        """
        if isinstance(self._settings, ConfigForm) and self._settings.error:
            raise InputError(self._settings.error["text"])
        name = self.controls.name.strip()
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise InputError(f"'{name}' cannot be a run's name: give a plain name such as first")
        started = start_run(self.config, self.run)
        self.monitor.show(self.run)
        return started

    def _named(self) -> None:
        self._show_command()
        if self.controls.name.strip():
            self.monitor.show(self.run)

    def _show_command(self) -> None:
        if isinstance(self._settings, ConfigForm):
            self._settings.name_run(self.run)  # both show one command
        self.controls.command = command_text(launch_words(self.config, self.run))
