"""A shuffled order that is computed, not stored.

Record n of an epoch is found by a small block cipher over the numbers 0 to length − 1 (a Feistel network whose
rounds alternate between the two halves of the bits, repeated until the result is in range). The order is a permutation
for every (seed, epoch), is the same on every rank and machine, and can be entered anywhere: resuming at a record costs
nothing, and neither does a data set of a billion records.
"""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 10


def shuffled(numbers: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """Where places ``numbers`` of the shuffled order point to.

    Args:
        numbers: (n,) integers from 0 to length − 1.
        length: records in the epoch.
        seed, epoch: choose the permutation.

    Returns:
        (n,) int64 from 0 to length − 1; all of them, each once, when ``numbers`` is all of them.
    """
    bits = max(2, (length - 1).bit_length())
    keys = _round_keys(seed, epoch, length)
    result = _encipher(numbers.astype(np.uint64), bits, keys)
    outside = result >= length
    while outside.any():  # fewer than half lie outside; each walk ends because it cannot pass its start
        result[outside] = _encipher(result[outside], bits, keys)
        outside = result >= length
    return result.astype(np.int64)


def _round_keys(seed: int, epoch: int, length: int) -> np.ndarray:
    text = f"pangu-lab order {seed} {epoch} {length}".encode()
    return np.frombuffer(hashlib.shake_256(text).digest(8 * ROUNDS), "<u8")


def _encipher(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = numbers & low_mask, numbers >> low_bits
    for place, key in enumerate(keys):
        if place % 2:
            low = low ^ (_scramble(high, key) & low_mask)
        else:
            high = high ^ (_scramble(low, key) & high_mask)
    return (high << low_bits) | low


def _scramble(value: np.ndarray, key: np.uint64) -> np.ndarray:
    """64 well-mixed bits of a number and a key (the finaliser of SplitMix64); wraps around on purpose."""
    value = value * np.uint64(0x9E3779B97F4A7C15) + key
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
