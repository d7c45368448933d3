"""One interface to all supported weight files: names, shapes, and one parameter at a time.

A source gives the shape of every parameter it holds by published name and reads them one by one, so that no
conversion holds more than one parameter. There are four: this project's checkpoints, one ``.ckpt`` file, the
release in 512 shards, and the community's ``gpt_pangu`` files.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.checkpoint.best import named
from pangu_lab.checkpoint.layouts import LM_HEAD, NPY_FILES, gpt_name, is_gpt_buffer, published_name
from pangu_lab.checkpoint.mindspore_ckpt import Entry, Member, index_ckpt, read_entry
from pangu_lab.checkpoint.release_files import FILES, PART, SHARD, STRATEGY, ReleaseFiles, find_release, is_release
from pangu_lab.checkpoint.source import resolve_checkpoint
from pangu_lab.checkpoint.strategy import read_strategy
from pangu_lab.config import ACTIVATIONS, ModelConfig, RunConfig
from pangu_lab.errors import InputError, nearest
from pangu_lab.model.parameters import FINAL_NORM, WORD, parameter_specs
from pangu_lab.presets import load_yaml
from pangu_lab.progress import Progress, silent
from pangu_lab.reading import read_json


class Source:
    """A supported weight file or folder.

    Attributes:
        kind: a description, for messages.
        shapes: of the parameters, by published name.
        config, settings: where the files hold them.
        guesses: keys of ``settings`` that the preset of a published size overrides.
    """

    kind = ""
    config: RunConfig | None = None
    tokenizer: Path | None = None  # a folder that came with the weights

    def __init__(self, where: Path):
        self.where = where
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.settings: dict[str, Any] = {}
        self.guesses: set[str] = set()

    def read(self, name: str) -> np.ndarray:
        raise NotImplementedError

    def check(self, config: RunConfig) -> None:
        """Checks that need the model's sizes."""


class LabSource(Source):
    """A run or checkpoint of this project."""

    kind = "a checkpoint of this project"

    def __init__(self, where: Path):
        super().__init__(where)
        self.checkpoint = resolve_checkpoint(where)
        self.config = self.checkpoint.config
        held = [name for name in self.checkpoint.tensors if name in parameter_specs(self.config.model)]
        self.shapes = {name: self.checkpoint.shape(name) for name in held}

    def read(self, name: str) -> np.ndarray:
        return self.checkpoint.read(name)


class CkptSource(Source):
    """One MindSpore file with everything in it."""

    kind = "a single-file release"

    def __init__(self, where: Path):
        super().__init__(where)
        self.entries = _published_index(where)
        self.shapes = {name: entry.shape for name, (_, entry) in self.entries.items()}
        if (where.parent / "config.yaml").is_file():  # ``convert`` writes one beside it; one of another kind is ignored
            with contextlib.suppress(InputError):
                self.config = load_yaml(where.parent / "config.yaml")

    def read(self, name: str) -> np.ndarray:
        return read_entry(self.where, *self.entries[name])


def _published_index(path: Path | Member) -> dict[str, tuple[str, Entry]]:
    """Published name → (name in the file, where it is)."""
    result: dict[str, tuple[str, Entry]] = {}
    for name, entry in index_ckpt(path, lambda name: published_name(name) is not None).items():
        ours = published_name(name)
        if ours in result:
            raise InputError(f"{path}: holds '{ours}' under two names, '{result[ours][0]}' and '{name}'")
        result[ours] = (name, entry)
    return result


# ----------------------------------------------------------------------------------------------- the 512 shards


