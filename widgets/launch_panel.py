"""``LaunchPanel``: name a run, say where it runs, start it, watch it. Training is the public command line in a process of its own."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import traitlets

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from pangu_lab.terminal import duration
from widgets.base import LabWidget
from widgets.command import command_text, launch_words
from widgets.config_form import ConfigForm
from widgets.launching import StartedRun, ask, exit_code, interrupt, last_words, resume_run, start_run
from widgets.monitor import RunMonitor
from widgets.target_form import TargetForm
from widgets.watched import Watched

OUTPUT_LINES = 30  # of the command's output, the last
LOOK_SECONDS = 0.3  # between two looks at it


class LaunchControls(LabWidget):
    """The middle of a ``LaunchPanel``: the run's name, the command, its buttons, and what it said: a plan or its output."""

    _script = "launch"
    _sections = ("launch",)
    name = traitlets.Unicode().tag(sync=True)
    folder = traitlets.Unicode().tag(sync=True)
    command = traitlets.Unicode().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)  # a dry run is being made
    running = traitlets.Bool(False).tag(sync=True)
    stopping = traitlets.Bool(False).tag(sync=True)

    def _do_start(self, content: dict[str, Any]) -> None:
        self.start()

    def _do_dry_run(self, content: dict[str, Any]) -> None:
        self.dry_run()

    def _do_stop(self, content: dict[str, Any]) -> None:
        self.stop()

    def still_text(self) -> str:
        return "\n".join(filter(None, (self.command, self.said)))


class LaunchPanel(Watched):
    """Start, stop and resume a run, with its monitor below.

    Args:
        settings: a ``ConfigForm`` (what it says when the button is pressed), a configuration, or a preset's name.
        name: of the run; can be changed on the page.
        folder: where runs are.
        target: where it runs, such as ``TargetForm(backend="mpirun", nproc=2)``; this machine's own starter by default.
    """

    def __init__(
        self,
        settings: ConfigForm | RunConfig | str,
        name: str = "first",
        folder: Path | str = "runs",
        target: TargetForm | None = None,
        **values: Any,
    ) -> None:
        self.settings = preset(settings) if isinstance(settings, str) else settings
        self._started: StartedRun | None = None
        self._telling: threading.Thread | None = None
        self.folder = Path(folder)
        self.target = target or TargetForm(folder, **values)
        self.controls = LaunchControls(name=name, folder=str(folder), **values)
        self.controls.start, self.controls.dry_run, self.controls.stop = self.start, self.dry_run, self.stop
        self.monitor = RunMonitor(self.folder / name, **values)
        self.monitor.resume = self.resume
        self.controls.observe(lambda change: self._named(), "name")
        self.target.observe(lambda change: self._other(), ["target", "errors"])
        if isinstance(self.settings, ConfigForm):
            self.settings.observe(lambda change: self._show_command(), "command")
            self.settings.observe(lambda change: self._other(), ["command", "error"])
        self._show_command()
        super().__init__(self.target, self.controls, monitor=self.monitor)

    @property
    def config(self) -> RunConfig:
        """What would be trained now."""
        return self.settings.config if isinstance(self.settings, ConfigForm) else self.settings

    @property
    def run(self) -> Path:
        """The folder that the run has or will have."""
        return self.folder / self.controls.name

    def start(self) -> StartedRun:
        """Begin the run, or go on with it, without waiting.

        Raises:
            InputError: the settings or the target on the form do not work, there is no data, or a run is going on.
        """
        self._check()
        return self._follow(start_run(self.config, self.run, target=self.target.ready()))

    def resume(self) -> StartedRun:
        """Go on with a run that has ended, with its own settings, where the form says.

        Raises:
            InputError: the target does not work, there is no run, or it is running.
        """
        return self._follow(resume_run(self.run, self.target.ready()))

    def plan(self) -> str:
        """What would run on each machine, as the command's dry run says it; shown on the form and returned.

        Raises:
            InputError: the settings or the target on the form do not work, in the words of the form or the command.
        """
        self.controls.said = ask(self._dry_words())
        return self.controls.said

    def dry_run(self) -> threading.Thread:
        """As ``plan``, without waiting: the answer, or why there is none, then appears on the form.

        Raises:
            InputError: the settings or the target on the form do not work, or an answer is awaited.
        """
        if self.controls.busy:
            raise InputError("the plan is being made: wait for it")
        words = self._dry_words()
        self.controls.busy, self.controls.said = True, ""
        asking = threading.Thread(target=self._ask, args=(words,), name="dry run", daemon=True)
        asking.start()
        return asking

    def stop(self) -> None:
        """Ctrl-C for the command that was started here: the run saves and ends; a second call ends it at once.

        A run that was started elsewhere is asked to finish its step, save and end.
        """
        if self._started is None or exit_code(self._started) is not None:
            self.monitor.stop()
        else:
            self.controls.stopping = True
            interrupt(self._started)

    def wait(self) -> str:
        """Wait for the end of the command that was started here; its last line. Interrupting the wait leaves it alone.

        Raises:
            InputError: nothing was started here.
        """
        if self._telling is None:
            raise InputError("nothing was started here yet")
        self._telling.join()
        return self.controls.said.rpartition("\n")[2]

    # ---------------------------------------------------------------- the command at work

    def _ask(self, words: list[str]) -> None:
        try:
            self.controls.said = ask(words)
        except InputError as error:
            self.controls.send({"kind": "refused", "text": str(error)})
        finally:
            self.controls.busy = False

    def _follow(self, started: StartedRun) -> StartedRun:
        """Show a command's output and its end."""
        self._started = started
        self.controls.said, self.controls.stopping, self.controls.running = "", False, True
        self.monitor.show(self.run)
        self._telling = threading.Thread(
            target=self._tell, args=(started, time.monotonic()), name="launch", daemon=True
        )
        self._telling.start()
        return started

    def _tell(self, started: StartedRun, begun: float) -> None:
        code = None
        while code is None:
            time.sleep(LOOK_SECONDS)
            code = exit_code(started)  # before the look at what it wrote, all of which is then there
            if self._started is not started:
                return
            lines = last_words(started.run, OUTPUT_LINES)
            if code is not None:
                lines.append(self.controls.word("launch", "ended", code=code, time=duration(time.monotonic() - begun)))
            self.controls.said = "\n".join(lines)
        self.controls.running = False

    # ---------------------------------------------------------------- what is on the form

    def _check(self) -> None:
        if isinstance(self.settings, ConfigForm) and self.settings.error:
            raise InputError(self.settings.error["text"])
        name = self.controls.name.strip()
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise InputError(f"'{name}' cannot be a run's name: give a plain name such as first")

    def _dry_words(self) -> list[str]:
        self._check()
        return [*launch_words(self.config, self.run, target=self.target.ready()), "--dry-run"]

    def _named(self) -> None:
        self._show_command()
        if self.controls.name.strip():
            self.monitor.show(self.run)

    def _other(self) -> None:
        """Why Start was refused is no longer true of other settings or another target."""
        self._show_command()
        self.controls.send({"kind": "other settings"})

    def _show_command(self) -> None:
        if isinstance(self.settings, ConfigForm):
            self.settings.name_run(self.run, self.target.target)  # both show one command
        self.controls.command = command_text(launch_words(self.config, self.run, target=self.target.target))
