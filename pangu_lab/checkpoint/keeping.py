"""Checkpoint retention of a run: good ones are counted, damaged ones are set aside, older ones are deleted.

Only the process that holds the run's lock may do this: it alone renames and deletes. It touches only names that are
exactly a checkpoint's, or those that a killed save leaves. A checkpoint counts towards the number kept only if every
byte matches the manifest; one that does not match is renamed ``step-….damaged`` and is never deleted.

Hashing every old checkpoint at every save would take minutes for large models. Each is therefore read once per
process, and remembered with the size and modification time of its files; when one of these differs, it is read
again. Checkpoints written by this process were read back for their manifest, and are not read again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_lab.checkpoint.folder import STEP, Checkpoint, Damaged, list_checkpoints, step_folder
from pangu_lab.errors import InputError
from pangu_lab.files import RANDOM, recover_folder

Tell = Callable[[str], Any]
_SET_ASIDE = re.compile(rf"{STEP}\.damaged(-[0-9]+)?")
_LEFT = re.compile(rf"\.{STEP}\.(partial-{RANDOM}|shards|deleted)")
_OLD = re.compile(rf"\.({STEP})\.old-{RANDOM}")


class Keeper:
    """Looks after ``runs/NAME/checkpoints`` while a run trains.

    Args:
        tell: called with a line for every checkpoint that was skipped, set aside or put back.
    """

    def __init__(self, folder: Path | str, tell: Tell):
        self.folder, self.tell = Path(folder), tell
        self._verified: dict[str, tuple] = {}  # name → the stats of its files when they were read and found good

    # ---------------------------------------------------------------- is it good?

    def written(self, name: str, folder: Path) -> None:
        """This process wrote a checkpoint and read it back for its manifest; ``folder`` is about to get this name."""
        self._verified[name] = _file_stats(folder)

    def why_not(self, path: Path) -> InputError | None:
        """None for a good checkpoint; else what is wrong with it."""
        with contextlib.suppress(OSError):
            stats = _file_stats(path)
            if self._verified.get(path.name) == stats:
                return None
            try:
                Checkpoint(path)
            except InputError as error:
                return error
            self._verified[path.name] = stats
            return None
        return InputError(f"{path}: cannot be read")

    # ---------------------------------------------------------------- the start

    def recover(self) -> None:
        """Clean up after saves that were killed: put back what one moved away, remove what it left half-written."""
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if match := _OLD.fullmatch(path.name):
                self._put_back(self.folder / match[1], path)
            elif _LEFT.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def _put_back(self, path: Path, old: Path) -> None:
        error = self.why_not(path) if path.exists() and (old / "old").is_dir() else None
        if isinstance(error, Damaged):
            self.set_aside(path, error)
        elif error is not None:
            return  # it is not known yet which of the two is the good one
        if recover_folder(path, old):
            self.tell(f"{path.name}: put back, the save that was to replace it had been killed")

    def newest(self, start_over: bool) -> Checkpoint | None:
        """The newest good checkpoint, after setting damaged newer ones aside; None when there is none.

        Args:
            start_over: return None, instead of raising, when every checkpoint is damaged.

        Raises:
            InputError: there are checkpoints, none of them is good, and ``start_over`` was not given.
        """
        bad: list[tuple[Path, InputError]] = []
        for path in reversed(list_checkpoints(self.folder)):
            error = self.why_not(path)
            if error is None:
                self._skip(bad, f"; going on from {path.name}")
                return Checkpoint(path, verify=False)
            bad.append((path, error))
        aside = sorted(path.name for path in self.folder.glob("step-*.damaged*") if _SET_ASIDE.fullmatch(path.name))
        if not bad and not aside:
            return None
        if not start_over or any(not isinstance(error, Damaged) for _, error in bad):
            raise InputError(self._refusal(bad, aside, start_over))
        self._skip(bad)
        return None

    def _refusal(self, bad: list[tuple[Path, InputError]], aside: list[str], start_over: bool) -> str:
        names = ", ".join([path.name for path, _ in bad] + aside)
        why = f" ({bad[0][1]})" if bad else ""
        if start_over:
            return f"{self.folder}: {names} cannot be used{why}: move away what this version cannot read and try again"
        return (
            f"{self.folder}: no good checkpoint is left, damaged are {names}{why}: put a good copy back, or begin "
            'at step 0 again with --start-over (resume="start-over"); the damaged ones stay'
        )

    def _skip(self, bad: list[tuple[Path, InputError]], then: str = "") -> None:
        for path, error in bad:
            if isinstance(error, Damaged):
                self.set_aside(path, error, then)
            else:
                self.tell(f"skipped checkpoint {path.name}: {error}{then}")

    # ---------------------------------------------------------------- during the run

    def clear_place(self, step: int) -> None:
        """Set aside a checkpoint of this step that is there already, unless it is good: then it will be replaced."""
        path = step_folder(self.folder, step)
        if path.exists() and (error := self.why_not(path)) is not None:
            self.set_aside(path, error)

    def set_aside(self, path: Path, error: InputError, then: str = "") -> Path:
        """Rename a checkpoint that cannot be used, so that it neither counts nor is lost."""
        self._verified.pop(path.name, None)
        target, number = path.with_name(f"{path.name}.damaged"), 1
        while target.exists() or target.is_symlink():
            number += 1
            target = path.with_name(f"{path.name}.damaged-{number}")
        path.rename(target)
        self.tell(f"checkpoint {path.name} is damaged ({error}); set aside as {target.name}{then}")
        return target

    def prune(self, keep: int, best: int | None = None) -> None:
        """Delete all but the newest ``keep`` good checkpoints; what is not good is never deleted.

        Args:
            best: the step of a checkpoint that stays besides.
        """
        good, kept = 0, None if best is None else step_folder(self.folder, best)
        for path in reversed(list_checkpoints(self.folder)):
            error = self.why_not(path)
            if isinstance(error, Damaged):
                self.set_aside(path, error)
            elif error is None:
                good += 1
                if good > keep and path != kept and not path.is_symlink():  # a link was made by a user
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint under another name: half deleted, it would look damaged."""
        self._verified.pop(path.name, None)
        deleted = path.with_name(f".{path.name}.deleted")
        shutil.rmtree(deleted, ignore_errors=True)
        path.rename(deleted)
        shutil.rmtree(deleted)


def _file_stats(folder: Path) -> tuple:
    """Names, sizes and modification times of a checkpoint's files; they change when a file is written to."""
    return tuple(
        sorted(
            (path.name, status.st_size, status.st_mtime_ns) for path in folder.iterdir() for status in (path.stat(),)
        )
    )
