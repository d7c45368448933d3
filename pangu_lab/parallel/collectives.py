"""Collective communication between the ranks of a group, as graph-mode cells with their gradients.

One small interface for every back end. ``NATIVE`` lists where MindSpore has its own operator for a collective, which is
then used; everything else is built from ``AllReduce``, the only operator that MindSpore's CPU back end has in
sub-groups: a gather is a sum of tensors that are zero outside the own part, a message is a sum to which the
receiver adds zeros. Over the whole world a CPU also has ``AllGather``, which takes about half the time of the
sums. A group of one rank costs nothing: every cell is then an identity, and the graph has no collective.

Gradients follow from what each collective computes: a sum's gradient is the identity where all ranks use the result
in the same way (tensor parallelism), and vice versa.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.parallel.mesh import Mesh

NATIVE = {
    "AllGather": ("GPU", "Ascend", "CPU world"),
    "ReduceScatter": ("GPU", "Ascend"),
    "AlltoAll": ("Ascend",),
    "NeighborExchange": ("Ascend",),
}


@dataclass(frozen=True)
class Group:
    """Ranks that communicate. ``index`` is this rank's position in ``ranks``; ``name`` is MindSpore's name for it."""

    name: str
    ranks: tuple[int, ...]
    index: int
    is_world: bool = False

    @property
    def size(self) -> int:
        return len(self.ranks)


@functools.cache
def start_communication() -> tuple[int, int]:
    """Join the other processes; (rank, world size). (0, 1) if no launcher has prepared an environment."""
    import os

    if "MS_ROLE" not in os.environ and "RANK_TABLE_FILE" not in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return 0, 1
    from mindspore.communication import GlobalComm, get_group_size, get_rank, init

    if not GlobalComm.INITED:  # the launcher's worker may have joined already
        init()
    return get_rank(), get_group_size()


@functools.cache
def group_of(mesh: Mesh, *dimensions: str) -> Group:
    """The ranks that differ from this one only along ``dimensions``; created in the same order on all ranks."""
    ranks = tuple(mesh.group(*dimensions))
    return make_group(ranks, mesh.rank)


@functools.cache
def make_group(ranks: tuple[int, ...], rank: int) -> Group:
    """A group of the given ranks, which include this rank."""
    if len(ranks) == 1:
        return Group(f"pangu-{rank}", ranks, 0)
    from mindspore.communication import GlobalComm, create_group, get_group_size

    if ranks == tuple(range(get_group_size())):
        return Group(GlobalComm.WORLD_COMM_GROUP, ranks, ranks.index(rank), is_world=True)
    name = "pangu-" + "-".join(str(member) for member in ranks)
    create_group(name, list(ranks))
    return Group(name, ranks, ranks.index(rank))


def inference_group(mesh: Mesh) -> Group:
    """The tensor-parallel ranks of this rank's stage under a name that exported graphs keep; see ``join``."""
    stages, stage = mesh.size("pipeline"), mesh.index("pipeline")
    return Group(
        "pangu-tensor" if stages == 1 else f"pangu-tensor-{stage}", tuple(mesh.group("tensor")), mesh.index("tensor")
    )


def join(group: Group) -> None:
    """Create a group under its own name, in a process that has joined the others."""
    from mindspore.communication import create_group

    if group.size > 1:
        create_group(group.name, list(group.ranks))


def has_native(operator: str, group: Group) -> bool:
    """Whether this back end has the operator for this group (GPU and Ascend: untested, for lack of a device)."""
    target = ms.get_context("device_target")
    return group.size > 1 and (target in NATIVE[operator] or group.is_world and f"{target} world" in NATIVE[operator])


class AllReduce(nn.Cell):
    """The sum over the group, on every rank. Gradient: the output's gradient, unchanged.

    That is right where all ranks compute the same from the result, as after a row-parallel product.
    """

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.alone = group.size == 1
        self.reduce = None if self.alone else ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x):
        return x if self.alone else self.reduce(x)

    def bprop(self, x, out, dout):
        return (dout,)


