"""The C kernels as a back end: the training operators as differentiable MindSpore cells, fp32 in and out.

``Kernels`` has the methods of ``pangu_lab.ops.portable.Portable``, where each is documented.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import ModelConfig
from pangu_lab.ops.adamw import AdamWState
from pangu_lab.ops.attention import Heads
from pangu_lab.ops.dropout import Dropout
from pangu_lab.ops.muon import MuonState
from pangu_lab.ops.native import train

FLOAT = mstype.float32
# the symbols of the operators: forward and gradient
LINEAR = {
    "": ("linear_plain", "linear_plain_backward"),
    "transposed": ("linear_transposed", "linear_transposed_backward"),
    "gelu": ("linear_after_gelu", "linear_after_gelu_backward"),
    "gelu_erf": ("linear_after_gelu_erf", "linear_after_gelu_erf_backward"),
    "fast_gelu": ("linear_after_fast_gelu", "linear_after_fast_gelu_backward"),
}
ACTIVATION = {
    "gelu": ("gelu", "gelu_backward"),
    "gelu_erf": ("gelu_erf", "gelu_erf_backward"),
    "fast_gelu": ("fast_gelu", "fast_gelu_backward"),
}


class Kernels:
    """The C kernels as a back end.

    Args:
        library: the compiled operations.

    Attributes:
        path: of the library; graphs refer to it.
    """

    def __init__(self, library: train.Library):
        self.library, self.path = library, library.path

    def operator(self, symbol: str, shape, outputs: int = 1) -> ops.Custom:
        """An operator of the C library; ``shape`` computes the output shape (or a tuple of them) from the inputs'."""
        return ops.Custom(f"{self.path}:{symbol}", shape, FLOAT if outputs == 1 else (FLOAT,) * outputs, "aot")

    def linear(self, transposed: bool, dtype, after: str = "") -> Linear:
        return Linear(self, transposed, "transposed" if transposed else after)

    def activation(self, name: str) -> Activation:
        return Activation(self, name)

    def layer_norm(self, eps: float) -> LayerNorm:
        return LayerNorm(self, eps)

    def dropout(self, rate: float, seed: int, site: str, width: int) -> Dropout:
        return Dropout(rate, seed, site, width, kernel=Dropped(self))

    def documents(self, seq_length: int, dtype) -> nn.Cell:
        """positions → positions: the kernel needs no mask, it derives from the positions which keys a query sees."""
        return nn.Identity()

    def attention(self, heads: Heads, dtype, softmax_dtype, dropout: Dropout) -> nn.Cell:
        return AttentionWithDropout(self, heads, dropout) if dropout.active else Attention(self, heads)

    def tied_embedding(self) -> TiedEmbedding:
        return TiedEmbedding(self)

    def head_loss(self, dtype, gradients: bool = True) -> nn.Cell:
        """A cell that never holds the logits of all rows; its first result is the loss."""
        return HeadLoss(self) if gradients else HeadLossValue(self)

    def squared_norm(self, counted: list[bool]) -> SquaredNorm:
        return SquaredNorm(self.library, counted)

    def adamw(self, state: AdamWState, beta1: float, beta2: float) -> AdamWUpdate:
        return AdamWUpdate(self.library, state, beta1, beta2)

    def muon(self, state: MuonState, beta: float, gather=None) -> MuonUpdate:
        return MuonUpdate(self.library, state, beta, gather)


def kernels_for(config: ModelConfig) -> Kernels | None:
    """The kernels, if they can train this model and this process trains on a CPU."""
    library = train.library_for(config) if ms.get_context("device_target") == "CPU" else None
    return library and Kernels(library)


class Linear(nn.Cell):
    """Chooses between the forms with and without bias, each with its own backward pass."""

    def __init__(self, kernels: Kernels, transposed: bool, kind: str):
        super().__init__(auto_prefix=False)
        self.biased, self.plain = BiasedProduct(kernels, transposed, kind), Product(kernels, transposed, kind)

    def construct(self, x, weight, bias):
        return self.plain(x, weight) if bias is None else self.biased(x, weight, bias)


def _linear_operators(kernels: Kernels, transposed: bool, kind: str, biased: bool):
    side = 0 if transposed else 1

    def forward_shape(x, weight, *_):
        return (x[0], weight[side])

    def backward_shape(x, weight, dy):
        return (x, weight, [dy[1]]) if biased else (x, weight)

    forward, backward = LINEAR[kind]
    return kernels.operator(forward, forward_shape), kernels.operator(backward, backward_shape, 2 + biased)


class Product(nn.Cell):
    def __init__(self, kernels: Kernels, transposed: bool, kind: str):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _linear_operators(kernels, transposed, kind, biased=False)

    def construct(self, x, weight):
        return self.forward(x, weight)

    def bprop(self, x, weight, out, dout):
        return self.backward(x, weight, dout)


class BiasedProduct(nn.Cell):
    def __init__(self, kernels: Kernels, transposed: bool, kind: str):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _linear_operators(kernels, transposed, kind, biased=True)

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        return self.backward(x, weight, dout)


