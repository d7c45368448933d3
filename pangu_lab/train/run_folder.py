"""The run folder for its owner, the training process: opens it, keeps its status, ends the run.

Only one process may train in a folder at a time: it holds the lock ``lock``, and a second one is refused while the
first is alive. A process that lost the lock (it was suspended, and taken for dead) stops writing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pangu_lab.checkpoint.folder import list_checkpoints
from pangu_lab.checkpoint.keeping import Keeper
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.files import RANDOM, whole_folder, write_json_atomic, write_text_atomic
from pangu_lab.identity import own_identity
from pangu_lab.locking import Lock
from pangu_lab.presets import load_yaml
from pangu_lab.runs.events import EventLog
from pangu_lab.runs.heartbeat import beat
from pangu_lab.runs.status import STATUS, STOP, refuse_living, run_lock

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 5.0
RESERVE, RESERVE_BYTES = ".reserve", 64 << 10  # freed at the end, so that the final status fits even on a full disk
# settings that may differ when a run is resumed: how long, how often, where the data is; not what is computed
MAY_CHANGE = {
    "train.steps",
    "train.max_minutes",
    "train.minutes",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.decay_steps",
    "data.path",
    "data.eval_path",
    "train.offload",
    "train.offload_folder",
    "train.init_from",
    "train.patience",
    "train.sample_prompts",
    "train.sample_tokens",
}
# half-written files and folders that a killed owner leaves
_LEFT = re.compile(
    rf"\.(status\.json|best\.json|config\.yaml)\.(new-)?{RANDOM}|\.tokenizer\.partial-{RANDOM}|\.reserve"
)
_OTHERS = re.compile(rf"\.launch\.(json|yaml)\.(new-)?{RANDOM}")  # a launcher may be writing it at this moment
# what an early failed start leaves, and what `pangu-lab start` makes before
_EMPTY = {"logs", "heartbeat", "launch.json", "launch.yaml", "lock", "start"}


class Signals:
    """Records SIGINT and SIGTERM instead of dying; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.received = False

    def note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


