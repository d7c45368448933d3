"""Stateless dropout: whether an element is kept is a hash of its coordinates.

The mask is a function of (seed, site in the network, record number, position, feature) and of nothing else. It
is therefore the same when a run is resumed, when a layer is recomputed, and when the tensor is split over devices
(each holds its part of the same mask), without saving or synchronising any random state. The hash is two
rounds of multiply-and-shift in 32 bits (after Wellons' lowbias32); int32 products wrap around, as needed.
"""

from __future__ import annotations

import zlib

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
_GOLDEN = 0x9E3779B1


def _int32(value: int) -> int:
    """The signed 32-bit number with the same bits."""
    return int(np.uint32(value & 0xFFFFFFFF).astype(np.int32))


class Dropout(nn.Cell):
    """Zeroes a share ``rate`` of the elements and scales the rest by 1 / (1 − rate).

    Args:
        rate: share dropped; 0 makes the cell an identity.
        seed: the run's seed.
        site: the name of this dropout in the network, so that no two share a mask.
        width: elements per row on this device.
        first_column: global index of this device's first element of a row.
        kernel: replaces the operators; takes x, row keys, columns, threshold and scale.

    Shapes: x (rows, width), row_keys (rows, 1) int32 that identify each row globally → (rows, width).
    """

    def __init__(
        self, rate: float, seed: int, site: str, width: int, first_column: int = 0, kernel: nn.Cell | None = None
    ):
        super().__init__(auto_prefix=False)
        self.active = rate > 0
        self.keep_scale = 1.0 / (1.0 - rate)
        # the hash is uniform over signed 32-bit numbers; below the threshold means dropped
        self.threshold = int(rate * 2**32) - 2**31
        columns = np.arange(first_column, first_column + width, dtype=np.uint64) * _GOLDEN
        key = zlib.crc32(f"{seed}/{site}".encode())
        self.columns = Tensor((columns + key).astype(np.uint32).view(np.int32)[None, :])
        self.kernel = kernel if self.active else None
        self.numbers = Tensor([self.threshold], mstype.int32), Tensor([self.keep_scale], mstype.float32)
        self.first = _int32(_MULTIPLIERS[0])
        self.second = _int32(_MULTIPLIERS[1])
        self.xor = ops.BitwiseXor()
        self.bit_and = ops.BitwiseAnd()
        self.mul = ops.Mul()
        self.cast = ops.Cast()
        self.greater_equal = ops.GreaterEqual()

    def mask(self, row_keys, width):
        """The factors (rows, width) fp32: 0 or 1 / (1 − rate); ``width`` at most the cell's."""
        value = self.mul(self.xor(row_keys, self.columns[:, :width]), self.first)
        value = self.mul(self.xor(value, self._upper(value)), self.second)
        value = self.xor(value, self._upper(value))
        kept = self.greater_equal(value, self.threshold)
        return self.mul(self.cast(kept, mstype.float32), self.keep_scale)

    def _upper(self, value):
        """The upper half of each word shifted down; the mask undoes the sign extension."""
        return self.bit_and(ops.bitwise_right_shift(value, 16), 0xFFFF)

    def construct(self, x, row_keys):
        if not self.active:
            return x
        if self.kernel is not None:
            return self.kernel(x, row_keys, self.columns, self.numbers[0], self.numbers[1])
        return self.mul(x, self.cast(self.mask(row_keys, x.shape[1]), x.dtype))