class Activation(nn.Cell):
    def __init__(self, kernels: Kernels, name: str):
        super().__init__(auto_prefix=False)
        forward, backward = ACTIVATION[name]
        self.forward, self.backward = (
            kernels.operator(forward, lambda x: x),
            kernels.operator(backward, lambda x, dy: x),
        )

    def construct(self, x):
        return self.forward(x)

    def bprop(self, x, out, dout):
        return (self.backward(x, dout),)


class LayerNorm(nn.Cell):
    def __init__(self, kernels: Kernels, eps: float):
        super().__init__(auto_prefix=False)
        self.eps = Tensor([eps], FLOAT)
        self.forward = kernels.operator("layer_norm", lambda x, *_: x)
        self.backward = kernels.operator("layer_norm_backward", lambda x, gamma, *_: (x, gamma, gamma), 3)

    def construct(self, x, gamma, beta):
        return self.forward(x, gamma, beta, self.eps)

    def bprop(self, x, gamma, beta, out, dout):
        return self.backward(x, gamma, dout, self.eps)


class Dropped(nn.Cell):
    """The kernel argument of ``ops.Dropout``."""

    def __init__(self, kernels: Kernels):
        super().__init__(auto_prefix=False)
        self.drop = kernels.operator("dropout", lambda x, *_: x)

    def construct(self, x, rows, columns, threshold, scale):
        return self.drop(x, rows, columns, threshold, scale)

    def bprop(self, x, rows, columns, threshold, scale, out, dout):
        return (
            self.drop(dout, rows, columns, threshold, scale),
            ops.zeros_like(rows),
            ops.zeros_like(columns),
            ops.zeros_like(threshold),
            ops.zeros_like(scale),
        )


def _attention_operators(kernels: Kernels, heads: Heads):
    def forward_shape(q, k, v, positions, *_):
        return q, [positions[0] * heads.count, positions[1]]

    return (
        kernels.operator("attention", forward_shape, 2),
        kernels.operator("attention_backward", lambda q, k, v, *_: (q, k, v), 3),
    )


class Attention(nn.Cell):
    """The interface of ``pangu_lab.ops.attention.Attention``, without dropout."""

    def __init__(self, kernels: Kernels, heads: Heads):
        super().__init__(auto_prefix=False)
        self.attend = AttentionKernel(kernels, heads)

    def construct(self, q, k, v, mask, row_keys):
        return self.attend(q, k, v, mask)[0]


class AttentionKernel(nn.Cell):
    """q, k, v (batch·seq, heads·dim), positions (batch, seq) int32 → (batch·seq, heads·dim), and what the gradient needs."""

    def __init__(self, kernels: Kernels, heads: Heads):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _attention_operators(kernels, heads)

    def construct(self, q, k, v, positions):
        return self.forward(q, k, v, positions)

    def bprop(self, q, k, v, positions, out, dout):
        dq, dk, dv = self.backward(q, k, v, positions, out[0], out[1], dout[0])
        return dq, dk, dv, ops.zeros_like(positions)


class AttentionWithDropout(nn.Cell):
    """The interface of ``pangu_lab.ops.attention.Attention``, with dropout."""

    def __init__(self, kernels: Kernels, heads: Heads, dropout: Dropout):
        super().__init__(auto_prefix=False)
        self.attend = AttentionWithDropoutKernel(kernels, heads)
        self.dropout = dropout
        self.head_keys = Tensor(heads.keys.reshape(1, -1, 1))

    def construct(self, q, k, v, mask, row_keys):
        drop = self.dropout
        return self.attend(q, k, v, mask, row_keys, drop.columns, self.head_keys, drop.numbers[0], drop.numbers[1])[0]


class AttentionWithDropoutKernel(nn.Cell):
    """``AttentionKernel`` with int32 keys of the rows (batch·seq, 1), of the columns (1, seq or more) and heads
    (1, heads, 1), and threshold and scale of ``ops.Dropout``."""

    def __init__(self, kernels: Kernels, heads: Heads):
        super().__init__(auto_prefix=False)
        self.forward, self.backward = _attention_operators(kernels, heads)

    def construct(self, q, k, v, positions, rows, columns, head_keys, threshold, scale):
        return self.forward(q, k, v, positions, rows, columns, head_keys, threshold, scale)

    def bprop(self, q, k, v, positions, rows, columns, head_keys, threshold, scale, out, dout):
        dq, dk, dv = self.backward(
            q, k, v, positions, out[0], out[1], dout[0], rows, columns, head_keys, threshold, scale
        )
        return (
            dq,
            dk,
            dv,
            ops.zeros_like(positions),
            ops.zeros_like(rows),
            ops.zeros_like(columns),
            ops.zeros_like(head_keys),
            ops.zeros_like(threshold),
            ops.zeros_like(scale),
        )


