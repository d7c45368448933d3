"""The kernels of ``train.c`` as cells that MindSpore differentiates: one for each cell of ``pangu_lab.ops``.

Each gives None where kernels are not in use (``train.using``), and the caller does its work with MindSpore's operators.
All of them take and give fp32.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.ops.native import train

FLOAT = mstype.float32


def _operator(name: str, shape, outputs: int = 1) -> ops.Custom:
    """``train.c``'s function; ``shape`` makes the shape, or the tuple of shapes, from those of the inputs."""
    dtype = FLOAT if outputs == 1 else (FLOAT,) * outputs
    return ops.Custom(f"{train.in_use().path}:{name}", shape, dtype, "aot")


def in_use() -> bool:
    """Whether cells made here and now are kernels."""
    return train.in_use() is not None


def linear(transposed: bool, after: str = "") -> Optional["Linear"]:
    """x (rows, in), weight (in, out) or transposed (out, in), bias (out,) or None → (rows, out).

    ``after``: an activation of x that comes first; the weight is not transposed then.
    """
    return Linear(transposed, after) if in_use() else None


class Linear(nn.Cell):
    """Chooses between the forms with and without bias, of which each has its own backward pass."""

    def __init__(self, transposed: bool, after: str):
        super().__init__(auto_prefix=False)
        self.biased, self.plain = BiasedProduct(transposed, after), Product(transposed, after)

    def construct(self, x, weight, bias):
        return self.plain(x, weight) if bias is None else self.biased(x, weight, bias)


def _linear_operators(transposed: bool, after: str, biased: bool):
    kind, side = ("linear_transposed", 0) if transposed else (f"linear_after_{after}" if after else "linear_plain", 1)

    def forward_shape(x, weight, *_):
        return (x[0], weight[side])

    def backward_shape(x, weight, dy):
        return (x, weight, [dy[1]]) if biased else (x, weight)

    return _operator(kind, forward_shape), _operator(f"{kind}_backward", backward_shape, 2 + biased)


class Product(nn.Cell):
    def __init__(self, transposed: bool, after: str):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _linear_operators(transposed, after, biased=False)

    def construct(self, x, weight):
        return self.forward(x, weight)

    def bprop(self, x, weight, out, dout):
        return self.backward(x, weight, dout)


class BiasedProduct(nn.Cell):
    def __init__(self, transposed: bool, after: str):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _linear_operators(transposed, after, biased=True)

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        return self.backward(x, weight, dout)


def activation(name: str) -> Optional["Activation"]:
    """Elementwise, any shape; ``name`` as ``model.hidden_act``."""
    return Activation(name) if in_use() else None


class Activation(nn.Cell):
    def __init__(self, name: str):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _operator(name, lambda x: x), _operator(f"{name}_backward", lambda x, dy: x)

    def construct(self, x):
        return self.forward(x)

    def bprop(self, x, out, dout):
        return (self.backward(x, dout),)


def layer_norm(eps: float) -> Optional["Norm"]:
    """x (rows, width), gamma, beta (width,) → (rows, width)."""
    return Norm(eps) if in_use() else None


class Norm(nn.Cell):
    def __init__(self, eps: float):
        super().__init__(auto_prefix=False)
        self.eps = Tensor([eps], FLOAT)
        self.forward = _operator("layer_norm", lambda x, *_: x)
        self.backward = _operator("layer_norm_backward", lambda x, gamma, *_: (x, gamma, gamma), 3)

    def construct(self, x, gamma, beta):
        return self.forward(x, gamma, beta, self.eps)

    def bprop(self, x, gamma, beta, out, dout):
        return self.backward(x, gamma, dout, self.eps)


def dropout() -> Optional["Dropped"]:
    """x (rows, width), then keys, threshold and scale of ``ops.Dropout`` → (rows, width)."""
    return Dropped() if in_use() else None


class Dropped(nn.Cell):
    def __init__(self):
        super().__init__(auto_prefix=False)
        self.drop = _operator("dropout", lambda x, *_: x)

    def construct(self, x, rows, columns, threshold, scale):
        return self.drop(x, rows, columns, threshold, scale)

    def bprop(self, x, rows, columns, threshold, scale, out, dout):
        return (self.drop(dout, rows, columns, threshold, scale), ops.zeros_like(rows), ops.zeros_like(columns),
                ops.zeros_like(threshold), ops.zeros_like(scale))


