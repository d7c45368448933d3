"""Atomic file writes: a file is either complete or not there.

Everything this project stores (data sets, checkpoints, bundles, status files) is written beside its destination under
a temporary name, flushed to the disk, and finally renamed into place. A reader therefore never sees half a
file, and a crash leaves the old version untouched.

What a killed writer left under a temporary name is removed by the next one of the same destination. Whether its writer
lives is told by a system lock on the temporary file or folder itself, which ends with the process that made it; where
the disk has no such locks nothing is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.locking import same_file, try_lock

RANDOM = "[a-z0-9_]{8}"  # the random part that tempfile appends to a name


def sha256_file(path: Path | str) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_path(path: Path | str) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step; the old content stays until the new one is on the disk."""
    path = Path(path)
    _clear(path, "new-")
    temporary, lock = _claim(lambda: _new_file(path))
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(lock)
    fsync_path(path.parent)


def _new_file(path: Path) -> str:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.new-")
    os.close(descriptor)
    return temporary


def _new_folder(path: Path, kind: str) -> str:
    return tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.{kind}")


def _claim(make: Callable[[], str]) -> tuple[Path, int]:
    """Make a temporary file or folder and lock it, so that nobody takes it for left over; its path, and the lock."""
    while True:
        path = make()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # removed before it was locked
            continue
        with contextlib.suppress(BlockingIOError):  # it is just being removed
            try_lock(descriptor)
            if same_file(descriptor, Path(path)):
                return Path(path), descriptor
        os.close(descriptor)


def _clear(path: Path, *kinds: str) -> None:
    """Remove what killed writers of ``path`` left beside it; an old folder is put back where there is none now."""
    name = re.compile(rf"\.{re.escape(path.name)}\.({'|'.join(kinds)}){RANDOM}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for left in sorted(os.listdir(path.parent)):
            if match := name.fullmatch(left):
                _remove_left(path, path.parent / left, match[1])


def _remove_left(path: Path, left: Path, kind: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if not (try_lock(descriptor) and same_file(descriptor, left)):
                return
            if kind == "old-":
                recover_folder(path, left)
            elif kind == "partial-":
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
        finally:
            os.close(descriptor)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON in one step."""
    write_text_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def check_destination(path: Path | str, replace: bool = False) -> None:
    """Check, before the work, that ``whole_folder`` will be able to make ``path``, and clear up after killed ones.

    Raises:
        InputError: it exists and ``replace`` is not given, is a link to nothing, or nothing can be written there.
    """
    path = Path(path)
    _clear(path, "partial-", "old-")
    if path.exists() and not replace:
        raise InputError(f"{path} exists already: choose another folder or delete it first")
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path} is a link to {os.readlink(path)}, which is not there: remove it or choose another folder"
        )
    place = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        os.rmdir(tempfile.mkdtemp(dir=place, prefix=f".{path.name}.partial-"))
    except OSError as error:
        raise InputError(f"{path} cannot be made ({place}: {error.strerror}): choose another place") from None


@contextlib.contextmanager
def whole_folder(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` if the block succeeds, and is deleted if it does not.

    Args:
        path: the folder to create.
        replace: allow ``path`` to exist; it is swapped out only after the new one is complete on the disk.

    Raises:
        InputError: as ``check_destination``.
    """
    path = Path(path)
    check_destination(path, replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _claim(lambda: _new_folder(path, "partial-"))
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        _fsync_tree(temporary)
        _move_into_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    fsync_path(path.parent)


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            fsync_path(os.path.join(root, name))
        fsync_path(root)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Between the two renames nothing has the name ``path``: ``recover_folder`` repairs a kill at that point."""
    if not path.exists():
        os.rename(temporary, path)
        return
    old, lock = _claim(lambda: _new_folder(path, "old-"))
    try:
        os.rename(path, old / "old")
        try:
            os.rename(temporary, path)
        except BaseException:
            recover_folder(path, old)
            raise
        fsync_path(path.parent)  # the old one goes only when the new one has its name on the disk
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(lock)


def recover_folder(path: Path, old: Path) -> bool:
    """Repair what a killed ``whole_folder`` left in ``old``: put back if its place is empty, else deleted.

    Only for a process that may write ``path``, and while no ``whole_folder`` is working on it.

    Returns:
        Whether the old folder was put back.
    """
    kept = old / "old"
    back = kept.is_dir() and not path.exists()
    if back:
        os.rename(kept, path)
        fsync_path(path.parent)
    shutil.rmtree(old, ignore_errors=True)
    return back
