"""The run folder as its owner, the training process, sees it: opens it, keeps its status, ends it.

Only one process may train in a folder at a time; a second one is refused while the first lives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pangu_lab.checkpoint.folder import list_checkpoints
from pangu_lab.config import RunConfig, load_yaml
from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder, write_json_atomic, write_text_atomic
from pangu_lab.train.events import EventLog
from pangu_lab.train.heartbeat import beat
from pangu_lab.train.runs import STATUS, STOP, read_status

HEARTBEAT_SECONDS = 5.0
# what may differ when a run goes on: how long, how often, where the data lies; not what is computed
MAY_CHANGE = {"train.steps", "train.max_minutes", "train.log_every", "train.eval_every", "train.eval_batches",
              "train.checkpoint_every", "train.keep_checkpoints", "data.path", "data.eval_path", "train.offload",
              "train.offload_folder", "train.init_from"}


class Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.received = False

    def note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


class RunFolder:
    """``runs/NAME`` while it is being trained in.

    Args:
        owner: rank 0, which alone writes configuration, events and status; the other ranks only read.
    """

    def __init__(self, folder: Path | str, owner: bool = True):
        self.folder = Path(folder)
        self.owner = owner
        self.checkpoints = self.folder / "checkpoints"
        self._status: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._log: EventLog | None = None

    # ---------------------------------------------------------------- opening

    def open(self, config: RunConfig, resume: bool | str) -> bool:
        """Create the folder, or check that the run in it may be continued with ``config``; True when created.

        Raises:
            InputError: a run is there and may not be continued, or none is there and one must be.
        """
        if not self.owner:
            return False
        exists = (self.folder / "config.yaml").exists()
        if resume is True and not exists:
            raise InputError(f"{self.folder}: no run to resume")
        if exists:
            if resume is False:
                raise InputError(f"{self.folder} holds a run already: choose another name, or resume it")
            self._check_free()
            self._check_config(config)
        elif self.folder.exists() and any(self.folder.iterdir()):
            if not set(os.listdir(self.folder)) <= {"logs", "heartbeat", "launch.json", "launch.yaml"}:
                raise InputError(f"{self.folder} is not empty and holds no run: choose another folder")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        write_text_atomic(self.folder / "config.yaml", config.to_yaml())
        with contextlib.suppress(FileNotFoundError):  # a request to stop is for the run that was going on then
            (self.folder / STOP).unlink()
        return not exists

    def _check_free(self) -> None:
        if not (self.folder / STATUS).exists():
            return
        status = read_status(self.folder)
        if status["state"] not in ("finished", "stopped", "failed", "died") and status["pid"] != os.getpid():
            raise InputError(f"{self.folder}: process {status['pid']} is training here; stop it first "
                             f"(create the file {self.folder / STOP})")

    def _check_config(self, config: RunConfig) -> None:
        """A run goes on with the settings it began with."""
        if not list_checkpoints(self.checkpoints):
            return
        before, now = _flat(load_yaml(self.folder / "config.yaml")), _flat(config)
        changed = [key for key in now if now[key] != before.get(key) and key not in MAY_CHANGE
                   and not key.startswith(("sampling.", "parallel."))]
        if changed:
            key = changed[0]
            raise InputError(f"{self.folder}: this run was started with {key}={before.get(key)}, not {now[key]}; "
                             "keep that value, or start a new run")

    # ---------------------------------------------------------------- living

    @contextlib.contextmanager
    def running(self, steps: int) -> Iterator[Signals]:
        """Write events and a heartbeat, and note signals, until the block ends."""
        signals, ended = Signals(), threading.Event()
        if not self.owner:
            with _handling(signals):
                yield signals
            return
        self._log = EventLog(self.folder)
        self._status = {"pid": os.getpid(), "started": psutil.Process().create_time(), "state": "starting",
                        "step": 0, "steps": steps, "reason": ""}
        self._write_status()
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        thread.start()
        try:
            with _handling(signals):
                yield signals
        finally:
            ended.set()
            thread.join()
            self._log.close()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            self._write_status()

    def status(self, **changes: Any) -> None:
        """Note a change of state; written at once when the state's word changes, else with the next heartbeat."""
        beat(changes.get("state"), changes.get("step"))
        if not self.owner:
            return
        with self._lock:
            new_word = changes.get("state", self._status["state"]) != self._status["state"]
            self._status.update(changes)
        if new_word:
            self._write_status()

    def _write_status(self) -> None:
        with self._lock:
            write_json_atomic(self.folder / STATUS, {**self._status, "heartbeat": time.time()})

    def event(self, kind: str, **fields: Any) -> None:
        if not self.owner:
            return
        assert self._log is not None, "events are written while running"
        self._log.write(kind, **fields)

    def stop_asked(self) -> bool:
        return (self.folder / STOP).exists()

    def finish(self, state: str, step: int, reason: str) -> None:
        """The run's last word."""
        if not self.owner:
            return
        self.event("end", step=step, state=state, reason=reason)
        with self._lock:
            self._status.update(state=state, step=step, reason=reason)
        self._write_status()

    def keep_tokenizer(self, source: Path) -> None:
        """Copy the data set's tokenizer into the run, so that a run alone can generate."""
        if self.owner and not (self.folder / "tokenizer").exists():
            with whole_folder(self.folder / "tokenizer") as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)


@contextlib.contextmanager
def _handling(signals: Signals) -> Iterator[None]:
    """Install the handlers where that is possible: in the main thread (a notebook may call from another)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flat(config: RunConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {f"{section}.{key}": value for section, content in values.items() if isinstance(content, dict)
            for key, value in content.items()}
