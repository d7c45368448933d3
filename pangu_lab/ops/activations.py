"""The three GELUs that PanGu-α weights have been trained with, from operators that are fast on a CPU.

``ops.GeLU`` and ``ops.FastGeLU`` cost five to ten times the compositions below, forward and backward.
Sources: Hendrycks & Gimpel (arXiv 1606.08415) for all three forms.
"""

from __future__ import annotations

import math

from mindspore import nn, ops


class FastGelu(nn.Cell):
    """x · sigmoid(1.702 x): the reference's choice on Ascend."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.mul = ops.Mul()
        self.sigmoid = ops.Sigmoid()

    def construct(self, x):
        return self.mul(x, self.sigmoid(self.mul(x, 1.702)))


class TanhGelu(nn.Cell):
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): what the released weights were trained with.

    Rewritten as x · sigmoid(2√(2/π) (x + 0.044715 x³)), which is the same function in fewer passes over memory.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.sigmoid = ops.Sigmoid()
        self.linear = 2.0 * math.sqrt(2.0 / math.pi)
        self.cubic = 0.044715 * self.linear

    def construct(self, x):
        slope = self.add(self.mul(self.mul(x, x), self.cubic), self.linear)
        return self.mul(x, self.sigmoid(self.mul(x, slope)))


class ErfGelu(nn.Cell):
    """x Φ(x), exact."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.erf = ops.Erf()

    def construct(self, x):
        phi = self.mul(self.add(self.erf(self.mul(x, math.sqrt(0.5))), 1.0), 0.5)
        return self.mul(x, phi)


ACTIVATIONS = {"fast_gelu": FastGelu, "gelu": TanhGelu, "gelu_erf": ErfGelu}  # by ``model.hidden_act``