class RunFolder:
    """``runs/NAME`` while it is being trained in.

    Args:
        owner: true for rank 0, the only one to write configuration, events and status; the other ranks only read.
    """

    def __init__(self, folder: Path | str, owner: bool = True):
        self.folder = Path(folder)
        self.owner = owner
        self.checkpoints = self.folder / "checkpoints"
        self._status: dict[str, Any] = {}
        self._writing = threading.Lock()
        self._log: EventLog | None = None
        self.lock: Lock | None = None
        self.keeper = Keeper(self.checkpoints, self.warn)
        self._early: list[str] = []  # warnings from before the events are opened
        self.previous: RunConfig | None = None  # the settings with which a resumed run was last started

    # ---------------------------------------------------------------- opening

    def open(self, config: RunConfig, resume: bool | str) -> bool:
        """Create the folder, or check that the run in it may be continued with ``config``; True when created.

        Raises:
            InputError: a run is there and may not be continued, or none is there and one is required.
        """
        if not self.owner:
            return False
        self._check_folder(resume)
        self.lock = run_lock(self.folder).acquire()
        try:
            exists = self._check_folder(resume)  # again: another process may have been faster
            if exists:
                refuse_living(self.folder)
            self._clear_up()
            if exists:
                self._check_config(config)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.folder / "logs").mkdir(exist_ok=True)
            write_text_atomic(self.folder / "config.yaml", config.to_yaml())
        except BaseException:
            self.lock.release()
            raise
        with contextlib.suppress(FileNotFoundError):  # a stop request was meant for the earlier process
            (self.folder / STOP).unlink()
        return not exists

    def _check_folder(self, resume: bool | str) -> bool:
        """Whether a run exists; refuses what does not fit ``resume``."""
        exists = (self.folder / "config.yaml").exists()
        if resume is True and not exists:
            raise InputError(f"{self.folder}: no run to resume")
        if exists and resume is False:
            raise InputError(f"{self.folder} holds a run already: choose another name, or resume it")
        if not exists and self.folder.exists():
            names = [name for name in os.listdir(self.folder) if name not in _EMPTY]
            if not all(_LEFT.fullmatch(name) or _OTHERS.fullmatch(name) for name in names):
                raise InputError(f"{self.folder} is not empty and holds no run: choose another folder")
        return exists

    def _clear_up(self) -> None:
        """Clean up after a killed owner: remove half-written files, restore a checkpoint that was moved away."""
        for path in self.folder.iterdir():
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.keeper.recover()

    def _check_config(self, config: RunConfig) -> None:
        """Check that a resumed run keeps the settings it began with."""
        if not list_checkpoints(self.checkpoints):
            return
        self.previous = load_yaml(self.folder / "config.yaml")
        old, new = _flat(self.previous), _flat(config)
        changed = [
            key
            for key in new
            if new[key] != old.get(key) and key not in MAY_CHANGE and not key.startswith(("sampling.", "parallel."))
        ]
        if changed:
            key = changed[0]
            raise InputError(
                f"{self.folder}: this run was started with {key}={old.get(key)}, not {new[key]}; "
                "keep that value, or start a new run"
            )

    # ---------------------------------------------------------------- running

    @contextlib.contextmanager
    def running(self, steps: int) -> Iterator[Signals]:
        """Write events and a heartbeat, and record signals, until the block ends."""
        signals, ended = Signals(), threading.Event()
        if not self.owner:
            with _handling(signals):
                yield signals
            return
        assert self.lock is not None, "the folder is opened before it is run in"
        with self.lock:  # released at the end in any case
            self._begin(steps)
            thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
            thread.start()
            try:
                with _handling(signals):
                    yield signals
            finally:
                ended.set()
                thread.join()
                self._log.close()

    def _begin(self, steps: int) -> None:
        self._log = EventLog(self.folder)
        for text in self._early:
            self.event("warning", text=text)
        self._status = {
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "beats": 0,
            "state": "starting",
            "step": 0,
            "steps": steps,
            "reason": "",
            "process": own_identity().to_dict(),
        }
        self._write_status()
        (self.folder / RESERVE).write_bytes(bytes(RESERVE_BYTES))

    def check(self) -> None:
        """Raises LockLost if another process has taken over the run."""
        if self.lock is not None:
            self.lock.check()

    def warn(self, text: str) -> None:
        """Log a warning, and write it to the events."""
        log.warning("%s: %s", self.folder, text)
        if self._log is None:
            self._early.append(text)
        else:
            self.event("warning", text=text)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk: training itself reports it when it saves
                self._write_status()

    def status(self, **changes: Any) -> None:
        """Record the status; written at once when the state changes, else with the next heartbeat."""
        beat(changes.get("state"), changes.get("step"))
        if not self.owner:
            return
        with self._writing:
            state_changed = changes.get("state", self._status["state"]) != self._status["state"]
            self._status.update(changes)
        if state_changed:
            self._write_status()

    def _write_status(self) -> None:
        with self._writing:
            if self.lock is not None and self.lock.held():
                self._status["beats"] += 1
                write_json_atomic(self.folder / STATUS, {**self._status, "heartbeat": time.time()})

    def event(self, kind: str, **fields: Any) -> None:
        if not self.owner:
            return
        assert self._log is not None, "events are written while running"
        self.check()
        self._log.write(kind, **fields)

    def stop_asked(self) -> bool:
        return (self.folder / STOP).exists()

    def finish(self, state: str, step: int, reason: str) -> None:
        """Write the final status, unless another process has taken over the run."""
        if self.lock is None or not self.lock.held():
            return
        (self.folder / RESERVE).unlink(missing_ok=True)
        with self._writing:
            self._status.update(state=state, step=step, reason=reason)
        # after a failure an error here must not hide the first one
        with contextlib.suppress(OSError) if state == "failed" else contextlib.nullcontext():
            self._write_status()
            self.event("end", step=step, state=state, reason=reason)

    def keep_tokenizer(self, source: Path) -> None:
        """Copy the data set's tokenizer into the run, so that the run can generate without the data set."""
        if self.owner and not (self.folder / "tokenizer").exists():
            with whole_folder(self.folder / "tokenizer") as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)


@contextlib.contextmanager
def _handling(signals: Signals) -> Iterator[None]:
    """Install signal handlers if this is the main thread; in another one, as in some notebooks, it is not possible."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flat(config: RunConfig) -> dict[str, Any]:
    values = config.with_absolute_paths().to_dict()  # runs of older versions may hold relative ones
    return {
        f"{section}.{key}": value
        for section, content in values.items()
        if isinstance(content, dict)
        for key, value in content.items()
    }
