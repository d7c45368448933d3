"""``network.c`` from Python: its structures, and the library itself.

Nothing here copies weights or cache: the structures hold addresses of arrays that the caller keeps alive.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np

from pangu_lab.compiling import loaded, thread_count
from pangu_lab.errors import InputError

KINDS = {"float32": 0, "int8": 1, "float16": 2, "bfloat16": 3}
ACTIVATIONS = {"gelu": 0, "gelu_erf": 1, "fast_gelu": 2}
_NONE = 3  # no activation after a product
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class Matrix(ctypes.Structure):
    """``struct matrix``: weight (out, in), its scales if it is int8, bias, the weight in fp32 if that is kept, and KINDS."""

    _fields_ = [
        *((name, _POINTER) for name in ("weight", "scale", "bias", "floats")),
        *((name, _INTEGER) for name in ("inputs", "outputs", "kind")),
    ]


class Layer(ctypes.Structure):
    """``struct layer``."""

    _fields_ = [
        *((name, _POINTER) for name in ("gamma1", "beta1", "gamma2", "beta2")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, _POINTER) for name in ("keys", "values")),
    ]


class Network(ctypes.Structure):
    """``struct network``."""

    _fields_ = [
        *((name, _INTEGER) for name in ("layers", "hidden", "inner", "heads", "slots", "vocabulary", "activation")),
        ("epsilon", ctypes.c_double),
        *((name, _POINTER) for name in ("positions", "queries", "gamma", "beta")),
        ("head", Matrix),
        ("layer", ctypes.POINTER(Layer)),
    ]


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, logged once, where they are not available."""
    return loaded("kernels", _opened, "MindSpore's own operators generate the same tokens, at half the speed or less")


def _opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    network = ctypes.POINTER(Network)
    found.set_up.argtypes, found.set_up.restype = (_INTEGER, ctypes.c_int), ctypes.c_int
    found.scratch_size.argtypes, found.scratch_size.restype = (network, _INTEGER, _INTEGER), _INTEGER
    found.forward.argtypes = (network, *[_POINTER] * 4, *[_INTEGER] * 3, _POINTER, _INTEGER, _POINTER, _POINTER)
    found.quantise.argtypes = (_POINTER, _INTEGER, _INTEGER, _POINTER, _POINTER)
    found.arrange_brain_floats.argtypes = (_POINTER, _INTEGER, _INTEGER, _POINTER)
    found.gemv.argtypes = (ctypes.POINTER(Matrix), _POINTER, _POINTER, _INTEGER, ctypes.c_int)
    found.gemv.restype = found.forward.restype = found.quantise.restype = found.arrange_brain_floats.restype = None
    found.set_up(thread_count(), 512)
    return found


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values (out, in), in the order in which the kernels read them, and scales (out,) of a weight (out, in) fp32.

    Symmetric, with each row's largest value at 127. ``weight`` itself is overwritten with the dequantised values, so
    that any further computation with it gives the same numbers.
    """
    quantised, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    library().quantise(weight.ctypes.data, *weight.shape, quantised.ctypes.data, scale.ctypes.data)
    return quantised, scale


def halved(weight: np.ndarray, dtype: str) -> np.ndarray:
    """A weight (out, in) in "float16" or "bfloat16", as uint16 in the order in which the kernels read it.

    Rounded to the nearest, ties to even.

    Raises:
        InputError: a number is too large for fp16.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
        halves = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
    else:
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(weight, np.float16)
        if not np.isfinite(rounded).all():
            raise InputError("a weight is too large for float16 (65504 at most): use bfloat16")
        return rounded.view(np.uint16)
    arranged = np.empty_like(halves)
    library().arrange_brain_floats(halves.ctypes.data, *halves.shape, arranged.ctypes.data)
    return arranged


def product(weight: np.ndarray, x: np.ndarray, dtype: str) -> np.ndarray:
    """x (rows, in) fp32 · weightᵀ, as a decode step computes it; ``weight`` (out, in) as stored for ``dtype``."""
    y = np.empty((len(x), len(weight)), np.float32)
    matrix = Matrix(weight.ctypes.data, None, None, None, *weight.shape[::-1], KINDS[dtype])
    library().gemv(matrix, x.ctypes.data, y.ctypes.data, len(x), _NONE)
    return y
