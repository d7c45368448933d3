"""Gradient reduction: sums gradients over the ranks that computed parts of them, in one flat message.

One large collective costs less than many small ones on every back end. MindSpore's collectives between processes of
one machine go through sockets: 56 MB between two ranks on two cores took 350 ms. There the ranks instead write their
gradients into shared memory (96 ms), and the collectives only signal when it is complete. Every rank sums its part of
the elements, in the order of the ranks, so all get the same bits. `make bench ARGS=parallel` measures both.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.parallel.collectives import AllReduce, Group

_NAME = "pangu-lab-gradients"


def sum_gradients_over(group: Group, shapes: list[tuple[int, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """A callable: gradients of these shapes → their sums over the group, fp32; in the fastest way available.

    Every rank of the group must call this at the same point: they determine together whether they share memory.
    """
    if ms.get_context("device_target") == "CPU" and group.size > 1:
        shared = SharedSum.open(group, shapes)
        if shared is not None:
            return shared
    return SumGradients(group, shapes)


class SumGradients(nn.Cell):
    """The gradients' sums over the group, fp32, by one all-reduce. Shapes as given."""

    def __init__(self, group: Group, shapes: list[tuple[int, ...]]):
        super().__init__(auto_prefix=False)
        self.reduce = AllReduce(group)
        self.shapes = shapes
        self.sizes = [int(np.prod(shape)) for shape in shapes]
        self.starts = [int(start) for start in np.cumsum([0, *self.sizes[:-1]])]
        self.concat = ops.Concat(0)

    def construct(self, *gradients):
        flat = ()
        for gradient in gradients:
            flat = flat + (ops.reshape(ops.cast(gradient, mstype.float32), (-1,)),)
        total = self.reduce(self.concat(flat))
        result = ()
        for i in range(len(self.shapes)):
            part = total[self.starts[i] : self.starts[i] + self.sizes[i]]
            result = result + (ops.reshape(part, self.shapes[i]),)
        return result


class SharedSum:
    """``SumGradients`` for ranks of one machine: one row of shared memory per rank, and one for the sums."""

    def __init__(self, group: Group, shapes: list[tuple[int, ...]], memory: mmap.mmap, reduce: AllReduce):
        self.index, self.shapes, self.reduce = group.index, shapes, reduce
        self.bounds = np.cumsum([0, *[int(np.prod(shape)) for shape in shapes]])
        self.rows = np.frombuffer(memory, np.float32).reshape(group.size + 1, -1)
        cut = np.linspace(0, self.bounds[-1], group.size + 1).astype(int)
        self.mine = slice(cut[group.index], cut[group.index + 1])

    @classmethod
    def open(cls, group: Group, shapes: list[tuple[int, ...]]) -> SharedSum | None:
        """Create or attach the memory; None on every rank if one cannot reach it (it is on another machine)."""
        reduce = AllReduce(group)
        length = 4 * (group.size + 1) * sum(int(np.prod(shape)) for shape in shapes)
        memory, where = None, [0.0, 0.0, 0.0]
        if group.index == 0 and hasattr(os, "memfd_create"):  # leaves no name behind; freed when the ranks end
            token = secrets.randbelow(2**24)  # whole numbers below this are exact in fp32
            handle = os.memfd_create(f"{_NAME}-{token}")
            os.ftruncate(handle, length)
            memory, where = mmap.mmap(handle, length), [float(os.getpid()), float(handle), float(token)]
        place = [int(value) for value in reduce(Tensor(where, mstype.float32)).asnumpy()]
        if group.index > 0:
            memory = _attach(*place, length)
        count = reduce(Tensor([float(memory is not None)], mstype.float32)).asnumpy()[0]
        if group.index == 0 and memory is not None:
            os.close(handle)  # the mapping stays
        return cls(group, shapes, memory, reduce) if count == group.size else None

    def __call__(self, *gradients):
        own, total = self.rows[self.index], self.rows[-1]
        for gradient, start, end in zip(gradients, self.bounds, self.bounds[1:]):
            own[start:end] = gradient.asnumpy().ravel()
        self._meet()
        np.add(self.rows[0][self.mine], self.rows[1][self.mine], out=total[self.mine])
        for row in self.rows[2:-1]:
            total[self.mine] += row[self.mine]
        self._meet()
        return tuple(
            Tensor(total[start:end].reshape(shape))
            for shape, start, end in zip(self.shapes, self.bounds, self.bounds[1:])
        )

    def _meet(self) -> None:
        self.reduce(Tensor([1.0], mstype.float32)).asnumpy()


def _attach(pid: int, handle: int, token: int, length: int) -> mmap.mmap | None:
    """The first rank's memory, if this machine has it: on another machine that process is absent or a different one."""
    path = f"/proc/{pid}/fd/{handle}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}-{token} "):
            return None
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), length)
    except (OSError, ValueError):
        return None
