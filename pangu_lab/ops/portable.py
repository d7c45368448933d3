"""The back end of MindSpore's own operators: for every device and number type, with or without a compiler.

A back end is an object that makes the operations of the network; it is chosen once, where a network is built, and passed
down. The other one, ``native.cells.Kernels``, has the same methods: C kernels, for fp32 on a CPU. A layer asks its
back end for operations and does not know which one it has.
"""

from __future__ import annotations

from pangu_lab.ops.activations import ACTIVATIONS
from pangu_lab.ops.adamw import AdamWState, AdamWUpdate, SquaredNorm
from pangu_lab.ops.attention import Attention, DocumentMask, Heads
from pangu_lab.ops.dropout import Dropout
from pangu_lab.ops.linear import BiasLinear
from pangu_lab.ops.loss import TiedEmbedding, TiedHeadLoss
from pangu_lab.ops.muon import MuonState, MuonUpdate
from pangu_lab.ops.norm import LayerNorm


class Portable:
    """The cells document their shapes; each method says what it makes.

    Attributes:
        path: the compiled library that graphs refer to; "" for none.
    """

    path = ""

    def linear(self, transposed: bool, dtype, after: str = "") -> BiasLinear:
        """x · W + b, of ``after``(x) if an activation is named."""
        return BiasLinear(transposed, dtype, self.activation(after) if after else None)

    def activation(self, name: str):
        """The cell for ``model.hidden_act``: elementwise, any shape."""
        return ACTIVATIONS[name]()

    def layer_norm(self, eps: float) -> LayerNorm:
        return LayerNorm(eps)

    def dropout(self, rate: float, seed: int, site: str, width: int) -> Dropout:
        return Dropout(rate, seed, site, width)

    def documents(self, seq_length: int, dtype) -> DocumentMask:
        """positions (batch, seq) → the mask, in the form that this back end's ``attention`` takes."""
        return DocumentMask(seq_length, dtype)

    def attention(self, heads: Heads, dtype, softmax_dtype, dropout: Dropout) -> Attention:
        return Attention(heads, dtype, softmax_dtype, dropout)

    def tied_embedding(self) -> TiedEmbedding:
        return TiedEmbedding()

    def head_loss(self, dtype, gradients: bool = True) -> TiedHeadLoss:
        """Without ``gradients`` it is for evaluation only."""
        return TiedHeadLoss(dtype)

    def squared_norm(self, counted: list[bool]) -> SquaredNorm:
        return SquaredNorm(counted)

    def adamw(self, state: AdamWState, beta1: float, beta2: float) -> AdamWUpdate:
        return AdamWUpdate(state, beta1, beta2)

    def muon(self, state: MuonState, beta: float, gather=None) -> MuonUpdate:
        return MuonUpdate(state, beta, gather)
