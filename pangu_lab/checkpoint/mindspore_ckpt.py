"""MindSpore ``.ckpt`` files, read and written parameter by parameter.

A ``.ckpt`` is one protobuf message ``Checkpoint``: a list of ``Value {tag, tensor {dims, tensor_type, content}}``.
``mindspore.load_checkpoint`` holds the whole file in memory; the small reader here keeps only the offset of each
content, so a file of any size costs only as much memory as its largest parameter. MindSpore splits a parameter of more
than 512 MB into several values of the same tag, each with the dims of the whole; they are joined in their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pangu_lab.errors import InputError

_TYPES = {"Float32": "float32", "Float16": "float16", "Float64": "float64"}
_HEADER = 4096  # bytes that hold a value's tag, dims and type with room to spare
_WINDOW = 1 << 16  # read at once: small values share it, large ones are skipped
_PIECE = 512 << 20  # MindSpore's own limit for one value


@dataclass(frozen=True)
class Member:
    """A file inside an archive that is not unpacked: ``size`` bytes from ``offset``."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


class _Damaged(Exception):
    """What is wrong, without the file's name."""


@dataclass
class Entry:
    """Where a parameter is in the file: ``chunks`` are (offset, bytes) of its content, in order."""

    shape: tuple[int, ...]
    kind: str
    chunks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(length for _, length in self.chunks)


def _place(path: Path | str | Member) -> tuple[Path, int, int]:
    """The file to open, where the content begins in it, and its size."""
    if isinstance(path, Member):
        return path.archive, path.offset, path.size
    return Path(path), 0, Path(path).stat().st_size


def index_ckpt(path: Path | str | Member, wanted=lambda name: True) -> dict[str, Entry]:
    """Where each parameter of a ``.ckpt`` is; reads only the headers.

    Args:
        wanted: whether to keep a name; the others are skipped.

    Raises:
        InputError: no such file, or not a whole ``.ckpt``.
    """
    entries: dict[str, Entry] = {}
    try:
        file, origin, size = _place(path)
        if size == 0:
            raise _Damaged("is empty")
        with open(file, "rb", buffering=0) as handle:
            for name, shape, kind, start, length in _values(handle, size, origin):
                if wanted(name):
                    entry = entries.setdefault(name, Entry(shape, kind))
                    if (entry.shape, entry.kind) != (shape, kind):
                        raise _Damaged(f"holds '{name}' twice, with different shapes")
                    entry.chunks.append((start, length))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _Damaged as error:
        raise InputError(f"{path}: {error}; it is damaged or not a MindSpore checkpoint: download it again") from None
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    return entries


def _check_entry(path: Path | str | Member, name: str, entry: Entry) -> None:
    if entry.kind not in _TYPES:
        return  # entries that are not parameters may be of any type; ``read_entry`` refuses them
    count = 1 if entry.shape == (0,) else int(np.prod(entry.shape))  # MindSpore writes a scalar as dims [0]
    expected = count * np.dtype(_TYPES[entry.kind]).itemsize
    if entry.bytes == 2 * expected:
        raise InputError(f"{path}: holds '{name}' twice; it is damaged: download it again")
    if entry.bytes != expected:
        raise InputError(
            f"{path}: '{name}' has {entry.bytes} bytes, its shape {entry.shape} needs {expected}; "
            f"it is damaged: download it again"
        )


def read_entry(path: Path | str | Member, name: str, entry: Entry) -> np.ndarray:
    """One parameter's values.

    Raises:
        InputError: a type other than 16, 32 or 64 bit floating point, or the file has become shorter.
    """
    if entry.kind not in _TYPES:
        raise InputError(f"{path}: '{name}' is of type {entry.kind}; only {', '.join(_TYPES)} can be read")
    shape = () if entry.shape == (0,) else entry.shape
    result = np.empty(shape, _TYPES[entry.kind])
    view = memoryview(result.reshape(-1)).cast("B")
    file, origin, _ = _place(path)
    with open(file, "rb", buffering=0) as handle:
        filled = 0
        for start, length in entry.chunks:
            handle.seek(origin + start)
            while length:
                count = handle.readinto(view[filled : filled + length])
                if not count:
                    raise InputError(f"{path}: ends within '{name}'; download it again")
                filled, length = filled + count, length - count
    return result


