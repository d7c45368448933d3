"""MindIR files whose weights are stored once, beside them, for any number of graphs.

``ms.export`` writes every graph with its own copy of the parameters: inside the file up to 1 GiB, beyond that in
data files beside it. Here the graphs of a bundle are converted to the second form with shared data files: each
parameter is stored once, and everything that is zero (the key-value cache of every layer) in one common block.

A data file begins with 64 bytes, the first of which gives the byte order; blocks are aligned to 64 bytes.
Locations are relative to the graph's folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

WEIGHTS = "weights"
OPEN_FILES = "/proc/self/fd"  # on Linux: an open folder by its number
HEADER = bytes([sys.byteorder == "little"]) + bytes(63)
LARGEST_FILE = 1 << 30
BLOCK = 1 << 22


def export_graph(network: Any, inputs: Sequence[Any], folder: Path, name: str, weights: SharedWeights) -> str:
    """Write ``folder/NAME.mindir`` with its parameters in ``weights``; returns the file's name."""
    import mindspore as ms
    from mindspore.train.mind_ir_pb2 import ModelProto

    with _plain(folder) as plain:
        ms.export(network, *inputs, file_name=f"{plain}/{name}", file_format="MINDIR")
    together, split = folder / f"{name}.mindir", folder / f"{name}_graph.mindir"
    model = ModelProto()
    model.ParseFromString((together if together.exists() else split).read_bytes())
    for parameter in model.graph.parameter:
        weights.move(parameter, folder)
    for leftover in (together, split):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / f"{name}_variables", ignore_errors=True)
    together.write_bytes(model.SerializeToString())
    return together.name


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[str]:
    """A path of the same folder that ``ms.export`` takes: it refuses all but ASCII letters, digits and ``_.:/@-``."""
    if re.fullmatch(r"[0-9a-zA-Z@_.:/\\-]+", str(folder)) or not os.path.isdir(OPEN_FILES):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"{OPEN_FILES}/{descriptor}"
    finally:
        os.close(descriptor)


class SharedWeights:
    """The data files of a bundle's graphs, ``weights/data_0`` and so on, while they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, tuple[str, int, int]] = {}
        self._zeros: tuple[str, int, int] | None = None
        self._file: BinaryIO | None = None
        self._number = -1
        (folder / WEIGHTS).mkdir()

    def move(self, parameter: Any, folder: Path) -> None:
        """Take a parameter's data out of a graph of ``folder`` (or leave it, if it is here already)."""
        name = parameter.name.partition(":")[2] or parameter.name
        if name not in self._places:
            self._places[name] = self._keep(parameter, folder)
        location, offset, length = self._places[name]
        parameter.ClearField("raw_data")
        parameter.ClearField("external_data")
        parameter.external_data.location, parameter.external_data.offset = location, offset
        parameter.external_data.length = length

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _keep(self, parameter: Any, folder: Path) -> tuple[str, int, int]:
        length = parameter.external_data.length or len(parameter.raw_data)
        zeros = not any(any(block) for block in _data(parameter, folder))
        if zeros and self._zeros and length <= self._zeros[2]:
            return (*self._zeros[:2], length)
        place = (*self._write(_data(parameter, folder), length), length)
        if zeros:
            self._zeros = place
        return place

    def _write(self, blocks: Iterator[bytes], length: int) -> tuple[str, int]:
        if self._file is None or self._file.tell() + length > LARGEST_FILE and self._file.tell() > len(HEADER):
            self.close()
            self._number += 1
            self._file = open(self._folder / WEIGHTS / f"data_{self._number}", "wb")
            self._file.write(HEADER)
        offset = self._file.tell()
        for block in blocks:
            self._file.write(block)
        self._file.write(bytes(-length % 64))
        return f"{WEIGHTS}/data_{self._number}", offset


def without_weights(path: Path, folder: Path) -> dict[str, tuple[Path, int, int]]:
    """Write the graph ``path`` into ``folder`` with zeros for weights; returns where each parameter's data really is.

    MindSpore's loader keeps every data file whole until the last parameter is made, so loading a graph with weights
    takes twice their size. Of one file of zeros, which all parameters share here, it keeps no more than the largest.
    """
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    found = {}
    for parameter in model.graph.parameter:
        data = parameter.external_data
        found[parameter.name.partition(":")[2] or parameter.name] = (
            path.parent / data.location,
            data.offset,
            data.length,
        )
        data.location, data.offset = "zeros", len(HEADER)
    with open(folder / "zeros", "wb") as file:
        file.write(HEADER)
        file.truncate(len(HEADER) + max(length for _, _, length in found.values()))
    (folder / path.name).write_bytes(model.SerializeToString())
    return found


def _data(parameter: Any, folder: Path) -> Iterator[bytes]:
    """A parameter's bytes, from inside the graph or from the data file that it names."""
    if not parameter.external_data.length:
        for start in range(0, len(parameter.raw_data), BLOCK):
            yield parameter.raw_data[start : start + BLOCK]
        return
    with open(os.path.join(folder, parameter.external_data.location), "rb") as file:
        file.seek(parameter.external_data.offset)
        left = parameter.external_data.length
        while left and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            yield block
