"""x · W + b on rows.

The primitives ``ops.MatMul`` and ``ops.BiasAdd`` are used because the functions ``ops.matmul`` and ``+`` insert
transposes and reductions into the backward pass.
"""

from __future__ import annotations

from mindspore import nn, ops


class BiasLinear(nn.Cell):
    """Product with a weight stored (in, out), or (out, in) when ``transposed``, then the bias.

    Shapes: x (rows, in), weight, bias (out,) or None → (rows, out), in ``dtype``.

    Args:
        after: an activation applied to x first.
    """

    def __init__(self, transposed: bool, dtype, after: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.activation = after or nn.Identity()
        self.matmul = ops.MatMul(transpose_b=transposed)
        self.bias_add = ops.BiasAdd()
        self.cast = ops.Cast()
        self.dtype = dtype

    def construct(self, x, weight, bias):
        product = self.matmul(self.cast(self.activation(x), self.dtype), self.cast(weight, self.dtype))
        return product if bias is None else self.bias_add(product, self.cast(bias, self.dtype))
