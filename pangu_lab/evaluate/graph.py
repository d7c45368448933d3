"""The two graphs of the scoring engine.

``BranchRows`` runs the network over rows that are packed as trees (see ``rows.py``): the layers are those of
``PanguStage``, only the mask is made from branches instead of documents. ``TokenScores`` is the head, applied to
chosen slots alone, because over a vocabulary of 40000 the head costs as much as several layers.

Shapes are fixed: with inputs of dynamic shape one graph would serve all lengths, but it ran two to three times
slower on a CPU (2 cores, 4 layers × 192).
"""

from __future__ import annotations

from mindspore import nn, ops

from pangu_lab.config import ModelConfig
from pangu_lab.model import parameters as names
from pangu_lab.model.pangu import DTYPES, PanguStage, Weights
from pangu_lab.ops.attention import MASKED
from pangu_lab.parallel.layers import TiedHead


class BranchRows(nn.Cell):
    """ids, positions, branches (batch, slots) int32, order (slots,) = 0, 1, 2 … → (batch·slots, hidden) fp32.

    Slot q sees slot k when k is not after q and k belongs to the shared beginning (branch 0) or to q's branch.
    """

    def __init__(self, config: ModelConfig, weights: Weights):
        super().__init__(auto_prefix=False)
        self.stage = PanguStage(config, weights, seq_length=1)
        self.gather = ops.Gather()
        self.cast = ops.Cast()
        self.dtype = DTYPES[config.softmax_dtype]

    def construct(self, ids, positions, branches, order):
        batch, slots = ids.shape
        causal = ops.reshape(order, (1, 1, 1, slots)) <= ops.reshape(order, (1, 1, slots, 1))
        keys = ops.reshape(branches, (batch, 1, 1, slots))
        same = ops.equal(keys, ops.reshape(branches, (batch, 1, slots, 1)))
        seen = ops.logical_and(causal, ops.logical_or(same, ops.equal(keys, 0)))
        bias = ops.mul(self.cast(ops.logical_not(seen), self.dtype), MASKED)
        stage = self.stage
        x = stage.embedding(ids, positions, order)  # the row keys are for dropout, which is off
        for block in stage.blocks:
            x = block(x, bias, order)
        x = stage.norm(x)
        query = self.gather(stage.query_embedding, ops.reshape(positions, (-1,)), 0)
        return stage.query_layer(x, bias, order, query)


class RouterProbe(nn.Cell):
    """ids, positions (1, n) int32 → the gates of every router, (blocks with experts, n, experts) fp32."""

    def __init__(self, config: ModelConfig, weights: Weights, length: int):
        super().__init__(auto_prefix=False)
        self.stage = PanguStage(config, weights, seq_length=length)
        self.layers = config.moe_layers
        self.choices = config.experts_per_token

    def construct(self, ids, positions):
        stage, bias, found = self.stage, self.stage.bias(positions), ()
        keys = ops.reshape(ids, (-1, 1))  # the row keys are for dropout, which is off
        x = stage.embedding(ids, positions, keys)
        for i in range(len(stage.blocks)):
            block = stage.blocks[i]
            if i in self.layers:
                y = ops.add(x, block.attention(block.norm1(x), bias, keys))
                _, _, chosen, gates = block.feed_forward.router(block.norm2(y))
                total = chosen[0] * gates[:, 0:1]
                for j in range(1, self.choices):
                    total = total + chosen[j] * gates[:, j:j + 1]
                found = found + (ops.expand_dims(total, 0),)
            x = block(x, bias, keys)
        return ops.concat(found)


class TokenScores(nn.Cell):
    """hidden (n, hidden) fp32, targets (n,) int32 → log-probability of each target, and the best there, (n,)."""

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
