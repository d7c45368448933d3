"""Atomic file writes: a file is either complete or not there.

Everything this project stores (data sets, checkpoints, bundles, status files) is written beside its destination under
a temporary name, flushed to the disk, and finally renamed into place. A reader therefore never sees half a
file, and a crash leaves the old version untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError

RANDOM = "[a-z0-9_]{8}"  # the random part that tempfile appends to a name


def cache_folder() -> Path:
    """The folder for reproducible files: ``$PANGU_LAB_CACHE``, or pangu-lab in the user's cache folder."""
    own = os.environ.get("PANGU_LAB_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pangu-lab"


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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_path(path.parent)


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON in one step."""
    write_text_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` if the block succeeds, and is deleted if it does not.

    Args:
        path: the folder to create.
        replace: allow ``path`` to exist; it is swapped out only after the new one is complete on the disk.

    Raises:
        InputError: ``path`` exists and ``replace`` is not given.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise InputError(f"{path} exists already: choose another folder or delete it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        _fsync_tree(temporary)
        _move_into_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
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
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
    os.rename(path, old / "old")
    try:
        os.rename(temporary, path)
    except BaseException:
        recover_folder(path, old)
        raise
    fsync_path(path.parent)  # the old one goes only when the new one has its name on the disk
    shutil.rmtree(old, ignore_errors=True)


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
