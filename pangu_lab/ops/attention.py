"""Attention: the mask, and the mixing of values, with its backward pass written out.

The mask is a cell of its own, made once per network: ``DocumentMask`` for whole records (earlier tokens of the same
document), ``BranchMask`` for texts that share a beginning, ``SlotMask`` for new tokens over a key-value cache. The
output of such a cell is passed to every layer unopened; the attention of the same back end takes it.

The backward pass keeps the probabilities of the forward pass and uses Σ_j dP_j P_j = Σ dO · O per row (as
FlashAttention does), which replaces a reduction over (seq, seq) by one over the head dimension.

MindSpore 2.10 in graph mode: a ``NamedTuple`` passed from cell to cell silently lost its gradients (all zeros) or
raised "'int' object is not subscriptable"; plain tensors and tuples are safe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.ops.dropout import Dropout

MASKED = -10000.0  # added to masked scores; the reference's value


@dataclass(frozen=True)
class Heads:
    """This rank's share of the attention heads: how many, how wide, and the index of the first."""

    count: int
    dim: int
    first: int = 0

    @property
    def keys(self) -> np.ndarray:
        """(count,) int32: a number per head, which makes its dropout differ from that of the others."""
        numbers = (np.arange(self.first, self.first + self.count) + 1) * 0x27D4EB2F
        return (numbers & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


class DocumentMask(nn.Cell):
    """positions (batch, seq) int32 → additive mask (batch, 1, seq, seq): 0 where seen, −10000 where not.

    Positions restart at 0 with each document, so query i may see keys i − position(i) … i.
    """

    def __init__(self, seq_length: int, dtype=mstype.float32):
        super().__init__(auto_prefix=False)
        self.index = Tensor(np.arange(seq_length, dtype=np.int32))
        self.cast = ops.Cast()
        self.dtype = dtype

    def construct(self, positions):
        batch, seq = positions.shape
        index = self.index[:seq]
        queries, keys = ops.reshape(index, (1, 1, seq, 1)), ops.reshape(index, (1, 1, 1, seq))
        first = queries - ops.reshape(positions, (batch, 1, seq, 1))
        hidden = ops.logical_or(keys > queries, keys < first)
        return ops.mul(self.cast(hidden, self.dtype), MASKED)


class BranchMask(nn.Cell):
    """branches (batch, seq) int32, order (seq,) = 0, 1, 2 … → additive mask (batch, 1, seq, seq).

    A query sees a key that is not after it and belongs to the shared beginning (branch 0) or to its own branch.
    """

    def __init__(self, dtype=mstype.float32):
        super().__init__(auto_prefix=False)
        self.cast = ops.Cast()
        self.dtype = dtype

    def construct(self, branches, order):
        batch, seq = branches.shape
        causal = ops.reshape(order, (1, 1, 1, seq)) <= ops.reshape(order, (1, 1, seq, 1))
        keys = ops.reshape(branches, (batch, 1, 1, seq))
        same = ops.equal(keys, ops.reshape(branches, (batch, 1, seq, 1)))
        visible = ops.logical_and(causal, ops.logical_or(same, ops.equal(keys, 0)))
        return ops.mul(self.cast(ops.logical_not(visible), self.dtype), MASKED)


class Attention(nn.Cell):
    """Rows in, rows out: q, k, v (batch·seq, heads·head_dim), mask (batch, 1, seq, seq), row keys of the dropout
    (batch·seq, 1) → (batch·seq, heads·head_dim)."""

    def __init__(self, heads: Heads, dtype, softmax_dtype, dropout: Dropout):
        super().__init__(auto_prefix=False)
        self.heads, self.head_dim, self.dtype = heads.count, heads.dim, dtype
        self.dropout = dropout
        self.use_dropout = dropout.active
        kind = DroppedAttention if self.use_dropout else CausalAttention
        self.attend = kind(heads.count, heads.dim, softmax_dtype)
        self.head_keys = Tensor(heads.keys.reshape(1, -1, 1))

    def construct(self, q, k, v, mask, row_keys):
        batch, _, seq, _ = mask.shape
        mixed, _ = self.by_head(q, k, v, mask, row_keys)
        mixed = ops.transpose(ops.reshape(mixed, (batch, self.heads, seq, self.head_dim)), (0, 2, 1, 3))
        return ops.reshape(mixed, (batch * seq, self.heads * self.head_dim))

    def by_head(self, q, k, v, mask, row_keys=None):
        """As ``construct``, with results (batch·heads, seq, head_dim) and the probabilities (batch·heads, seq, seq)."""
        batch, _, seq, _ = mask.shape
        q, k, v = self._split(q, batch, seq), self._split(k, batch, seq), self._split(v, batch, seq)
        if self.use_dropout:
            return self.attend(q, k, v, mask, self._kept(row_keys, batch, seq))
        return self.attend(q, k, v, mask)

    def _split(self, x, batch, seq):
        """(batch·seq, heads·head_dim) → (batch·heads, seq, head_dim)."""
        x = ops.transpose(ops.reshape(x, (batch, seq, self.heads, self.head_dim)), (0, 2, 1, 3))
        return ops.reshape(x, (batch * self.heads, seq, self.head_dim))

    def _kept(self, row_keys, batch, seq):
        """Dropout factors of the probabilities, (batch·heads, seq, seq)."""
        keys = ops.reshape(row_keys, (batch, 1, seq)) + self.head_keys
        mask = self.dropout.mask(ops.reshape(keys, (batch * self.heads * seq, 1)), seq)
        return ops.cast(ops.reshape(mask, (batch * self.heads, seq, seq)), self.dtype)


class CausalAttention(nn.Cell):
    """softmax(q kᵀ / √head_dim + mask) v.

    Shapes: q, k, v (batch·heads, seq, head_dim), mask (batch, 1, seq, seq) → (batch·heads, seq, head_dim), and the
    probabilities, which only the backward pass and the attention pictures use.
    """

    def __init__(self, heads: int, head_dim: int, softmax_dtype):
        super().__init__(auto_prefix=False)
        self.heads = heads
        self.scale = head_dim**-0.5
        self.softmax_dtype = softmax_dtype
        self.product = ops.BatchMatMul()
        self.product_bt = ops.BatchMatMul(transpose_b=True)
        self.product_at = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(-1)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.sub = ops.Sub()
        self.sum = ops.ReduceSum(keep_dims=True)
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()

    def construct(self, q, k, v, mask):
        probabilities = self.probabilities(q, k, v, mask)
        return self.product(probabilities, v), probabilities

    def bprop(self, q, k, v, mask, out, dout):
        probabilities = out[1]
        d_prob = self.product_bt(dout[0], v)
        d_q, d_k = self.scores_backward(q, k, probabilities, d_prob, out[0], dout[0])
        return d_q, d_k, self.product_at(probabilities, dout[0]), ops.zeros_like(mask)

    def probabilities(self, q, k, v, mask):
        rows, seq, _ = q.shape
        scores = self.cast(self.product_bt(self.mul(q, self.scale), k), self.softmax_dtype)
        scores = self.add(self.reshape(scores, (rows // self.heads, self.heads, seq, seq)), mask)
        return self.cast(self.softmax(self.reshape(scores, (rows, seq, seq))), v.dtype)

    def scores_backward(self, q, k, probabilities, d_prob, output, d_output):
        """The gradients of q and k from that of the probabilities."""
        weighted = self.sum(self.mul(self.cast(d_output, mstype.float32), self.cast(output, mstype.float32)), -1)
        d_score = self.mul(self.sub(d_prob, self.cast(weighted, d_prob.dtype)), probabilities)
        return self.mul(self.product(d_score, k), self.scale), self.mul(self.product_at(d_score, q), self.scale)


class DroppedAttention(CausalAttention):
    """``CausalAttention`` with dropout: the probabilities are multiplied by ``keep`` (batch·heads, seq, seq)."""

    def construct(self, q, k, v, mask, keep):
        probabilities = self.probabilities(q, k, v, mask)
        return self.product(self.mul(probabilities, keep), v), probabilities

    def bprop(self, q, k, v, mask, keep, out, dout):
        probabilities = out[1]
        d_prob = self.mul(self.product_bt(dout[0], v), keep)
        d_q, d_k = self.scores_backward(q, k, probabilities, d_prob, out[0], dout[0])
        d_v = self.product_at(self.mul(probabilities, keep), dout[0])
        return d_q, d_k, d_v, ops.zeros_like(mask), ops.zeros_like(keep)