class ShardedSource(Source):
    """``filerted_*.ckpt`` of every rank (see ``release_files``), three ``.npy`` tables, and the strategy file that says how they were split."""

    kind = "a sharded release"

    def __init__(self, where: Path, strategy: Path | str | None = None, progress: Progress = silent):
        super().__init__(where)
        files = find_release(where)
        self.where = files.folder
        self.strategy = Path(strategy) if strategy else _the_strategy(files)
        self.layouts = read_strategy(self.strategy)
        ranks = next(iter(self.layouts.values())).ranks
        self.paths = _of_every_rank(files, ranks)
        self.tables, self.tokenizer = files.tables, files.tokenizer
        self.shards: list[dict[str, tuple[str, Entry]]] = []
        for rank, path in enumerate(self.paths):
            progress(rank, ranks, f"reading the headers of {path.name}")
            self.shards.append(_published_index(path))
            if rank == 0:
                self._check_strategy()
            self._check_shard(rank)
        self.shapes = self._whole_shapes()
        self.compared = False

    def _check_shard(self, rank: int) -> None:
        """Check that a shard holds what shard 0 holds, in the same shapes."""
        first, here = self.shards[0], self.shards[rank]
        wrong = sorted(first.keys() ^ here.keys())
        if wrong:
            side = "lacks" if wrong[0] in first else "holds, unlike the first shard,"
            raise InputError(f"{self.paths[rank]}: {side} '{wrong[0]}'; it belongs to another release or is damaged")
        for name, (_, entry) in here.items():
            if (entry.shape, entry.kind) != (first[name][1].shape, first[name][1].kind):
                raise InputError(
                    f"{self.paths[rank]}: '{name}' is {entry.kind} {entry.shape}, in "
                    f"{self.paths[0].name} it is {first[name][1].kind} {first[name][1].shape}"
                )

    def _check_strategy(self) -> None:
        held = set(self.shards[0]) | set(self.tables)
        wrong = sorted(self.layouts.keys() - held)
        side = "names parameters that no shard holds"
        if not wrong:
            wrong = sorted(held - self.layouts.keys())
            side = "does not tell how parameters of the shards were cut"
        if wrong:
            tables = [name for name in NPY_FILES if name in wrong]
            if tables and len(tables) == len(wrong):
                raise InputError(f"{self.where / NPY_FILES[tables[0]]} is missing: the shards do not hold this table")
            raise InputError(
                f"{self.strategy}: {side} ({len(wrong)}, such as '{wrong[0]}'"
                f"{nearest(wrong[0], held)}): it is the strategy of another model size"
            )

    def _whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the whole parameters, from those of the shards and the strategy."""
        shapes = {name: _npy(path).shape for name, path in self.tables.items()}
        for name, (_, entry) in self.shards[0].items():
            if name not in shapes:
                layout = self.layouts[name]
                if len(layout.axes) != len(entry.shape):
                    raise InputError(
                        f"{self.strategy}: '{name}' has {len(layout.axes)} axes there and "
                        f"{len(entry.shape)} in {self.paths[0].name}: it is of another model"
                    )
                shapes[name] = tuple(size * layout.split(axis) for axis, size in enumerate(entry.shape))
        self._undo_optimizer(shapes)
        return shapes

    def _undo_optimizer(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Multiply axis 0 by the number of optimizer shards, unless the slice was too small to be split."""
        hidden = shapes.get(f"{FINAL_NORM}.gamma", (0,))[0]
        for name, shape in shapes.items():
            layout = self.layouts[name]
            if name in self.tables or layout.optimizer_shards == 1 or not hidden:
                continue
            inner = ".output.mapping.bias" in name or ".output.projection.weight" in name
            full = 4 * hidden if inner else hidden
            if shape[0] != full:
                shapes[name] = (shape[0] * layout.optimizer_shards, *shape[1:])

    def read(self, name: str) -> np.ndarray:
        if name in self.tables:
            return np.array(_npy(self.tables[name]))
        layout, whole = self.layouts[name], self.shapes[name]
        stored = self.shards[0][name][1].shape
        result: np.ndarray | None = None
        offsets: set[tuple[int, ...]] = set()
        checksums: dict[int, int] = {}
        for rank in range(len(self.paths)):
            offset = layout.offset(rank, whole, stored)
            if offset in offsets:
                continue
            offsets.add(offset)
            piece = read_entry(self.paths[rank], *self.shards[rank][name])
            if piece.shape == whole:
                return piece
            result = np.empty(whole, piece.dtype) if result is None else result
            result[tuple(slice(start, start + size) for start, size in zip(offset, stored))] = piece
            self._compare(checksums, rank, piece)
        self.compared |= piece.ndim == 2
        if len(offsets) * int(np.prod(stored)) != int(np.prod(whole)):
            raise InputError(f"{self.where}: the shards do not cover all of '{name}' {whole}")
        return result

    def _compare(self, checksums: dict[int, int], rank: int, piece: np.ndarray) -> None:
        """Two ranks never hold the same slice of a matrix: the same bytes mean that a file was copied."""
        if piece.ndim != 2 or self.compared or not piece.any():
            return
        other = checksums.setdefault(zlib.crc32(piece) << 32 | zlib.adler32(piece), rank)
        if other != rank:
            raise InputError(
                f"{self.paths[rank]} holds the same weights as {self.paths[other].name}: one is a copy "
                f"of the other; download it again"
            )


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error}); download it again") from None


