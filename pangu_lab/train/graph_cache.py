"""Reuses the compiled graphs of an earlier start: a resumed run, or a similar one, waits a third as long.

MindSpore can cache its front end's output for a cell, but its own check is weak: the n-th graph that a process
compiles with the cache on is taken from the n-th file of the folder, *whatever cell it is* (a cell that adds 100 gave
the result of one that doubles, MindSpore 2.10). So the cache is on only while a graph known by name compiles. The
folder is named after everything that can change a graph (settings, code, versions) and after the graph compiled first
(a new run evaluates before it trains, a resumed one does not). A record beside the files has the name of the n-th graph
and the sha256 of each file. A graph that is not the next one in the record compiles without the cache; if the record
does not match the files, the folder is emptied. MindSpore keeps the first folder for the life of a process, so only the
first training of a process has a cache.

Measured with the debug preset: 7.0 s for a whole run of 20 steps with an empty cache, 2.2 s with a full one, every
loss equal to the last bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms

from pangu_lab.cache import cache_folder
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.files import sha256_file, write_json_atomic
from pangu_lab.ops.backend import training_backend
from pangu_lab.reading import read_json
from pangu_lab.schema import Schema, Sha256

try:
    import fcntl
except ImportError:  # Windows: no exclusive lock on a folder, so nothing is cached
    fcntl = None

log = logging.getLogger(__name__)
KEPT = 20  # sets of graphs in the cache folder; the least recently used are removed. One takes about a megabyte
RECORD = "record.json"
_FILES = "rank_*/graph_cache/compile_cache_{}.mindir"  # MindSpore's names
_OUTSIDE = {
    "data": {"path", "eval_path", "column", "shuffle"},
    "train": {
        "steps",
        "max_minutes",
        "minutes",
        "init_from",
        "log_every",
        "eval_every",
        "eval_batches",
        "checkpoint_every",
        "keep_checkpoints",
        "patience",
        "sample_prompts",
        "sample_tokens",
    },
}  # settings that no graph depends on
_CODE = ("config.py", "model", "ops", "parallel", "train")
_state = {"used": False}  # MindSpore keeps the first folder for the life of the process


class _Graph(Schema):
    name: str
    sha256: Sha256


class _Record(Schema):
    graphs: list[_Graph]


class GraphCache:
    """The graphs of one training; a context manager that holds their folder exclusively.

    Args:
        config: complete settings of the run. Graphs are cached only for a single process and without recomputation by
            layers: the others compile graphs in more parts.
    """

    def __init__(self, config: RunConfig):
        self.folder = cache_folder() / "graphs" / graph_key(config)
        alone = config.parallel.world_size == 1 and not config.parallel.recompute
        script = Path(sys.argv[0]).is_file()  # MindSpore reads it when the cache is on: `python -c` would fail
        self.wanted = alone and script and not _state["used"] and fcntl is not None
        self.names: list[str] = []  # compiled with the cache on by this process, in order
        self.kept: list[dict[str, str]] = []
        self.taken = 0  # graphs found in the cache
        self.lock: int | None = None

    def __enter__(self) -> GraphCache:
        return self

    def __exit__(self, *_: Any) -> None:
        self._unlock()

    def _open(self, first: str) -> None:
        """Take the folder of the graphs that begin with ``first``, unless another process has it."""
        self.wanted = False
        _state["used"] = True
        self.folder = self.folder / first
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.kept = self._verified()
            _drop_old(self.folder.parent)
        except OSError as error:
            log.info("compiled graphs are not cached: %s", error)
            self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _verified(self) -> list[dict[str, str]]:
        """The graphs in the record, if the files match it; else empties the folder and returns none."""
        os.utime(self.folder.parent)
        with contextlib.suppress(OSError, InputError):
            entries = read_json(self.folder / RECORD, "the record of compiled graphs", _Record)["graphs"]
            intact = all(sha256_file(self._file(number)) == entry["sha256"] for number, entry in enumerate(entries))
            if intact and len(list(self.folder.glob(_FILES.format("*")))) == len(entries):
                return entries
        (self.folder / RECORD).unlink(missing_ok=True)
        for leftover in self.folder.glob("rank_*"):
            shutil.rmtree(leftover)
        return []

    def _file(self, number: int) -> Path:
        return next(self.folder.glob(_FILES.format(number)), self.folder / "none")

    @contextlib.contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """Wraps the first call of the graph called ``name``: loads it from the cache, or stores it there."""
        if self.wanted:
            self._open(name)
        number = len(self.names)
        known = number < len(self.kept)
        if self.lock is None or name in self.names or (known and self.kept[number]["name"] != name):
            yield
            return
        ms.set_context(enable_compile_cache=True, compile_cache_path=str(self.folder))
        try:
            yield
        finally:
            ms.set_context(enable_compile_cache=False)
        self.names.append(name)
        self.taken += known
        self._keep(name, number)

    def _keep(self, name: str, number: int) -> None:
        """Record that the ``number``-th file is the graph called ``name``; give up if there are others too."""
        files = len(list(self.folder.glob(_FILES.format("*"))))
        if files != max(len(self.kept), number + 1):
            log.info("compiled graphs are not cached: %d files for %s", files, self.names)
            (self.folder / RECORD).unlink(missing_ok=True)  # so that the next start empties the folder
            self._unlock()
            return
        self.kept[number : number + 1] = [{"name": name, "sha256": sha256_file(self._file(number))}]
        write_json_atomic(self.folder / RECORD, {"graphs": self.kept})


def graph_key(config: RunConfig) -> str:
    """A hash of everything that can change a graph: settings, this project's code, versions and device."""
    sections = config.to_dict()
    settings = {
        name: {key: value for key, value in sections[name].items() if key not in _OUTSIDE.get(name, ())}
        for name in ("model", "data", "train", "parallel")
    }
    digest = hashlib.sha256(
        json.dumps(
            [
                settings,
                ms.__version__,
                platform.python_version(),
                platform.machine(),
                ms.get_context("device_target"),
                training_backend(config.model).path,
            ],
            sort_keys=True,
            default=str,
        ).encode()
    )
    package = Path(__file__).resolve().parent.parent
    for part in _CODE:
        for path in sorted([package / part, *(package / part).rglob("*.py")]):
            if path.is_file():
                digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _drop_old(current: Path) -> None:
    """Keep at most ``KEPT`` sets of graphs."""
    sets = sorted((path for path in current.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in sets[:-KEPT]:
        if old != current:
            shutil.rmtree(old, ignore_errors=True)