class HeadLossValue(nn.Cell):
    """hidden (rows, hidden), table (vocab, hidden), labels, weights (rows,) → (Σ weight · −log p(label), a scalar)."""

    def __init__(self, kernels: Kernels):
        super().__init__(auto_prefix=False)
        self.value = kernels.operator("head_loss_value", lambda *_: [1])

    def construct(self, hidden, table, labels, weights):
        return (ops.reshape(self.value(hidden, table, labels, weights), ()),)


class HeadLoss(nn.Cell):
    """As ``HeadLossValue``. The gradients are computed together with the loss, while the logits of some rows are in the
    cache, so that the logits of all rows never exist.
    """

    def __init__(self, kernels: Kernels):
        super().__init__(auto_prefix=False)
        self.gradients = kernels.operator("head_loss_gradients", lambda hidden, table, *_: ([1], hidden, table), 3)

    def construct(self, hidden, table, labels, weights):
        loss, d_hidden, d_table = self.gradients(hidden, table, labels, weights)
        return ops.reshape(loss, ()), d_hidden, d_table

    def bprop(self, hidden, table, labels, weights, out, dout):
        scale = dout[0]
        return out[1] * scale, out[2] * scale, ops.zeros_like(labels), ops.zeros_like(weights)


class TiedEmbedding(nn.Cell):
    """The table's two uses as one operation with one gradient.

    MindSpore makes a gradient of the whole table, nearly all zeros, for the rows that were looked up, and adds the
    head's to it: three tensors of that size, the largest of the model, at the same time.
    """

    def __init__(self, kernels: Kernels):
        super().__init__(auto_prefix=False)
        self.gather = ops.Gather()
        self.backward = kernels.operator("tied_backward", lambda ids, rows, table: table)

    def construct(self, ids, table):
        return self.gather(table, ids, 0), table

    def bprop(self, ids, table, out, dout):
        return ops.zeros_like(ids), self.backward(ids, dout[0], dout[1])


class SquaredNorm:
    """``ops.adamw.SquaredNorm`` with the same interface; gives a float, summed in double precision.

    Not a graph: on a CPU a MindSpore tensor and the numpy array that ``asnumpy`` gives share memory, so this and
    ``AdamWUpdate`` work on gradients, weights and moments in place.
    """

    def __init__(self, library: train.Library, counted: list[bool]):
        self.library, self.counted = library, counted

    def __call__(self, *gradients) -> float:
        return train.squared_norm(
            self.library,
            [_contiguous(gradient.asnumpy()) for gradient, counts in zip(gradients, self.counted) if counts],
        )


class AdamWUpdate:
    """``ops.adamw.AdamWUpdate`` with the same interface, in one pass over memory."""

    def __init__(self, library: train.Library, state: AdamWState, beta1: float, beta2: float):
        self.library, self.state, self.beta1, self.beta2 = library, state, beta1, beta2

    def __call__(self, *given) -> None:
        factor, lr, decay_factor, beta1_power, beta2_power, eps = map(float, given[:6])
        rate = lr * (1.0 - beta2_power) ** 0.5 / (1.0 - beta1_power)
        state, tensors = self.state, []
        for i, gradient in enumerate(given[6:]):
            gradient = gradient.asnumpy()
            if state.rows[i] is not None:
                gradient = gradient[state.rows[i][0] : state.rows[i][1]]
            arrays = (parameter.asnumpy() for parameter in (state.weights[i], state.first[i], state.second[i]))
            tensors.append((*arrays, _contiguous(gradient), state.decay[i]))
        train.update(self.library, tensors, factor, rate, decay_factor, self.beta1, self.beta2, eps)


class MuonUpdate:
    """``ops.muon.MuonUpdate`` with the same interface; in place, as ``AdamWUpdate``.

    Of the graph's 0.41 s a step for the preset ``verse`` (one core), 0.27 went into passes over memory around the products.
    """

    def __init__(self, library: train.Library, state: MuonState, beta: float, gather=None):
        self.library, self.state, self.beta, self.gather = library, state, beta, gather

    def __call__(self, factor, lr, decay_factor, *gradients) -> None:
        state, wholes = self.state, []
        for i, gradient in enumerate(gradients):
            gradient, momentum = gradient.asnumpy(), state.momenta[i].asnumpy()
            if state.rows[i] is not None:
                gradient = gradient[state.rows[i][0] : state.rows[i][1]]
            new = np.multiply(gradient, float(factor) * (1.0 - self.beta), dtype=np.float32)
            momentum *= np.float32(self.beta)
            momentum += new
            new += momentum * np.float32(self.beta)
            wholes.append(new)
        if self.gather is not None:
            wholes = [whole.asnumpy() for whole in self.gather(*map(Tensor, wholes))]
        for i, whole in enumerate(wholes):
            update, weight = train.orthogonalised(self.library, _contiguous(whole)), state.weights[i].asnumpy()
            update *= np.float32(float(lr) * state.scale(i))
            weight *= np.float32(float(decay_factor))
            weight -= update[state.own[i]]


def _contiguous(array: np.ndarray) -> np.ndarray:
    """The array, or a copy of it, contiguous and fp32."""
    return np.ascontiguousarray(array, np.float32)
