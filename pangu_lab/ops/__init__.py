"""The fused operations of the model, one name each, in portable MindSpore operators.

What an operator costs on a CPU differs by up to a factor of ten between forms that compute the same thing; each
module here says which form was chosen and why. Everything works in graph mode, keeps activations as rows
(batch·seq, hidden), and is differentiable; where MindSpore's own backward pass is wasteful a ``bprop`` is written
beside the forward pass.
"""

from pangu_lab.ops.activation import activation
from pangu_lab.ops.attention import AttentionBias, CausalAttention
from pangu_lab.ops.dropout import Dropout
from pangu_lab.ops.linear import BiasLinear
from pangu_lab.ops.loss import TiedHeadLoss
from pangu_lab.ops.norm import LayerNorm

__all__ = ["activation", "AttentionBias", "BiasLinear", "CausalAttention", "Dropout", "LayerNorm", "TiedHeadLoss"]
