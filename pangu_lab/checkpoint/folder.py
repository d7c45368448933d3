"""One checkpoint folder: ``shard-00000.safetensors`` …, ``state.json``, ``config.yaml`` and ``manifest.json``.

A shard holds one rank's tensors, each with its region: the shape of the whole tensor and the offset of this slice in
it. A reader asks for any region of any tensor and gets it assembled from the shards that cover it, so a checkpoint
saved under one layout loads under every other. The manifest, written last, has the size and sha256 of every file; the
complete folder is then renamed into place. A file that does not match its manifest is never loaded.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.files import sha256_file, whole_folder, write_json_atomic
from pangu_lab.presets import load_yaml
from pangu_lab.ranges import shown
from pangu_lab.reading import checked, parse_json, read_json
from pangu_lab.schema import Count, FileName, Positive, Schema, Sha256

log = logging.getLogger(__name__)
FORMAT = 1
DAMAGED = "it is damaged"
STEP = r"step-(?:[0-9]{8}|[1-9][0-9]{8,})"  # nine digits or more from step 100,000,000 on
_NAME = re.compile(STEP)


class _File(Schema):
    size: Count
    sha256: Sha256


class _Manifest(Schema):
    format: Count
    files: dict[FileName, _File]


class _ChosenSchedule(Schema):
    """What ``train.minutes`` made of the schedule."""

    steps: Positive
    decay_steps: Positive | None = None
    cooldown: Annotated[float, Field(ge=0, le=1)]


class _State(Schema):
    """``state.json``: how far the training has come; a converted release has only the first three."""

    step: Count = 0
    records: Count = 0
    tokens: Count = 0
    seed: int = 0
    loss_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    loss_scale_good_steps: Count = 0
    dataset: str = ""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # that the run has taken
    schedule: _ChosenSchedule | None = None


class Damaged(InputError):
    """A damaged checkpoint: a file is missing, or does not match the manifest."""


def step_folder(folder: Path, step: int) -> Path:
    return Path(folder) / f"step-{step:08d}"


def write_shard(
    folder: Path,
    rank: int,
    tensors: Mapping[str, np.ndarray],
    regions: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
) -> None:
    """Write one rank's tensors into ``folder``.

    Args:
        regions: for tensors that are slices, the whole shape and the offset of the slice in it.
    """
    regions = regions or {}
    layout = {name: regions.get(name, (value.shape, (0,) * value.ndim)) for name, value in tensors.items()}
    _write_safetensors(folder / f"shard-{rank:05d}.safetensors", tensors, {"places": json.dumps(layout)})


_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file one tensor at a time.

    The library's own writer first copies all tensors into memory, which they may exceed (see ``train/offload.py``).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        header[name] = {"dtype": _TYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def write_manifest(folder: Path, state: Mapping[str, Any], config: RunConfig) -> None:
    """Add ``state.json``, ``config.yaml`` and, last, the manifest over everything in ``folder``."""
    write_json_atomic(folder / "state.json", state)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    write_json_atomic(folder / "manifest.json", {"format": FORMAT, "files": files})


def save_checkpoint(
    folder: Path | str,
    tensors: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    config: RunConfig,
    replace: bool = True,
) -> Path:
    """Write a single-process checkpoint to ``folder`` in one step; an older one of that name is kept until then."""
    with whole_folder(folder, replace=replace) as temporary:
        write_shard(temporary, 0, tensors)
        write_manifest(temporary, state, config)
    return Path(folder)


class Checkpoint:
    """A checkpoint folder opened for reading.

    Args:
        folder: the folder with ``manifest.json``.
        verify: compare every file with its sha256 first (sizes are always compared).

    Raises:
        InputError: a file is missing, has another size or content, or the folder is no checkpoint.
    """

    def __init__(self, folder: Path | str, verify: bool = True):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such checkpoint folder")
        try:
            self._open(verify)
        except OSError as error:
            raise InputError(f"{error.filename or self.folder}: cannot be read ({error.strerror})") from None

    def _open(self, verify: bool) -> None:
        files = self._files()
        for name, entry in files.items():
            self._check_file(name, entry, verify)
        self.state: dict[str, Any] = self._json("state.json", "the checkpoint's state", _State)
        self.tensors = self._index(files)

    def _json(self, name: str, what: str, schema: type[Schema] | None = None) -> Any:
        try:
            return read_json(self.folder / name, what, schema, DAMAGED)
        except InputError as error:
            raise Damaged(str(error)) from None

    def _files(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries, each with a size and a sha256."""
        path = self.folder / "manifest.json"
        manifest = self._json("manifest.json", "the checkpoint's manifest")
        known = manifest.get("format") if isinstance(manifest, dict) else None
        if type(known) is int and known != FORMAT:
            raise InputError(f"{self.folder}: checkpoint format {shown(known)} is not known to this version")
        try:
            files = checked(manifest, _Manifest, str(path), DAMAGED)["files"]
        except InputError as error:
            raise Damaged(str(error)) from None
        if not {"state.json", "config.yaml"} <= set(files):
            raise Damaged(f"{path}: does not name the files of a checkpoint: {DAMAGED}")
        return files

    def _check_file(self, name: str, entry: Mapping[str, Any], verify: bool) -> None:
        path = self.folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing: the checkpoint is not whole")
        if path.stat().st_size != entry["size"]:
            raise Damaged(f"{path} has {path.stat().st_size} bytes instead of {entry['size']}: it is damaged")
        if verify and sha256_file(path) != entry["sha256"]:
            raise Damaged(f"{path} does not match its sha256: it is damaged")

    def _index(self, files: Mapping[str, Any]) -> dict[str, list[tuple[str, tuple, tuple]]]:
        """name → [(shard file, whole shape, offset)]."""
        index: dict[str, list[tuple[str, tuple, tuple]]] = {}
        for shard in (name for name in files if name.endswith(".safetensors")):
            for name, (shape, offset) in self._regions(shard).items():
                index.setdefault(name, []).append((shard, tuple(shape), tuple(offset)))
                if index[name][0][1] != tuple(shape):
                    raise Damaged(
                        f"{self.folder / shard}: {name} is part of {shape} here and of "
                        f"{list(index[name][0][1])} in {index[name][0][0]}: {DAMAGED}"
                    )
        return index

    def _regions(self, shard: str) -> dict[str, tuple[list[int], list[int]]]:
        from safetensors import SafetensorError, safe_open

        path = self.folder / shard
        try:
            with safe_open(path, "np") as handle:
                text = (handle.metadata() or {}).get("places", "")
                regions = parse_json(text, "the regions of its tensors", fix=DAMAGED)
                shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys()}
        except (SafetensorError, InputError) as error:
            raise Damaged(f"{path}: not a shard of a checkpoint ({error}): {DAMAGED}") from None
        if not isinstance(regions, dict) or regions.keys() != shapes.keys():
            raise Damaged(f"{path}: not a shard of a checkpoint (it does not tell where its tensors belong): {DAMAGED}")
        for name, region in regions.items():
            if not _is_region(region, shapes[name]):
                raise Damaged(f"{path}: the region of '{name}' does not fit its shape {shapes[name]}: {DAMAGED}")
        return regions

    @property
    def config(self) -> RunConfig:
        """The configuration it was saved with."""
        return load_yaml(self.folder / "config.yaml", RunConfig())

    @property
    def step(self) -> int:
        return int(self.state.get("step", 0))

    def shape(self, name: str) -> tuple[int, ...]:
        """Whole shape of a tensor."""
        if name not in self.tensors:
            raise InputError(f"{self.folder}: holds no tensor '{name}'")
        return self.tensors[name][0][1]

    def dtype(self, name: str) -> str:
        """The number type in which a tensor is stored, as numpy calls it."""
        from safetensors import safe_open

        self.shape(name)
        with safe_open(self.folder / self.tensors[name][0][0], "np") as handle:
            stored = handle.get_slice(name).get_dtype()
        return next((ours for ours, theirs in _TYPES.items() if theirs == stored), stored)

    def read(
        self, name: str, offset: tuple[int, ...] | None = None, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """A tensor, or the region of it that starts at ``offset`` with ``shape``, from whichever shards cover it."""
        whole = self.shape(name)
        offset = offset if offset is not None else (0,) * len(whole)
        shape = shape if shape is not None else whole
        result: np.ndarray | None = None
        covered = 0
        for shard, _, start in self.tensors[name]:
            piece, target = self._overlap(shard, name, start, offset, shape)
            if piece is None:
                continue
            if piece.shape == tuple(shape):
                return piece
            result = np.empty(shape, piece.dtype) if result is None else result
            result[target] = piece
            covered += piece.size
        if result is None or covered < result.size:
            raise InputError(f"{self.folder}: the shards do not cover all of '{name}'")
        return result

    def _overlap(self, shard, name, start, offset, shape):
        """The part of a shard's slice inside the wanted region, and where it goes there; (None, None) if there is none."""
        from safetensors import safe_open

        with safe_open(self.folder / shard, "np") as handle:
            stored = handle.get_slice(name)
            size = stored.get_shape()
            low = [max(a, b) for a, b in zip(start, offset)]
            high = [min(a + m, b + n) for a, m, b, n in zip(start, size, offset, shape)]
            if any(a >= b for a, b in zip(low, high)):
                return None, None
            inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))
            piece = stored[inside] if inside else handle.get_tensor(name).reshape(())
        return piece, tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset))


def _is_region(region: Any, shape: list[int]) -> bool:
    """Whether ``region`` is a whole shape and an offset, and a slice of ``shape`` at that offset lies inside."""
    numbers = (
        isinstance(region, list)
        and len(region) == 2
        and all(
            isinstance(part, list) and len(part) == len(shape) and all(type(number) is int for number in part)
            for part in region
        )
    )
    return numbers and all(start >= 0 and start + length <= whole for whole, start, length in zip(*region, shape))


def list_checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoint folders below ``folder``, oldest first; not verified. Other names are ignored."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()),
        key=lambda path: int(path.name.partition("-")[2]),
    )


def latest_checkpoint(folder: Path | str, warn=log.warning) -> Checkpoint | None:
    """The newest intact checkpoint; damaged ones are reported to ``warn`` and skipped. None when there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return Checkpoint(path)
        except InputError as error:
            warn(f"skipped checkpoint {path.name}: {error}")
    return None