def _the_strategy(files: ReleaseFiles) -> Path:
    """The strategy file; of several, as the release's folder has them, the one that fits the shards."""
    if len(files.strategies) > 1 and files.shards:
        held = {*_published_index(files.shards[min(files.shards)]), *files.tables}
        fitting = [path for path in files.strategies if read_strategy(path).keys() == held]
        if len(fitting) == 1:
            return fitting[0]
    if len(files.strategies) != 1:
        names = ", ".join(path.name for path in files.strategies) or "none"
        raise InputError(
            f"{files.folder}: a sharded release needs its strategy file (*strategy*.ckpt) beside the shards or in "
            f"{STRATEGY}/ beside {FILES}/, found {names}; put one there or give --strategy FILE"
        )
    return files.strategies[0]


def _of_every_rank(files: ReleaseFiles, ranks: int) -> list[Path | Member]:
    """The file of each rank.

    Raises:
        InputError: shards are missing or surplus; the message names them.
    """
    missing = [rank for rank in range(ranks) if rank not in files.shards]
    surplus = [shard.name for rank, shard in files.shards.items() if rank >= ranks]
    if missing:
        names = ", ".join(f"filerted_{rank}.ckpt" for rank in missing[:8]) + (" …" if len(missing) > 8 else "")
        raise InputError(
            f"{files.folder}: {len(missing)} of {ranks} shards missing: {names}; they are in the release's four "
            "parts (*_part0 to *_part3), which are read unpacked or as they are"
        )
    if surplus:
        raise InputError(f"{files.folder}: {', '.join(surplus[:8])}: the strategy knows shards 0 to {ranks - 1} only")
    return [files.shards[rank] for rank in range(ranks)]


# ------------------------------------------------------------------------------------------ the PyTorch layout

_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "quick_gelu": "fast_gelu",
    "gelu": "gelu_erf",
}  # "gelu" alone is the exact one in that library
OWN_ACTIVATION = "pangu_lab_hidden_act"  # written beside the library's key in files exported here
_CONFIG_KEYS = {"num_heads": "num_heads", "n_head": "num_heads", "num_attention_heads": "num_heads"}


