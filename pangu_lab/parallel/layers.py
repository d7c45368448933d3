"""The layers that know about tensor parallelism, written once for any layout.

A column-parallel product splits the outputs over the tensor ranks, the row-parallel product that follows splits the
inputs, so that one all-reduce per pair is enough in each direction (Shoeybi et al., arXiv 1909.08053). The word
embedding is split over the vocabulary, and so are the logits: the loss needs only a maximum, a sum and one logit per
row from each rank. With a tensor dimension of 1 the graph has no collective.

With ``parallel.sequence`` (Korthikanti et al., arXiv 2205.05198) the work between the split products (LayerNorm,
dropout, the residual sum) is not repeated by all tensor ranks: each has its share of the rows. Rows are gathered
before a column-parallel product and reduce-scattered after a row-parallel one, which together move as much data as
one all-reduce. Parameters that act on such rows (LayerNorm, the biases after a sum, positions and queries) get partial
gradients, which the training step sums over the tensor ranks in one message (``sharding.gradient_dimensions``).

``weights`` gives a layer its parameters by name; ``weights.whole(name)`` a cell that makes a parameter whole where
each data rank holds only a slice of it (``parallel.optimizer: parameters``).
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.ops.backend import Backend
from pangu_lab.parallel.collectives import AllGather, AllReduce, Group, ReduceGradient, ReduceScatter, group_of
from pangu_lab.parallel.mesh import Mesh


class TensorInput(nn.Cell):
    """Marks where a tensor enters the split computations of the tensor ranks.

    A tensor that all ranks hold passes unchanged, and its gradient is summed; with sequence parallelism the ranks'
    rows are gathered.
    """

    def __init__(self, mesh: Mesh):
        super().__init__(auto_prefix=False)
        self.enter = (AllGather if mesh.parallel.sequence else ReduceGradient)(group_of(mesh, "tensor"))

    def construct(self, x):
        return self.enter(x)


class QueryInput(nn.Cell):
    """``TensorInput`` for the query layer's queries, which all ranks hold whole even with sequence parallelism.

    Their gradient is then left partial: it is cheaper to sum that of the few query vectors later.
    """

    def __init__(self, mesh: Mesh):
        super().__init__(auto_prefix=False)
        self.enter = nn.Identity() if mesh.parallel.sequence else ReduceGradient(group_of(mesh, "tensor"))

    def construct(self, x):
        return self.enter(x)


class OwnRows(nn.Cell):
    """The rows of x that this rank computes between the split products: its share with sequence parallelism, or all."""

    def __init__(self, mesh: Mesh):
        super().__init__(auto_prefix=False)
        self.parts = mesh.row_parts
        self.index = mesh.index("tensor")

    def construct(self, x):
        rows = x.shape[0] // self.parts
        return x if self.parts == 1 else x[self.index * rows : (self.index + 1) * rows]


def row_sum(mesh: Mesh) -> nn.Cell:
    """Σ over the tensor ranks of their partial results for all rows: all rows, or with sequence parallelism its own."""
    return (ReduceScatter if mesh.parallel.sequence else AllReduce)(group_of(mesh, "tensor"))


class ColumnLinear(nn.Cell):
    """x (rows, in) on every rank → this rank's (rows, out / tensor). Weight stored (out, in) when ``transposed``.

    The caller passes x through ``TensorInput`` once, however many column-parallel products share it.
    """

    def __init__(self, backend: Backend, weights, prefix: str, transposed: bool, dtype):
        super().__init__(auto_prefix=False)
        self.weight = weights(f"{prefix}.weight")
        self.bias = weights(f"{prefix}.bias")
        self.whole = weights.whole(f"{prefix}.weight")
        self.linear = backend.linear(transposed, dtype)

    def construct(self, x):
        return self.linear(x, self.whole(self.weight), self.bias)


class RowLinear(nn.Cell):
    """This rank's x (rows, in / tensor) → the whole (rows, out), fp32, on every rank. Weight stored (in, out).

    With sequence parallelism each rank gets its share of the rows. ``after``: an activation applied to x first.
    """

    def __init__(self, backend: Backend, mesh: Mesh, weights, prefix: str, dtype, after: str = ""):
        super().__init__(auto_prefix=False)
        self.weight = weights(f"{prefix}.weight")
        self.bias = weights(f"{prefix}.bias")
        self.whole = weights.whole(f"{prefix}.weight")
        self.split = mesh.size("tensor") > 1
        self.linear = backend.linear(False, dtype, after)
        self.reduce = row_sum(mesh)
        self.bias_add = ops.BiasAdd()
        self.cast = ops.Cast()

    def construct(self, x):
        weight = self.whole(self.weight)
        if not self.split:
            return self.cast(self.linear(x, weight, self.bias), mstype.float32)
        partial = self.cast(self.linear(x, weight, None), mstype.float32)
        return self.bias_add(self.reduce(partial), self.bias)


class WordEmbedding(nn.Cell):
    """ids (rows,) int32 → (rows, hidden) fp32; each rank looks up the ids in its part of the vocabulary.

    Args:
        group: the tensor ranks.
        reduce: sums the ranks' results (``row_sum``); with sequence parallelism each rank gets its share of the rows.
    """

    def __init__(self, weights, name: str, vocab_size: int, group: Group, reduce: nn.Cell):
        super().__init__(auto_prefix=False)
        self.table = weights(name)
        self.whole = weights.whole(name)
        self.split = group.size > 1
        self.part = vocab_size // group.size
        self.first = self.part * group.index
        self.gather = ops.Gather()
        self.reduce = reduce

    def construct(self, ids):
        table = self.whole(self.table)
        if not self.split:
            return self.gather(table, ids, 0)
        inside, local = local_ids(ids, self.first, self.part)
        rows = self.gather(table, local, 0)
        return self.reduce(ops.mul(rows, ops.expand_dims(ops.cast(inside, rows.dtype), 1)))


def local_ids(ids, first: int, part: int):
    """Which ids lie in [first, first + part), and their local index (0 for the others)."""
    inside = ops.logical_and(ids >= first, ids < first + part)
    return inside, (ids - first) * ops.cast(inside, mstype.int32)


class HeadLoss(nn.Cell):
    """rows (rows, hidden), labels (rows,) int32, weights (rows,) fp32 → Σ weight · −log p(label), scalar fp32.

    ``table``: the word embedding, if the caller already has it (``TiedEmbedding``).
    """

    def __init__(
        self, backend: Backend, mesh: Mesh, weights, name: str, vocab_size: int, dtype, gradients: bool = True
    ):
        super().__init__(auto_prefix=False)
        self.table = weights(name)
        self.whole = weights.whole(name)
        self.enter = TensorInput(mesh)
        split = mesh.size("tensor") > 1
        self.loss = VocabParallelLoss(mesh, vocab_size, dtype) if split else backend.head_loss(dtype, gradients)

    def construct(self, hidden, labels, weights, table=None):
        table = self.whole(self.table) if table is None else table
        return self.loss(self.enter(hidden), table, labels, weights)[0]


class VocabParallelLoss(nn.Cell):
    """``TiedHeadLoss`` with the vocabulary split over the tensor ranks.

    Shapes: as there, but table (vocab / tensor, hidden). The gradient of the logits is softmax − onehot on the local
    part; the gradient of ``hidden`` is this rank's share, which the caller sums (``TensorInput``).
    """

    def __init__(self, mesh: Mesh, vocab_size: int, dtype):
        super().__init__(auto_prefix=False)
        group = group_of(mesh, "tensor")
        self.dtype = dtype
        self.part = vocab_size // group.size
        self.first = self.part * group.index
        self.size = group.size
        self.logits = ops.MatMul(transpose_b=True)
        self.matmul = ops.MatMul()
        self.matmul_at = ops.MatMul(transpose_a=True)
        self.all_reduce = AllReduce(group)
        self.gather_parts = AllGather(group)  # MindSpore's CPU all-reduce has no maximum
        self.columns = Tensor(np.arange(self.part, dtype=np.int32)[None])

    def construct(self, hidden, table, labels, weights):
        product = self.logits(ops.cast(hidden, self.dtype), ops.cast(table, self.dtype))
        logits = ops.cast(product, mstype.float32)
        highest = ops.ReduceMax(keep_dims=True)(logits, 1)
        highest = ops.ReduceMax()(ops.reshape(self.gather_parts(highest), (self.size, -1, 1)), 0)
        logits = logits - highest
        inside, local = local_ids(labels, self.first, self.part)
        chosen = ops.GatherD()(logits, 1, ops.reshape(local, (-1, 1)))
        chosen = ops.mul(chosen, ops.reshape(ops.cast(inside, mstype.float32), (-1, 1)))
        both = ops.concat((ops.ReduceSum(keep_dims=True)(ops.exp(logits), 1), chosen), 1)
        both = self.all_reduce(both)  # one message: the sum of the exponentials, and the logit of the label
        log_total = ops.log(both[:, 0:1])
        loss = ops.ReduceSum()(ops.mul(ops.reshape(log_total - both[:, 1:2], (-1,)), weights))
        return loss, logits - log_total

    def bprop(self, hidden, table, labels, weights, out, dout):
        here = ops.reshape(labels - self.first, (-1, 1))
        onehot = ops.cast(ops.equal(self.columns, here), mstype.float32)
        d_logits = ops.cast(ops.exp(out[1]) - onehot, self.dtype)
        scale = ops.reshape(weights * dout[0], (-1, 1))
        d_hidden = ops.cast(self.matmul(d_logits, ops.cast(table, self.dtype)), mstype.float32) * scale
        scaled = ops.cast(ops.cast(hidden, mstype.float32) * scale, self.dtype)
        d_table = ops.cast(self.matmul_at(d_logits, scaled), table.dtype)
        return ops.cast(d_hidden, hidden.dtype), d_table, ops.zeros_like(labels), ops.zeros_like(weights)


class TiedHead(nn.Cell):
    """rows (rows, hidden) → logits (rows, vocab) fp32, by the word embedding's transpose."""

    def __init__(self, weights, name: str, dtype):
        super().__init__(auto_prefix=False)
        self.table = weights(name)
        self.matmul = ops.MatMul(transpose_b=True)
        self.dtype = dtype

    def construct(self, hidden):
        product = self.matmul(ops.cast(hidden, self.dtype), ops.cast(self.table, self.dtype))
        return ops.cast(product, mstype.float32)
