"""AdamW on the host: optimizer states (moments, and fp32 master weights) in host memory or in a memory-mapped file.

The device keeps the weights it computes with and sends gradients to the host, in half precision where the weights are.
The update is AdamW as in ``step.py``, here over NumPy arrays, piece by piece, so that a piece stays in the processor's
cache and no large temporaries are made. It is NumPy and not an operator because MindSpore's operators would first copy
the states to the device, which offload must avoid, and would take their memory from the same limit. Several threads
update parameters, and each parameter goes back to the device while the next ones are computed. The update itself cannot
overlap the backward pass: the clip factor needs the norm of all gradients.

The results differ from the device's AdamW only in the order of a few roundings: after a step by at most 2 units in the
last place of the update.

With ``train.offload_folder`` the states are in an unnamed file in that folder. The system reclaims its space however
the run ends; only checkpoints persist. The space is reserved when the run starts, so that a full disk is an error then
and not a crash in the middle of a step.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from pangu_lab.config import TrainConfig
from pangu_lab.errors import InputError
from pangu_lab.parallel.collectives import Group
from pangu_lab.train.step import gathers, own_rows

PIECE = 1 << 16  # elements; the five arrays of a piece take about a megabyte and stay in the cache
THREADS = min(8, os.cpu_count() or 1)
Read = Callable[[str, tuple[int, ...]], np.ndarray]


class StateStore:
    """Hands out fp32 arrays of zeros: ordinary ones, or regions of one mapped file.

    Args:
        folder: for the file; None keeps the arrays in memory.
        sizes: elements of every array that will be requested.

    Raises:
        InputError: the folder cannot be made or written, or there is no room in it.
    """

    def __init__(self, folder: str | None, sizes: list[int]):
        self._map, self._used = None, 0
        if folder is not None and sum(sizes):
            self._map = self._mapped(Path(folder), 4 * sum(sizes))

    def _mapped(self, folder: Path, size: int) -> np.memmap:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return np.memmap(file, np.float32, "r+")
        except OSError as error:
            raise InputError(
                f"train.offload_folder={folder}: no room for {size / 2**30:.2f} GiB of optimizer states "
                f"there ({error.strerror})"
            ) from None

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        if self._map is None:
            return np.zeros(shape, np.float32)
        size = int(np.prod(shape))
        start, self._used = self._used, self._used + size
        return self._map[start : self._used].reshape(shape)


class HostAdamW:
    """``AdamW`` with states and arithmetic on the host; same interface.

    Args:
        weights: this rank's parameters on the device; some may be in half precision, the others are in fp32.
        decay: for each, whether weight decay applies.
        initial: (name, shape) → the fp32 value of a weight that is in half precision.
        moments: ("adam_m.NAME", shape) → a moment to start from; None for zeros.
        rows, group: with optimizer parallelism, the rows of each weight that this rank updates, and the ranks that
            update the others.

    Attributes:
        masters: fp32 master weights by name, of the weights that the device has in half precision; this rank's rows.
    """

    def __init__(
        self,
        weights: list[Parameter],
        decay: list[bool],
        config: TrainConfig,
        initial: Read,
        moments: Read | None = None,
        steps: int = 0,
        rows=None,
        group: Group | None = None,
    ):
        self.config, self.decay, self.steps = config, decay, steps
        self.rows = rows or [None] * len(weights)
        self.names = [weight.name for weight in weights]
        self.own = [own_rows(weight, part) for weight, part in zip(weights, self.rows)]
        self.gathers = gathers(group, weights, self.own, self.rows)
        halves = [weight.dtype != ms.float32 for weight in weights]
        shapes = [tuple(weight.shape) for weight in self.own]
        sizes = [int(np.prod(shape)) * (3 if half else 2) for shape, half in zip(shapes, halves)]
        store = StateStore(config.offload_folder, sizes)
        self.first = [_state(store, f"adam_m.{name}", shape, moments) for name, shape in zip(self.names, shapes)]
        self.second = [_state(store, f"adam_v.{name}", shape, moments) for name, shape in zip(self.names, shapes)]
        self.masters = {
            name: _state(store, name, shape, initial) for name, shape, half in zip(self.names, shapes, halves) if half
        }
        self.threads = ThreadPoolExecutor(THREADS, "host-adam")

    def update(self, gradients, norm: float, inverse_scale: float, lr: float) -> None:
        """Apply one step. ``norm`` is the global norm of the unscaled gradients."""
        config = self.config
        self.steps += 1
        factor = min(1.0, config.clip_norm / (norm + 1e-6)) * inverse_scale
        root = (1.0 - config.beta2**self.steps) ** 0.5
        rate = lr * root / (1.0 - config.beta1**self.steps)
        pending: deque = deque()
        for i in range(len(self.own)):
            if len(pending) >= THREADS:  # limits the new values that wait for the device
                self._send(*pending.popleft())
            result = self.threads.submit(self._update_one, i, gradients[i], factor, rate, lr, config.adam_eps * root)
            pending.append((self.own[i], result))
        while pending:
            self._send(*pending.popleft())
        for gather in self.gathers:
            gather()

    @staticmethod
    def _send(weight: Parameter, result: Future) -> None:
        weight.set_data(Tensor(result.result(), weight.dtype))

    def _update_one(self, i: int, gradient: Tensor, factor: float, rate: float, lr: float, eps: float) -> np.ndarray:
        """The new value of a weight, fp32."""
        gradient = gradient.asnumpy()
        if self.rows[i] is not None:
            gradient = gradient[self.rows[i][0] : self.rows[i][1]]
        master = self.masters.get(self.names[i])
        value = self.own[i].asnumpy().copy() if master is None else master
        keep = np.float32(1.0 - lr * self.config.weight_decay) if self.decay[i] else None
        adam_pieces(
            value.reshape(-1),
            self.first[i].reshape(-1),
            self.second[i].reshape(-1),
            gradient.reshape(-1),
            np.float32(factor),
            np.float32(rate),
            keep,
            np.float32(eps),
            self.config,
        )
        return value

    def moments(self) -> dict[str, np.ndarray]:
        """Both moments of every weight, by ``adam_m.NAME`` and ``adam_v.NAME``; views, not copies."""
        return {
            **{f"adam_m.{name}": value for name, value in zip(self.names, self.first)},
            **{f"adam_v.{name}": value for name, value in zip(self.names, self.second)},
        }


def adam_pieces(weight, first, second, gradient, factor, rate, keep, eps, config: TrainConfig) -> None:
    """AdamW in place over flat arrays; the weight is first multiplied by ``keep``, the decay (None: no decay)."""
    beta1, beta2 = np.float32(config.beta1), np.float32(config.beta2)
    for start in range(0, weight.size, PIECE):
        part = slice(start, start + PIECE)
        w, m, v = weight[part], first[part], second[part]
        g = gradient[part].astype(np.float32) * factor
        if keep is not None:
            w *= keep
        m += (g - m) * (np.float32(1.0) - beta1)
        g *= g
        g -= v
        g *= np.float32(1.0) - beta2
        v += g
        np.sqrt(v, out=g)
        g += eps
        np.divide(m, g, out=g)
        g *= rate
        w -= g


def _state(store: StateStore, name: str, shape: tuple[int, ...], read: Read | None) -> np.ndarray:
    array = store.array(shape)
    if read is not None:
        array[...] = read(name, shape)
    return array