class GptSource(Source):
    """``gpt_pangu`` weights: one or more safetensors, or PyTorch ``.bin`` files read as weights only."""

    kind = "the community layout gpt_pangu"

    def __init__(self, where: Path, files: list[Path]):
        super().__init__(where)
        self.files: dict[str, Any] = {}
        self.raw: dict[str, tuple[int, ...]] = {}
        for path in files:
            for name, shape in self._open(path):
                if is_gpt_buffer(name):
                    continue
                if name in self.files:
                    raise InputError(f"{path}: '{name}' is also in {self.files[name].name}; keep one of the files")
                self.files[name], self.raw[name] = path, shape
        folder = where if where.is_dir() else where.parent
        if (folder / "config.json").is_file():
            self._settings(read_json(folder / "config.json", "the model's description"))
        self._names()

    def _open(self, path: Path) -> list[tuple[str, tuple[int, ...]]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as handle:
                return [(name, tuple(handle.get_slice(name).get_shape())) for name in handle.keys()]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from None

    def _settings(self, values: Any) -> None:
        """Heads and activation. "gelu" is only a guess: many files have it for weights trained with the tanh form."""
        if not isinstance(values, dict):
            raise InputError(f"{self.where}: config.json is not an object: take a fresh copy of it, or leave it out")
        for key, ours in _CONFIG_KEYS.items():
            if type(values.get(key)) is int:
                self.settings[f"model.{ours}"] = values[key]
        named = values.get("activation_function")
        if values.get(OWN_ACTIVATION) in ACTIVATIONS:
            self.settings["model.hidden_act"] = values[OWN_ACTIVATION]
        elif isinstance(named, str) and named in _ACTIVATIONS:
            self.settings["model.hidden_act"] = _ACTIVATIONS[named]
            self.guesses = {"model.hidden_act"} if named == "gelu" else set()

    def _names(self) -> None:
        """Map the port's names to published names; a name that has none is kept and reported later."""
        matches = (re.match(r"transformer\.h\.(\d+)\.", name) for name in self.raw)
        numbers = [int(match[1]) for match in matches if match]
        layers = max(numbers, default=-1) + 1
        self.names: dict[str, tuple[str, bool]] = {}
        known = {gpt_name(name, layers)[0]: name for name in _all_names(layers)} if layers >= 2 else {}
        for theirs, shape in self.raw.items():
            if theirs == LM_HEAD:
                continue
            ours = known.get(theirs, theirs)
            transposed = ours != theirs and gpt_name(ours, layers)[1]
            self.names[ours] = (theirs, transposed)
            self.shapes[ours] = shape[::-1] if transposed else shape

    def read(self, name: str) -> np.ndarray:
        theirs, transposed = self.names[name]
        value = self._get(theirs)
        return np.ascontiguousarray(value.T) if transposed else value

    def _get(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """A tensor as stored, or at most ``count`` rows of it."""
        from safetensors import safe_open

        last = self.raw[name][0] if count is None else min(first + count, self.raw[name][0])
        try:
            with safe_open(self.files[name], "np") as handle:
                return handle.get_slice(name)[first:last]
        except (TypeError, AttributeError):  # numpy has no bfloat16
            raise InputError(
                f"{self.files[name]}: '{name}' is of a type that numpy lacks (bfloat16?); convert the "
                f"file to float16 or float32 first"
            ) from None

    def check(self, config: RunConfig) -> None:
        """The output head, if the file has one, must equal the word embedding: here the two are one parameter."""
        if LM_HEAD not in self.raw:
            return
        theirs = self.names[WORD][0]
        for first in range(0, self.raw[LM_HEAD][0], 4096):
            if self.raw[LM_HEAD] != self.raw[theirs] or not np.array_equal(
                self._get(LM_HEAD, first, 4096), self._get(theirs, first, 4096)
            ):
                raise InputError(
                    f"{self.files[LM_HEAD]}: {LM_HEAD} differs from {theirs}; this model's head is the "
                    f"word embedding itself, so these weights cannot be kept"
                )


class BinSource(GptSource):
    """The same from PyTorch's own files; torch maps them into memory and unpickles nothing but tensors."""

    def __init__(self, where: Path, files: list[Path]):
        try:
            import torch
        except ImportError:
            raise InputError(
                f"{files[0]}: reading .bin files needs PyTorch (`pip install torch`), which reads them "
                f"as weights only; or get the safetensors of the same weights"
            ) from None
        self.torch = torch
        self.states: dict[Path, Any] = {}
        super().__init__(where, files)

    def _open(self, path: Path) -> list[tuple[str, tuple[int, ...]]]:
        try:
            state = self.torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds; all mean that the file is not just weights
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{path}: not a PyTorch file of weights alone ({first})") from None
        self.states[path] = state
        return [(name, tuple(value.shape)) for name, value in state.items() if hasattr(value, "shape")]

    def _get(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        value = self.states[self.files[name]][name][first : None if count is None else first + count]
        return (value.float() if value.dtype == self.torch.bfloat16 else value).numpy().copy()


def _all_names(layers: int) -> list[str]:
    return list(parameter_specs(ModelConfig(hidden_size=1, num_heads=1, vocab_size=2, num_layers=layers)))


# --------------------------------------------------------------------------------------------------- recognition


def open_source(where: Path | str, strategy: Path | str | None = None, progress: Progress = silent) -> Source:
    """Recognise what lies at ``where`` and open it.

    Raises:
        InputError: nothing known there, more than one thing, or something damaged.
    """
    where = named(where)
    if where.is_file():
        return _open_file(where)
    if not where.is_dir():
        raise InputError(f"{where}: no such file or folder")
    if (where / "manifest.json").exists() or (where / "checkpoints").is_dir():
        return LabSource(where)
    if is_release(where):
        return ShardedSource(where, strategy, progress)
    for pattern, open_files in (("*.safetensors", GptSource), ("*.bin", BinSource)):
        files = sorted(where.glob(pattern))
        if files:
            return open_files(where, files)
    files = [path for path in sorted(where.glob("*.ckpt")) if "strategy" not in path.name]
    if len(files) == 1:
        return CkptSource(files[0])
    if files:
        raise InputError(
            f"{where}: holds {len(files)} .ckpt files ({files[0].name}, {files[1].name} …); name one of them"
        )
    raise InputError(
        f"{where}: no weights known here; expected: filerted_*.ckpt (or their tar parts, or the tree with "
        f"{FILES}/) with a strategy file, one .ckpt, *.safetensors or *.bin of gpt_pangu, or a run or checkpoint of this project"
    )


def _open_file(path: Path) -> Source:
    if SHARD.fullmatch(path.name) or PART.fullmatch(path.name):
        raise InputError(f"{path}: is one shard of many; give the folder that holds all of them")
    if path.suffix == ".ckpt":
        return CkptSource(path)
    if path.suffix in (".safetensors", ".bin"):
        return (GptSource if path.suffix == ".safetensors" else BinSource)(path, [path])
    raise InputError(f"{path}: not a kind of file that holds weights (.ckpt, .safetensors, .bin)")