def attention(heads: int, use_dropout: bool) -> Optional[nn.Cell]:
    """q, k, v (batch·seq, heads·dim), positions (batch, seq) int32 → (batch·seq, heads·dim) first; see ``CausalAttention``.

    With dropout five inputs more: int32 keys of the rows (batch·seq, 1), of the columns (1, seq or more) and heads
    (heads), and threshold and scale of ``ops.Dropout``.
    """
    if not in_use():
        return None
    return AttentionWithDropout(heads) if use_dropout else Attention(heads)


def _attention_operators(heads: int):
    def forward_shape(q, k, v, positions, *_):
        return q, [positions[0] * heads, positions[1]]

    return _operator("attention", forward_shape, 2), _operator("attention_backward", lambda q, k, v, *_: (q, k, v), 3)


class Attention(nn.Cell):
    def __init__(self, heads: int):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _attention_operators(heads)

    def construct(self, q, k, v, positions):
        return self.forward(q, k, v, positions)

    def bprop(self, q, k, v, positions, out, dout):
        dq, dk, dv = self.backward(q, k, v, positions, out[0], out[1], dout[0])
        return dq, dk, dv, ops.zeros_like(positions)


class AttentionWithDropout(nn.Cell):
    def __init__(self, heads: int):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _attention_operators(heads)

    def construct(self, q, k, v, positions, rows, columns, head_keys, threshold, scale):
        return self.forward(q, k, v, positions, rows, columns, head_keys, threshold, scale)

    def bprop(self, q, k, v, positions, rows, columns, head_keys, threshold, scale, out, dout):
        dq, dk, dv = self.backward(q, k, v, positions, out[0], out[1], dout[0], rows, columns, head_keys, threshold, scale)
        return (dq, dk, dv, ops.zeros_like(positions), ops.zeros_like(rows), ops.zeros_like(columns),
                ops.zeros_like(head_keys), ops.zeros_like(threshold), ops.zeros_like(scale))


def head_loss(gradients: bool) -> Optional[nn.Cell]:
    """hidden (rows, hidden), table (vocab, hidden), labels, weights (rows,) → Σ weight · −log p(label), a scalar, first."""
    if not in_use():
        return None
    return HeadLoss() if gradients else HeadLossValue()


class HeadLossValue(nn.Cell):
    def __init__(self):
        super().__init__(auto_prefix=False)
        self.value = _operator("head_loss_value", lambda *_: [1])

    def construct(self, hidden, table, labels, weights):
        return (ops.reshape(self.value(hidden, table, labels, weights), ()),)


class HeadLoss(nn.Cell):
    """The gradients are made while the logits of some rows are in the cache, together with the loss, so that the logits
    of all rows never exist.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.gradients = _operator("head_loss_gradients", lambda hidden, table, *_: ([1], hidden, table), 3)

    def construct(self, hidden, table, labels, weights):
        loss, d_hidden, d_table = self.gradients(hidden, table, labels, weights)
        return ops.reshape(loss, ()), d_hidden, d_table

    def bprop(self, hidden, table, labels, weights, out, dout):
        scale = dout[0]
        return out[1] * scale, out[2] * scale, ops.zeros_like(labels), ops.zeros_like(weights)


def tied_embedding() -> Optional["TiedEmbedding"]:
    """ids (rows,), table (vocab, hidden) → (rows, hidden), and the table for the head."""
    return TiedEmbedding() if in_use() else None


class TiedEmbedding(nn.Cell):
    """The table's two uses as one operation with one gradient.

    MindSpore makes a gradient of the whole table for the rows that were looked up, nearly all of it zeros, and adds the
    head's to it: three tensors of that size, the largest of the model, at the same moment.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.gather = ops.Gather()
        self.backward = _operator("tied_backward", lambda ids, rows, table: table)

    def construct(self, ids, table):
        return self.gather(table, ids, 0), table

    def bprop(self, ids, table, out, dout):
        return ops.zeros_like(ids), self.backward(ids, dout[0], dout[1])
