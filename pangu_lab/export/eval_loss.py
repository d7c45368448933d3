"""The graph that scores a text: negative log-likelihoods of whole sequences, without a cache.

It shares every parameter with the generating network, so a bundle holds the weights once.
"""

from __future__ import annotations

import dataclasses

import mindspore as ms
from mindspore import Tensor, ops

from pangu_lab.generate.network import InferenceParts
from pangu_lab.model.pangu import Stack
from pangu_lab.ops.attention import DocumentMask


class EvalLossNetwork(Stack):
    """Summed negative log-likelihood of each sequence of a batch.

    ``construct(ids, positions, labels, weights)``: ids, positions, labels (batch, n) int32, weights (batch, n)
    float32. A position restarts at 0 with each document and attention never looks beyond that. Returns two
    (batch,) float32: Σ weight · −log p(label), in nats, and Σ weight.
    """

    def __init__(self, parts: InferenceParts):
        super().__init__(dataclasses.replace(parts, slots=None))
        self.documents = DocumentMask(parts.config.num_positions)
        self.head = parts.head()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.sum = ops.ReduceSum()
        self.reshape = ops.Reshape()
        self.set_train(False)

    def construct(self, ids, positions, labels, weights):
        batch, n = ids.shape
        mask = self.documents(positions), batch, n
        x, _ = self.rows(self.embedding(ids, positions), positions, mask)
        log_probabilities = self.log_softmax(self.head(x))
        picked = self.reshape(self.pick(log_probabilities, 1, self.reshape(labels, (-1, 1))), (batch, n))
        return 0.0 - self.sum(picked * weights, 1), self.sum(weights, 1)


def eval_loss_inputs() -> tuple[Tensor, ...]:
    """Placeholders of the four inputs: any batch and length."""
    ints = tuple(Tensor(shape=[None, None], dtype=ms.int32) for _ in range(3))
    return (*ints, Tensor(shape=[None, None], dtype=ms.float32))
