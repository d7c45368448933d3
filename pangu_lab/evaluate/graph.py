"""The graphs of the scoring engine.

``BranchRows`` runs the network over rows that are packed as trees (see ``rows.py``): only its attention mask differs,
which is made from branches instead of documents. ``TokenScores`` is the head, applied to chosen slots alone, because
over a vocabulary of 40000 the head costs as much as several layers.

Shapes are fixed: one graph with dynamic shapes would serve all lengths, but it ran two to three times slower on a CPU
(2 cores, 4 layers × 192).
"""

from __future__ import annotations

from mindspore import nn, ops

from pangu_lab.config import ModelConfig
from pangu_lab.model import parameters as names
from pangu_lab.model.moe import ExpertsWithGates
from pangu_lab.model.pangu import Parts, Stack, Weights
from pangu_lab.model.parts import DTYPES
from pangu_lab.ops.attention import BranchMask
from pangu_lab.parallel.layers import TiedHead


class BranchRows(Stack):
    """ids, positions, branches (batch, slots) int32, order (slots,) = 0, 1, 2 … → (batch·slots, hidden) fp32.

    Slot q sees slot k when k is not after q and k belongs to the shared prefix (branch 0) or to q's branch.
    """

    def __init__(self, config: ModelConfig, weights: Weights):
        super().__init__(Parts(config, weights))
        self.branches = BranchMask(DTYPES[config.softmax_dtype])

    def construct(self, ids, positions, branches, order):
        return self.rows(self.embedding(ids, positions), positions, self.branches(branches, order))[0]


class RouterProbe(Stack):
    """ids, positions (1, n) int32 → the gates of every router, (blocks with experts, n, experts) fp32."""

    def __init__(self, config: ModelConfig, weights: Weights, length: int):
        parts = Parts(config, weights, seq_length=length, experts=ExpertsWithGates)
        super().__init__(parts)
        self.documents = parts.documents()

    def construct(self, ids, positions):
        _, gates = self.rows(self.embedding(ids, positions), positions, self.documents(positions))
        blocks = ()
        for gate in gates:
            blocks = blocks + (ops.expand_dims(gate, 0),)
        return ops.concat(blocks)


class TokenScores(nn.Cell):
    """hidden (n, hidden) fp32, targets (n,) int32 → log-probability of each target and of the likeliest token, (n,)."""

    def __init__(self, config: ModelConfig, weights: Weights):
        super().__init__(auto_prefix=False)
        self.head = TiedHead(weights, names.WORD, DTYPES[config.compute_dtype])
        self.log_softmax = ops.LogSoftmax(-1)
        self.gather = ops.GatherD()
        self.max = ops.ReduceMax()

    def construct(self, hidden, targets):
        log_probs = self.log_softmax(self.head(hidden))
        chosen = ops.reshape(self.gather(log_probs, 1, ops.reshape(targets, (-1, 1))), (-1,))
        return chosen, self.max(log_probs, -1)
