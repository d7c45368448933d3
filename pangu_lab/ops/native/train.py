"""``train.c`` from Python: the library, and AdamW over arrays."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from pangu_lab.compiling import loaded, thread_count
from pangu_lab.config import ModelConfig

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_in_use: contextvars.ContextVar[Optional["Kernels"]] = contextvars.ContextVar("training kernels", default=None)


@dataclass(frozen=True)
class Kernels:
    """The compiled operations: where the library lies, and the library."""

    path: str
    library: ctypes.CDLL


class _Tensor(ctypes.Structure):
    """``struct tensor``."""

    _fields_ = [*((name, _POINTER) for name in ("weight", "first", "second", "gradient")),
                ("size", _INTEGER), ("decays", _INTEGER)]


@functools.lru_cache(maxsize=1)
def kernels() -> Optional[Kernels]:
    """Compiled at the first use; None, said once in the log, where they cannot be had."""
    return loaded("train", _opened, "training goes on with MindSpore's own operators, slower and in four times the memory")


def kernels_for(config: ModelConfig) -> Optional[Kernels]:
    """The kernels, where they can train this model on a CPU: in fp32 throughout."""
    return kernels() if config.compute_dtype == config.softmax_dtype == "float32" else None


def _opened(path: Path) -> Kernels:
    library = ctypes.CDLL(str(path))
    library.set_up.argtypes, library.set_up.restype = (_INTEGER, ctypes.c_int), ctypes.c_int
    library.squared_norm.argtypes, library.squared_norm.restype = (_POINTER, _INTEGER), ctypes.c_double
    library.update.argtypes, library.update.restype = (_POINTER, _INTEGER, *[_FLOAT] * 6), None
    library.set_up(thread_count(), 512)
    return Kernels(str(path), library)


@contextlib.contextmanager
def using(chosen: Optional[Kernels]) -> Iterator[None]:
    """Cells made inside take these kernels; None: MindSpore's operators."""
    token = _in_use.set(chosen)
    try:
        yield
    finally:
        _in_use.reset(token)


def in_use() -> Optional[Kernels]:
    """What ``using`` says."""
    return _in_use.get()


def squared_norm(chosen: Kernels, arrays: Sequence[np.ndarray]) -> float:
    """Σ x² over contiguous fp32 arrays, summed in double precision."""
    return sum(chosen.library.squared_norm(array.ctypes.data, array.size) for array in arrays)


def update(chosen: Kernels, tensors: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]], factor: float,
           rate: float, keep: float, beta1: float, beta2: float, epsilon: float) -> None:
    """AdamW in place over (weight, first moment, second moment, gradient, decays) arrays, contiguous fp32.

    Args:
        factor: multiplies the gradients (clip and loss scale).
        rate: learning rate · √(1 − β2ᵗ) / (1 − β1ᵗ).
        keep: multiplies the weights that decay, 1 − lr · decay.
        epsilon: ε · √(1 − β2ᵗ).
    """
    for *arrays, _ in tensors:
        if any(a.dtype != np.float32 or not a.flags.c_contiguous or a.size != arrays[0].size for a in arrays):
            raise ValueError("AdamW takes contiguous fp32 arrays of one size")
    rows = (_Tensor * len(tensors))(*(_Tensor(*(a.ctypes.data for a in arrays), arrays[0].size, decays)
                                      for *arrays, decays in tensors))
    chosen.library.update(rows, len(tensors), factor, rate, keep, beta1, beta2, epsilon)