# --------------------------------------------------------------------------------------------------- wire format


def varint(data: bytes, offset: int) -> tuple[int, int]:
    """The number at ``offset``, and the offset after it."""
    value = shift = 0
    while True:
        if offset >= len(data) or shift > 63:
            raise _Damaged("cannot be read as protobuf")
        byte = data[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset


def fields(data: bytes, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """(number, value, start, stop) of each field from ``offset``; for bytes the value is their length.

    The content of a field may lie beyond the end of ``data``.
    """
    end = len(data) if end is None else end
    while offset < end:
        key, offset = varint(data, offset)
        wire = key & 7
        if wire not in (0, 2):
            raise _Damaged("cannot be read as protobuf")
        value, after = varint(data, offset)
        start, offset = (offset, after) if wire == 0 else (after, after + value)
        yield key >> 3, value, start, offset
    if offset != end:
        raise _Damaged("ends in the middle of a value")


def _values(handle, size: int, origin: int = 0) -> Iterator[tuple[str, tuple[int, ...], str, int, int]]:
    """(name, shape, type, offset, bytes) of each value in the ``size`` bytes from ``origin``; offsets count from there."""
    offset, data, base = 0, b"", 0
    while offset < size:
        if offset + _HEADER > base + len(data) < size or offset >= base + len(data):
            handle.seek(origin + offset)
            data, base = handle.read(min(_WINDOW, size - offset)), offset
        if not data or data[offset - base] != 0x0A:
            raise _Damaged(f"byte {offset} begins no value")
        length, start = varint(data, offset - base + 1)
        if base + start + length > size:
            raise _Damaged(f"has {size} bytes and ends in the middle of a value")
        yield _value(data, start, start + length, base)
        offset = base + start + length


def _value(data: bytes, start: int, end: int, base: int) -> tuple[str, tuple[int, ...], str, int, int]:
    name, kind, shape, content = None, None, [], None
    for number, _, first, last in fields(data, start, end):
        if number == 1:
            name = _text(data[first:last])
        elif number == 2:
            for inner, value, inner_first, inner_last in fields(data, first, last):
                if inner == 1:
                    shape.append(value)
                elif inner == 2:
                    kind = _text(data[inner_first:inner_last])
                elif inner == 3:
                    content = (base + inner_first, value)
    if not name or kind is None or content is None:
        raise _Damaged("holds a value without name, type or content")
    return name, tuple(shape), kind, *content


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged("holds a name that is not text") from None


# ------------------------------------------------------------------------------------------------------- writing


def write_ckpt(path: Path | str, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a ``.ckpt`` that ``mindspore.load_checkpoint`` reads, from a stream of named fp16, fp32 or fp64 arrays."""
    with open(path, "wb") as handle:
        for name, array in tensors:
            _write_value(handle, name, np.asarray(array, order="C"))
        handle.flush()
        os.fsync(handle.fileno())


def _write_value(handle, name: str, array: np.ndarray) -> None:
    kind = next(kind for kind, dtype in _TYPES.items() if dtype == array.dtype.name)
    dims = b"".join(b"\x08" + _varint(size) for size in (array.shape or (0,)))
    flat = array.reshape(-1)
    step = max(1, _PIECE // array.itemsize)
    for first in range(0, max(1, flat.size), step):
        content = memoryview(flat[first : first + step]).cast("B")
        tensor = dims + b"\x12" + _varint(len(kind)) + kind.encode() + b"\x1a" + _varint(content.nbytes)
        tag = name.encode()
        value = b"\x0a" + _varint(len(tag)) + tag + b"\x12" + _varint(len(tensor) + content.nbytes) + tensor
        handle.write(b"\x0a" + _varint(len(value) + content.nbytes) + value)
        handle.write(content)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)
