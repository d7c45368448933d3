"""The fused operations of the model, one name each, in portable MindSpore operators.

What an operator costs on a CPU differs by up to a factor of ten between forms that compute the same thing; each
module here says which form was chosen and why. Everything works in graph mode, keeps activations as rows
(batch·seq, hidden), and is differentiable; where MindSpore's own backward pass is wasteful a ``bprop`` is written
beside the forward pass.

Each is imported when it is asked for: who only wants the kernels of ``native`` gets no model code with them.
"""

from __future__ import annotations

import importlib

_HOME = {"activation": "activations", "AttentionBias": "attention", "CausalAttention": "attention", "Dropout": "dropout",
         "BiasLinear": "linear", "TiedHeadLoss": "loss", "tied_head_loss": "loss", "LayerNorm": "norm"}
__all__ = ["activation", "AttentionBias", "BiasLinear", "CausalAttention", "Dropout", "LayerNorm", "TiedHeadLoss",
           "tied_head_loss"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