class ReduceGradient(nn.Cell):
    """Identity, whose gradient is summed over the group: before a column-parallel product."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.alone = group.size == 1
        self.reduce = None if self.alone else ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x):
        return x

    def bprop(self, x, out, dout):
        return (dout if self.alone else self.reduce(dout),)


class AllGather(nn.Cell):
    """The parts of all ranks concatenated along axis 0: (n, …) → (size · n, …).

    Gradient: this rank's part of the sum over the group (a reduce-scatter).
    """

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.size, self.index, self.alone = group.size, group.index, group.size == 1
        self.reduce = None if self.alone else ops.AllReduce(ops.ReduceOp.SUM, group.name)
        self.mine = Tensor((np.arange(group.size) == group.index).astype(np.float32))
        self.native, self.native_back = has_native("AllGather", group), has_native("ReduceScatter", group)
        self.native_gather = ops.AllGather(group.name) if self.native else None
        self.native_scatter = ops.ReduceScatter(ops.ReduceOp.SUM, group.name) if self.native_back else None

    def construct(self, x):
        if self.alone:
            return x
        if self.native:
            return self.native_gather(x)
        spread = ops.reshape(ops.cast(self.mine, x.dtype), (self.size,) + (1,) * len(x.shape))
        placed = ops.mul(ops.expand_dims(x, 0), spread)
        return ops.reshape(self.reduce(placed), (self.size * x.shape[0],) + x.shape[1:])

    def bprop(self, x, out, dout):
        if self.alone:
            return (dout,)
        if self.native_back:
            return (self.native_scatter(dout),)
        rows = x.shape[0]
        return (self.reduce(dout)[self.index * rows : (self.index + 1) * rows],)


class GatherParts(nn.Cell):
    """Tensors of which each rank of the group has a part, put together on every rank, in one message.

    Args:
        shapes: of the parts, the same on every rank.
        axes: along which the parts of each tensor follow one another.
    """

    def __init__(self, group: Group, shapes: list[tuple[int, ...]], axes: list[int]):
        super().__init__(auto_prefix=False)
        self.gather, self.size = AllGather(group), group.size
        self.shapes, self.axes = [tuple(shape) for shape in shapes], axes
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.ends = [int(end) for end in np.cumsum(sizes)]
        self.starts = [end - size for end, size in zip(self.ends, sizes)]
        self.orders = [
            (*range(1, axis + 1), 0, *range(axis + 1, len(shape) + 1))  # the ranks' axis before the split one
            for shape, axis in zip(shapes, axes)
        ]
        self.wholes = [
            tuple(size * (group.size if a == axis else 1) for a, size in enumerate(shape))
            for shape, axis in zip(shapes, axes)
        ]
        self.concat = ops.Concat(0)

    def construct(self, *parts):
        flat = ()
        for part in parts:
            flat = flat + (ops.reshape(part, (-1,)),)
        everything = ops.reshape(self.gather(self.concat(flat)), (self.size, -1))
        wholes = ()
        for i in range(len(self.shapes)):
            pieces = ops.reshape(everything[:, self.starts[i] : self.ends[i]], (self.size,) + self.shapes[i])
            wholes = wholes + (ops.reshape(ops.transpose(pieces, self.orders[i]), self.wholes[i]),)
        return wholes


class ReduceScatter(nn.Cell):
    """This rank's part along axis 0 of the sum over the group: (size · n, …) → (n, …). Gradient: an all-gather."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.size, self.index, self.alone = group.size, group.index, group.size == 1
        self.reduce = None if self.alone else ops.AllReduce(ops.ReduceOp.SUM, group.name)
        self.gather = AllGather(group)
        self.native = has_native("ReduceScatter", group)
        self.native_scatter = ops.ReduceScatter(ops.ReduceOp.SUM, group.name) if self.native else None

    def construct(self, x):
        if self.alone:
            return x
        if self.native:
            return self.native_scatter(x)
        rows = x.shape[0] // self.size
        return self.reduce(x)[self.index * rows : (self.index + 1) * rows]

    def bprop(self, x, out, dout):
        return (self.gather(dout),)


class AllToAll(nn.Cell):
    """Part j of axis 0 goes to rank j: (size · n, …) → (size · n, …), part i from rank i. Gradient: the same."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.size, self.index, self.alone = group.size, group.index, group.size == 1
        self.native = has_native("AlltoAll", group)
        self.native_exchange = ops.AlltoAll(group.size, 0, 0, group.name) if self.native else None
        self.gather = None if self.native else AllGather(group)

    def _exchange(self, x):
        if self.alone:
            return x
        if self.native:
            return self.native_exchange(x)
        rows = x.shape[0] // self.size
        everything = ops.reshape(self.gather(x), (self.size, self.size, rows) + x.shape[1:])
        return ops.reshape(everything[:, self.index], x.shape)

    def construct(self, x):
        return self._exchange(x)

    def bprop(self, x, out, dout):
        return (self._exchange(dout),)


class Exchange(nn.Cell):
    """Two neighbours swap a tensor in one step: each gets what the other gives.

    The group has two ranks; both tensors have the same shape. A one-way message is an exchange in which the receiver
    gives zeros. Because both directions are one collective, neighbours cannot deadlock in a pipeline's steady state.
    Gradient: an exchange.

    Args:
        shape: of the tensors, for Ascend's ``NeighborExchange``; without it a gather is used there too.
    """

    def __init__(self, group: Group, shape: tuple[int, ...] | None = None, dtype=mstype.float32):
        super().__init__(auto_prefix=False)
        self.partner = 1 - group.index
        self.native = shape is not None and has_native("NeighborExchange", group)
        partner = [group.ranks[self.partner]]
        self.swap = (
            ops.NeighborExchange(partner, partner, (list(shape),), (list(shape),), dtype, group.name)
            if self.native
            else None
        )
        self.gather = None if self.native else AllGather(group)

    def _exchange(self, x):
        return self.swap((x,))[0] if self.native else self.gather(ops.expand_dims(x, 0))[self.partner]

    def construct(self, x):
        return self._exchange(x)

    def bprop(self, x, out, dout):
        return (self._exchange(dout),)
