"""Causal attention that never crosses a document, with its backward pass written out.

The mask comes from the positions alone: a position restarts at 0 with each document, so query i may look at keys
i − position(i) … i. The backward pass keeps the probabilities of the forward pass and uses
Σ_j dP_j P_j = Σ dO · O per row (as FlashAttention does), which replaces a reduction over (seq, seq) by one over
the head dimension.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

MASKED = -10000.0  # added to scores that must not be seen; the reference's value


class AttentionBias(nn.Cell):
    """positions (batch, seq) int32 → additive mask (batch, 1, seq, seq): 0 where seen, −10000 where not."""

    def __init__(self, seq_length: int, dtype=mstype.float32):
        super().__init__(auto_prefix=False)
        index = np.arange(seq_length, dtype=np.int32)
        self.queries = Tensor(index.reshape(1, 1, seq_length, 1))
        self.keys = Tensor(index.reshape(1, 1, 1, seq_length))
        self.cast = ops.Cast()
        self.dtype = dtype

    def construct(self, positions):
        batch, seq = positions.shape
        first = self.queries - ops.reshape(positions, (batch, 1, seq, 1))
        hidden = ops.logical_or(self.keys > self.queries, self.keys < first)
        return ops.mul(self.cast(hidden, self.dtype), MASKED)


class CausalAttention(nn.Cell):
    """softmax(q kᵀ / √head_dim + bias) v.

    Shapes: q, k, v (batch·heads, seq, head_dim), bias (batch, 1, seq, seq), keep (batch·heads, seq, seq) dropout
    factors or a scalar when there is no dropout → (batch·heads, seq, head_dim), and the probabilities, which only
    the backward pass and the attention pictures use.
    """

    def __init__(self, heads: int, head_dim: int, softmax_dtype, use_dropout: bool):
        super().__init__(auto_prefix=False)
        self.heads = heads
        self.scale = head_dim**-0.5
        self.softmax_dtype = softmax_dtype
        self.use_dropout = use_dropout
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

    def construct(self, q, k, v, bias, keep):
        rows, seq, _ = q.shape
        scores = self.cast(self.product_bt(self.mul(q, self.scale), k), self.softmax_dtype)
        scores = self.add(self.reshape(scores, (rows // self.heads, self.heads, seq, seq)), bias)
        probabilities = self.softmax(self.reshape(scores, (rows, seq, seq)))
        probabilities = self.cast(probabilities, v.dtype)
        kept = self.mul(probabilities, keep) if self.use_dropout else probabilities
        return self.product(kept, v), probabilities

    def bprop(self, q, k, v, bias, keep, out, dout):
        output, probabilities = out
        d_output = dout[0]
        kept = self.mul(probabilities, keep) if self.use_dropout else probabilities
        d_v = self.product_at(kept, d_output)
        d_prob = self.product_bt(d_output, v)
        if self.use_dropout:
            d_prob = self.mul(d_prob, keep)
        weighted = self.sum(self.mul(self.cast(d_output, mstype.float32), self.cast(output, mstype.float32)), -1)
        d_score = self.mul(self.sub(d_prob, self.cast(weighted, d_prob.dtype)), probabilities)
        d_q = self.mul(self.product(d_score, k), self.scale)
        d_k = self.mul(self.product_at(d_score, q), self.scale)
        return d_q, d_k, d_v, ops.zeros_like(bias), ops.zeros_like(keep)
