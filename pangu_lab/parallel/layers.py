"""The layers that know about tensor parallelism, written once for any layout.

A column-parallel product splits the outputs over the tensor ranks, the row-parallel product that follows splits the
inputs, so that one all-reduce a pair is enough in each direction (Shoeybi et al., arXiv 1909.08053). With a tensor
dimension of 1 no collective is in the graph.
"""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import nn, ops

from pangu_lab.ops import BiasLinear, TiedHeadLoss
from pangu_lab.parallel.mesh import Mesh


class ColumnLinear(nn.Cell):
    """x (rows, in) on every rank → this rank's (rows, out / tensor). Weight stored (out, in) when ``transposed``."""

    def __init__(self, mesh: Mesh, weights, prefix: str, transposed: bool, dtype):
        super().__init__(auto_prefix=False)
        self.weight = weights(f"{prefix}.weight")
        self.bias = weights(f"{prefix}.bias")
        self.linear = BiasLinear(transposed, dtype)

    def construct(self, x):
        return self.linear(x, self.weight, self.bias)


class RowLinear(nn.Cell):
    """This rank's x (rows, in / tensor) → the whole (rows, out), fp32, on every rank. Weight stored (in, out)."""

    def __init__(self, mesh: Mesh, weights, prefix: str, dtype):
        super().__init__(auto_prefix=False)
        self.weight = weights(f"{prefix}.weight")
        self.bias = weights(f"{prefix}.bias")
        self.linear = BiasLinear(False, dtype)
        self.cast = ops.Cast()

    def construct(self, x):
        return self.cast(self.linear(x, self.weight, self.bias), mstype.float32)


class WordEmbedding(nn.Cell):
    """ids (rows,) int32 → (rows, hidden) fp32."""

    def __init__(self, mesh: Mesh, weights, name: str, vocab_size: int):
        super().__init__(auto_prefix=False)
        self.table = weights(name)
        self.gather = ops.Gather()

    def construct(self, ids):
        return self.gather(self.table, ids, 0)


class HeadLoss(nn.Cell):
    """rows (rows, hidden), labels (rows,) int32, weights (rows,) fp32 → Σ weight · −log p(label), scalar fp32."""

    def __init__(self, mesh: Mesh, weights, name: str, dtype):
        super().__init__(auto_prefix=False)
        self.table = weights(name)
        self.loss = TiedHeadLoss(dtype)

    def construct(self, hidden, labels, weights):
        loss, _ = self.loss(hidden, self.table, labels, weights)
        return loss


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
