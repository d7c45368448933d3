"""The training kernels from Python: the library, and AdamW over arrays."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_lab.compiling import loaded, thread_count
from pangu_lab.config import ModelConfig

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Library:
    """The compiled operations: the library's path, and the functions themselves."""

    path: str
    functions: ctypes.CDLL


class _Tensor(ctypes.Structure):
    """``struct tensor``."""

    _fields_ = [
        *((name, _POINTER) for name in ("weight", "first", "second", "gradient")),
        ("size", _INTEGER),
        ("decays", _INTEGER),
    ]


@functools.lru_cache(maxsize=1)
def library() -> Library | None:
    """Compiled at first use; None, logged once, where it is not available."""
    return loaded("kernels", _opened, "training uses MindSpore's own operators: slower, with four times the memory")


def library_for(config: ModelConfig) -> Library | None:
    """The kernels, if they can train this model on a CPU: in fp32 throughout."""
    return library() if config.compute_dtype == config.softmax_dtype == "float32" else None


def _opened(path: Path) -> Library:
    found = ctypes.CDLL(str(path))
    found.set_up.argtypes, found.set_up.restype = (_INTEGER, ctypes.c_int), ctypes.c_int
    found.squared_norm.argtypes, found.squared_norm.restype = (_POINTER, _INTEGER), ctypes.c_double
    found.update.argtypes, found.update.restype = (_POINTER, _INTEGER, *[_FLOAT] * 6), None
    found.orthogonalised.argtypes, found.orthogonalised.restype = (_POINTER, _POINTER, *[_INTEGER] * 3), ctypes.c_int
    found.set_up(thread_count(), 512)
    return Library(str(path), found)


def squared_norm(library: Library, arrays: Sequence[np.ndarray]) -> float:
    """Σ x² over contiguous fp32 arrays, summed in double precision."""
    return sum(library.functions.squared_norm(array.ctypes.data, array.size) for array in arrays)


def update(
    library: Library,
    tensors: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]],
    factor: float,
    rate: float,
    keep: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """AdamW in place over (weight, first moment, second moment, gradient, decays) arrays, contiguous fp32.

    Args:
        factor: multiplies the gradients (clip and loss scale).
        rate: learning rate · √(1 − β2ᵗ) / (1 − β1ᵗ).
        keep: multiplies the weights that have decay, 1 − lr · decay.
        epsilon: ε · √(1 − β2ᵗ).
    """
    for *arrays, _ in tensors:
        if any(a.dtype != np.float32 or not a.flags.c_contiguous or a.size != arrays[0].size for a in arrays):
            raise ValueError("AdamW takes contiguous fp32 arrays of the same size")
    rows = (_Tensor * len(tensors))(
        *(_Tensor(*(a.ctypes.data for a in arrays), arrays[0].size, decays) for *arrays, decays in tensors)
    )
    library.functions.update(rows, len(tensors), factor, rate, keep, beta1, beta2, epsilon)


def orthogonalised(library: Library, x: np.ndarray) -> np.ndarray:
    """``ops.muon.orthogonalised`` of a contiguous fp32 array (…, n, m).

    Raises:
        MemoryError: there is not enough to work in.
    """
    if x.dtype != np.float32 or not x.flags.c_contiguous:
        raise ValueError("Muon's update takes a contiguous fp32 array")
    found = np.empty_like(x)
    rows, columns = x.shape[-2:]
    if library.functions.orthogonalised(x.ctypes.data, found.ctypes.data, x.size // (rows * columns), rows, columns):
        raise MemoryError("not enough memory for Muon's update")
    return found
