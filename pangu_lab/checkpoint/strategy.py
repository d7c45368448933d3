"""The strategy file of a sharded release: which slice of each parameter a rank holds.

It is a protobuf ``ParallelStrategyMap``. Its ``parallel_layout_item`` entries have the plain parameter names (the
strategy entries beside them carry an operator prefix such as ``MatMul_`` and are not needed): the device matrix, for
each axis the device dimension it is split along (counted from the last; -1: not split), and the step and number of
the optimizer shards. For PanGu-α the matrix is [64, 8]: rank % 8 is the tensor-parallel slice, rank // 8 the
optimizer shard, which cuts axis 0 of that slice further. Joining in rank order is therefore wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pangu_lab.checkpoint.mindspore_ckpt import _Damaged, _text, fields, varint
from pangu_lab.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How one parameter is split; ``optimizer_step`` 0 means no optimizer shards."""

    devices: tuple[int, ...]
    axes: tuple[int, ...]
    optimizer_step: int
    optimizer_size: int

    @property
    def ranks(self) -> int:
        total = 1
        for size in self.devices:
            total *= size
        return total

    @property
    def optimizer_shards(self) -> int:
        """How many ranks share one tensor-parallel slice; 1 when there are no optimizer shards."""
        if self.optimizer_step <= 0:
            return 1
        return self.optimizer_size if self.optimizer_size > 0 else self.ranks // self.optimizer_step

    def split(self, axis: int) -> int:
        """Into how many tensor-parallel slices ``axis`` is split."""
        return 1 if self.axes[axis] < 0 else self.devices[-1 - self.axes[axis]]

    def tensor_index(self, rank: int, axis: int) -> int:
        """Which of those slices ``rank`` holds."""
        if self.axes[axis] < 0:
            return 0
        dimension = len(self.devices) - 1 - self.axes[axis]
        inner = 1
        for size in self.devices[dimension + 1 :]:
            inner *= size
        return rank // inner % self.devices[dimension]

    def tensor_shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a tensor-parallel slice, before optimizer shards."""
        return tuple(size // self.split(axis) for axis, size in enumerate(whole))

    def offset(self, rank: int, whole: tuple[int, ...], shard: tuple[int, ...]) -> tuple[int, ...]:
        """Where the slice of ``rank``, of shape ``shard``, begins in the whole."""
        shape = self.tensor_shape(whole)
        start = [self.tensor_index(rank, axis) * size for axis, size in enumerate(shape)]
        if shard != shape:
            start[0] += rank // self.optimizer_step % self.optimizer_shards * shard[0]
        return tuple(start)


def read_strategy(path: Path | str) -> dict[str, Layout]:
    """The layout of each model parameter (not of the optimizer states), by plain name.

    Raises:
        InputError: no strategy file, or a damaged one.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        layouts = {}
        for number, _, first, last in fields(data):
            if last > len(data):
                raise _Damaged("ends in the middle of a value")
            if number == 3:
                name, layout = _item(data[first:last])
                if name.startswith("backbone."):
                    layouts[name] = layout
        if not layouts:
            raise _Damaged("names no parameter layouts")
        if len({layout.devices for layout in layouts.values()}) != 1:
            raise _Damaged("has several device matrices (pipeline stages), which no release has")
    except FileNotFoundError:
        raise InputError(f"{path}: no such strategy file") from None
    except _Damaged as error:
        raise InputError(f"{path}: {error}; give the strategy file that came with the release") from None
    return layouts


def _item(data: bytes) -> tuple[str, Layout]:
    name, values = "", {1: (), 2: (), 6: 0, 7: 0}
    for number, _, first, last in fields(data):
        if number == 1:
            name = _text(data[first:last])
            continue
        for inner, value, inner_first, inner_last in fields(data[first:last]):
            if inner in (1, 2):
                values[inner] = tuple(_dims(data[first:last][inner_first:inner_last]))
            elif inner in (6, 7):
                values[inner] = _signed(value)
    return name, Layout(values[1], values[2], values[6], values[7])


def _dims(data: bytes) -> list[int]:
    return [_signed(varint(data, first)[0]) for _, _, first, _ in fields(data)]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
