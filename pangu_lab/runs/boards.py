"""Runs for external boards: TensorBoard and SwanLab.

A run's events stay the source. A separate process replays them to a board, once or for as long as the run continues.
Training knows nothing of it, so a board that is slow, full or gone cannot hold up a run. Steps go to
``train/…``, evaluations to ``eval/…``.

A resumed run repeats some steps. In TensorBoard their old points are purged; SwanLab keeps the last value logged for a
step. TensorBoard gets the original times, SwanLab only the time of the replay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder
from pangu_lab.presets import load_yaml
from pangu_lab.runs.events import EventReader, read_curves
from pangu_lab.runs.status import STATUS

GROUPS = {"step": "train", "eval": "eval"}
NOT_SCALARS = {"v", "time", "kind", "step", "records", "of_records"}
MODE = "SWANLAB_MODE"  # SwanLab's own variable


class Board(Protocol):
    """What a run is replayed to."""

    def add(self, event: dict[str, Any]) -> None:
        """Log a ``step`` or an ``eval``."""

    def take_back(self, step: int) -> None:
        """Discard the points after ``step``: the run repeats those steps."""

    def close(self) -> None:
        """Finish writing."""


def scalars(event: dict[str, Any]) -> dict[str, float]:
    """``train/loss`` and the like of an event; lists and booleans are left out."""
    return {
        f"{GROUPS[event['kind']]}/{name}": value
        for name, value in event.items()
        if name not in NOT_SCALARS and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class TensorBoard:
    """Event files as TensorBoard reads them, written into a folder; on the disk a second or two later."""

    def __init__(self, folder: Path | str) -> None:
        self.folder, self.files = str(folder), 0
        self._open()

    def _open(self, **options: Any) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError("tensorboardX is not installed: pip install 'pangu-lab[tensorboard]'") from None
        self.files += 1  # two files of the same second would have the same name
        self.writer = SummaryWriter(self.folder, flush_secs=1, filename_suffix=f".{self.files}", **options)

    def add(self, event: dict[str, Any]) -> None:
        for name, value in scalars(event).items():
            self.writer.add_scalar(name, value, int(event["step"]), float(event["time"]))

    def take_back(self, step: int) -> None:
        self.writer.close()
        self._open(purge_step=step + 1)

    def close(self) -> None:
        self.writer.close()


class SwanLab:
    """A SwanLab run with our run's settings; stored below ``folder`` and sent nowhere, unless SWANLAB_MODE says so.

    Nothing but that folder's path is recorded of this machine, because the run may have trained on another.
    """

    def __init__(self, run_folder: Path, folder: Path | str) -> None:
        try:
            import swanlab
            from swankit.callback import SwanKitCallback
        except ImportError:
            raise InputError("SwanLab is not installed: pip install 'pangu-lab[swanlab]'") from None
        quiet = swanlab.Settings(
            metadata_collect=False, requirements_collect=False, hardware_monitor=False, log_proxy_type="none"
        )

        class Quiet(SwanKitCallback):
            """Sets the settings again: offline, SwanLab 0.6.4's ``init`` resets all but one to their defaults."""

            def __str__(self) -> str:
                return "quiet"

            def on_init(self, *arguments: Any, **more: Any) -> None:
                swanlab.merge_settings(quiet)

        Path(folder).mkdir(parents=True, exist_ok=True)
        self.run = swanlab.init(
            project="pangu-lab",
            experiment_name=run_folder.resolve().name,
            logdir=str(folder),
            mode=os.environ.get(MODE, "offline"),
            settings=quiet,
            callbacks=[Quiet()],
            config=load_yaml(run_folder / "config.yaml").to_dict(),
        )

    def add(self, event: dict[str, Any]) -> None:
        self.run.log(scalars(event), step=int(event["step"]))

    def take_back(self, step: int) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


def export(run_folder: Path | str, board: Board) -> None:
    """Replay a run as it stands, and close the board."""
    curves = read_curves(run_folder)
    for event in [*curves.steps, *curves.evals]:
        board.add(event)
    board.close()


def export_tensorboard(run_folder: Path | str, out: Path | str) -> Path:
    """Write a run's scalars as TensorBoard reads them, to ``out/NAME``; an earlier export there is replaced.

    Raises:
        InputError: there is no run, the extra ``tensorboard`` is not installed, or ``out/NAME`` holds something else.
    """
    target = _target(run_folder, out)
    with whole_folder(target, replace=True) as temporary:
        export(run_folder, TensorBoard(temporary))
    return target


def export_swanlab(run_folder: Path | str, out: Path | str) -> Path:
    """Replay a run into SwanLab, which stores it in a new folder below ``out``: ``swanlab sync`` uploads it.

    Raises:
        InputError: there is no run, or the extra ``swanlab`` is not installed.
    """
    export(run_folder, SwanLab(_run(run_folder), out))
    return Path(out)


def live_tensorboard(run_folder: Path | str, out: Path | str) -> TensorBoard:
    """A board at ``out/NAME``, empty; an earlier export there is replaced."""
    target = _target(run_folder, out)
    with whole_folder(target, replace=True):
        pass
    return TensorBoard(target)


def _run(folder: Path | str) -> Path:
    if not (Path(folder) / STATUS).exists():
        raise InputError(f"{folder}: no run here")
    return Path(folder)


def _target(run_folder: Path | str, out: Path | str) -> Path:
    target = Path(out) / _run(run_folder).resolve().name
    if target.is_dir() and any(".tfevents." not in path.name for path in target.iterdir()):
        raise InputError(f"{target} holds files that are not an export: choose another folder")
    Path(out).mkdir(parents=True, exist_ok=True)
    return target


# ---------------------------------------------------------------------------------------------------------- live


class Follower:
    """Passes a run's new events to a board."""

    def __init__(self, run_folder: Path, board: Board) -> None:
        self.reader, self.board, self.last = EventReader(run_folder), board, 0

    def replay(self) -> None:
        for event in self.reader.new():
            if event["kind"] in GROUPS:
                self.board.add(event)
                self.last = int(event["step"])
            elif event["kind"] == "start" and self.last > int(event.get("resumed_from", 0)):
                self.last = int(event.get("resumed_from", 0))
                self.board.take_back(self.last)


def follow(runs: Callable[[], Sequence[Path]], open_board: Callable[[Path], Board], ticks: Iterator[Any]) -> None:
    """Keep boards up to date, one per run; a run that begins meanwhile gets one too.

    Args:
        runs: returns the folders of the current runs.
        ticks: at each one the new events are replayed; the boards are closed after the last, or on an interrupt.
    """
    followers: dict[Path, Follower] = {}
    try:
        for _ in ticks:
            for folder in runs():
                if folder not in followers:
                    followers[folder] = Follower(folder, open_board(folder))
                followers[folder].replay()
    finally:
        for follower in followers.values():
            follower.board.close()
