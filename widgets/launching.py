"""Starting a run from a notebook: the public command line in a process of its own, in a session of its own.

The kernel neither trains nor waits: it may be interrupted, restarted or closed and the run continues, because the two
share only the run folder. The command's own output goes to ``logs/launcher.log`` there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.progress import Progress, silent
from pangu_lab.runs.events import EventReader
from widgets.command import HERE, Target, launch_words
from widgets.run_state import ENDED, heard_of, launched_by, settings_of, state_of

Folder = Path | str
LOG = "launcher.log"
LEAVE_SECONDS = 10.0
_started: dict[Path, tuple[subprocess.Popen, float]] = {}  # by run: its newest launcher and when it was begun


@dataclass(frozen=True)
class StartedRun:
    """A run that was begun. ``words`` is the command as a person would type it; ``pid`` that of the launcher."""

    run: Path
    words: tuple[str, ...]
    pid: int


def start_run(config: RunConfig, run: Folder, restarts: int = 0, target: Target = HERE) -> StartedRun:
    """Train ``config`` in the folder ``run`` without waiting: ``pangu-lab launch`` in the background.

    An existing run resumes from its newest checkpoint. ``target`` says where it runs; this machine's own starter by default.

    Raises:
        InputError: no data set is named, or somebody trains there now.
    """
    if not config.data.path:
        raise InputError("data.path is empty: name a folder made by `pangu-lab prepare`")
    if not Path(config.data.path).is_dir():
        raise InputError(f"data.path={config.data.path}: no such folder; `pangu-lab prepare` makes one")
    return _start(launch_words(config, run, restarts, target), Path(run))


def resume_run(run: Folder, target: Target | None = None) -> StartedRun:
    """Go on with a run that has ended, with the settings it has.

    ``target`` says where; when not given, a run of this machine alone is started as it was before.

    Raises:
        InputError: there is none, or it is running.
    """
    run = Path(run)
    if not (run / "config.yaml").exists() and not (run / "launch.yaml").exists():
        raise InputError(f"{run}: no run to resume")
    config = settings_of(run)
    target = target or Target(launched_by(run))
    return _start(
        ["pangu-lab", "launch", "--run", str(run), *target.words(config.parallel.world_size if config else 1)], run
    )


def start_text(words: Sequence[str], run: Folder) -> StartedRun:
    """Begin ``pangu-lab start …``, the words of which make the folder ``run`` among others, without waiting.

    Raises:
        InputError: somebody trains there now.
    """
    return _start(words, Path(run))


def outcome(started: StartedRun) -> str:
    """What the command wrote at its end, after the lines of its progress; waits for it. Empty when it was refused."""
    process, _ = _started[started.run.absolute()]
    if process.wait():
        return ""
    lines = (started.run / "logs" / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    first = (
        max((number for number, line in enumerate(lines) if line.startswith(f"{started.words[1]}: ")), default=-1) + 1
    )
    return "\n".join(lines[first:])


def exit_code(started: StartedRun) -> int | None:
    """Of the command; None while it runs."""
    return _started[started.run.absolute()][0].poll()


def interrupt(started: StartedRun) -> None:
    """Ctrl-C for the command: the run saves and ends; a second one ends it at once."""
    process, _ = _started[started.run.absolute()]
    if process.poll() is None:
        process.send_signal(signal.SIGINT)


def ask(words: Sequence[str]) -> str:
    """What a command of the lab writes, in a process of its own; waits for its end.

    Raises:
        InputError: it refused, in its words.
    """
    done = subprocess.run(
        _argv(words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(said[-1] if said else f"exit code {done.returncode}")
    return done.stdout.rstrip()


def _argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pangu_lab.cli", *words[1:]]


def _start(words: Sequence[str], run: Path) -> StartedRun:
    for process, _ in _started.values():
        process.poll()  # those that have ended leave the table of processes
    if state_of(run)[0] not in ENDED or launch_note(run)[0] == "starting":
        raise InputError(f"{run}: a run is going on here; stop it first, or choose another name")
    if run.absolute() in _started:  # its ranks have ended; it takes its leave, and closes the log, a moment later
        with contextlib.suppress(subprocess.TimeoutExpired):
            _started[run.absolute()][0].wait(LEAVE_SECONDS)
    (run / "logs").mkdir(parents=True, exist_ok=True)
    with open(run / "logs" / LOG, "wb") as log:
        process = subprocess.Popen(
            _argv(words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )
    _started[run.absolute()] = process, time.time()
    return StartedRun(run, tuple(words), process.pid)


def _environment() -> dict[str, str]:
    """Ours, with the interpreter's folder first on PATH and this source tree importable, as it is here."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": modules,
        "PYTHONUNBUFFERED": "1",
        "GLOG_v": os.environ.get("GLOG_v", "3"),
    }


def wait_for(run: Folder, step: int | None = None, progress: Progress = silent, patience: float = 600.0) -> str:
    """Wait until a run has done ``step`` steps, or has ended; the word for its state then.

    Interrupting the wait leaves the run alone.

    Raises:
        InputError: nothing was heard of the run for ``patience`` seconds.
    """
    run, heard, moved = Path(run), None, time.monotonic()
    reader, done, total = EventReader(run), 0, None
    while True:
        state = launch_note(run)[0] or state_of(run)[0]
        for event in reader.new():
            total = event.get("steps", total)
            done = int(event.get("resumed_from", event.get("step", done)))
        if (done, state) != heard:
            heard, moved = (done, state), time.monotonic()
            progress(done, step or total, state)
        if state in ENDED or (step is not None and done >= step):
            return state
        if time.monotonic() - moved > patience:
            raise InputError(f"{run}: nothing new for {patience:.0f} s; it is {state}, its logs are in {run / 'logs'}")
        time.sleep(0.1)


def launch_note(run: Folder) -> tuple[str, str]:
    """What is known of a launch from here before the run folder says it: ("starting", ""), ("failed", why), or two
    empty texts when the folder speaks for itself."""
    process, begun = _started.get(Path(run).absolute(), (None, 0.0))
    if process is None or heard_of(Path(run)) > begun:
        return "", ""
    code = process.poll()
    if code is None:
        return "starting", ""
    return ("failed", (last_words(run) or [f"exit code {code}"])[-1]) if code else ("", "")


def last_words(run: Folder, count: int = 6) -> list[str]:
    """What the launcher said last: why it refused, when it did. Lines without anything in them are left out."""
    try:
        text = (Path(run) / "logs" / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
