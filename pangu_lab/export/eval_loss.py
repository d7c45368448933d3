"""The graph that measures a text: negative log-likelihoods of whole sequences, without a cache.

It shares every parameter with the generating network, so a bundle holds the weights once.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from pangu_lab.generate.network import MASKED, CachedNetwork


class EvalLossNetwork(nn.Cell):
    """Summed negative log-likelihood of each sequence of a batch.

    ``construct(ids, positions, labels, weights)``: ids, positions, labels (batch, n) int32, weights (batch, n)
    float32. A position restarts at 0 with each document and attention never looks beyond that. Returns two
    (batch,) float32: Σ weight · −log p(label), in nats, and Σ weight.
    """

    def __init__(self, network: CachedNetwork):
        super().__init__(auto_prefix=False)
        self.network = network
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.sum = ops.ReduceSum()
        self.reshape = ops.Reshape()
        self.set_train(False)

    def construct(self, ids, positions, labels, weights):
        batch, n = ids.shape
        net = self.network
        flat = self.reshape(positions, (-1,))
        index = net.index[:n]
        keys, queries = self.reshape(index, (1, 1, 1, n)), self.reshape(index, (1, 1, n, 1))
        first = queries - self.reshape(positions, (batch, 1, n, 1))
        mask = ops.cast(ops.logical_or(keys > queries, keys < first), ms.float32) * MASKED
        x = net.embed(self.reshape(ids, (-1,)), flat)
        for block in net.blocks:
            x = block.without_cache(x, x, mask, batch, n)
        x = net.query_layer.without_cache(net.final_norm(x), net.gather(net.queries, flat, 0), mask, batch, n)
        told = self.log_softmax(net.head(x))
        picked = self.reshape(self.pick(told, 1, self.reshape(labels, (-1, 1))), (batch, n))
        return 0.0 - self.sum(picked * weights, 1), self.sum(weights, 1)


def eval_loss_inputs() -> tuple[Tensor, ...]:
    """Placeholders of the four inputs: any batch and length."""
    ints = tuple(Tensor(shape=[None, None], dtype=ms.int32) for _ in range(3))
    return (*ints, Tensor(shape=[None, None], dtype=ms.float32))
