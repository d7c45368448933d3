"""The output head tied to the word embedding, and the cross entropy over the vocabulary, as one operation.

Fused because the gradient of the logits, (rows, vocab) and by far the largest tensor of a small model, then needs
only one pass: the token weights and the loss scale multiply the rows of the two products' results instead.
"""

from __future__ import annotations

from mindspore import dtype as mstype
from mindspore import nn, ops


class TiedHeadLoss(nn.Cell):
    """Σ weight · −log softmax(hidden · tableᵀ)[label].

    Shapes: hidden (rows, hidden), table (vocab, hidden) fp32, labels (rows,) int32, weights (rows,) fp32
    → scalar fp32, and the log-probabilities (rows, vocab), which only the backward pass uses.
    """

    def __init__(self, dtype):
        super().__init__(auto_prefix=False)
        self.dtype = dtype
        self.half = dtype != mstype.float32
        self.logits = ops.MatMul(transpose_b=True)
        self.matmul = ops.MatMul()
        self.matmul_at = ops.MatMul(transpose_a=True)
        self.log_softmax = ops.LogSoftmax(-1)
        self.softmax_grad = ops.SparseSoftmaxCrossEntropyWithLogits(is_grad=True)
        self.gather = ops.GatherD()
        self.sum = ops.ReduceSum()
        self.mul = ops.Mul()
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()

    def construct(self, hidden, table, labels, weights):
        logits = self.logits(self.cast(hidden, self.dtype), self.cast(table, self.dtype))
        log_probs = self.log_softmax(self.cast(logits, mstype.float32))
        chosen = self.gather(log_probs, 1, self.reshape(labels, (-1, 1)))
        loss = self.sum(self.mul(self.reshape(chosen, (-1,)), weights))
        return -loss, log_probs

    def bprop(self, hidden, table, labels, weights, out, dout):
        # softmax(log_probs) = softmax(logits): the operator gives (softmax − onehot) / rows in one pass
        rows = hidden.shape[0]
        d_logits = self.softmax_grad(out[1], labels)
        d_loss = self.mul(weights, dout[0])
        if self.half:  # undo the division before the cast, or small probabilities vanish in 16 bits
            d_logits = self.cast(self.mul(d_logits, float(rows)), self.dtype)
            row_scale = self.reshape(d_loss, (-1, 1))
        else:
            row_scale = self.reshape(self.mul(d_loss, float(rows)), (-1, 1))
        d_hidden = self.mul(self.cast(self.matmul(d_logits, self.cast(table, self.dtype)), mstype.float32), row_scale)
        scaled = self.cast(self.mul(self.cast(hidden, mstype.float32), row_scale), self.dtype)
        d_table = self.matmul_at(d_logits, scaled)
        return (
            self.cast(d_hidden, hidden.dtype),
            self.cast(d_table, table.dtype),
            ops.zeros_like(labels),
            ops.zeros_like(weights),
        )


class TiedEmbedding(nn.Cell):
    """The table's two uses: ids (rows,), table (vocab, hidden) → rows of the table (rows, hidden), and the table for the
    head."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.gather = ops.Gather()

    def construct(self, ids, table):
        return self.gather(table, ids, 0), table
