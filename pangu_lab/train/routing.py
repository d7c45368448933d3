"""Training with experts: the auxiliary losses join the loss, and the routers' counts go into the events.

The objective of a batch is Σ weight · −log p + Σ over records and blocks of (auxiliary loss · Σ weights of the record).
Divided by the sum of the batch's weights, both terms are means over tokens; the reported loss is only the first term.
With experts spread over ranks, a rank's gradients of its experts are complete for all the tokens they received, and
are summed over the replicas only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from pangu_lab.config import ModelConfig


class RoutedGradientStep(nn.Cell):
    """``GradientStep`` of a model with experts: Σ loss, counts (see ``PanguStage.routed``), gradients."""

    def __init__(self, loss: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.weights = ParameterTuple(weights)
        self.with_gradients = ops.value_and_grad(self._scaled, None, self.weights, has_aux=True)

    def _scaled(self, inputs, positions, samples, labels, weights, scale):
        loss, auxiliary, counts = self.loss.routed(inputs, positions, samples, labels, weights)
        return (loss + auxiliary) * scale, loss, counts

    def construct(self, inputs, positions, samples, labels, weights, scale):
        (_, loss, counts), gradients = self.with_gradients(inputs, positions, samples, labels, weights, scale)
        return loss, counts, gradients


class RoutedStageBackward(nn.Cell):
    """An inner pipeline stage with experts: (x, positions, samples, dy, weights, scale) → dx, counts, gradients.

    The gradient is that of Σ y · dy + auxiliary loss · scale. The first stage gives dx = dy.
    """

    def __init__(self, stage: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.stage, self.is_first = stage, stage.is_first
        self.weights = ParameterTuple(weights)
        self.of_weights = ops.value_and_grad(self._scalar, None, self.weights, has_aux=True)
        self.of_all = ops.value_and_grad(self._scalar, 0, self.weights, has_aux=True)

    def _scalar(self, x, positions, samples, dy, weights, scale):
        y, auxiliary, counts = self.stage.routed(x, positions, samples, weights)
        return ops.ReduceSum()(y * dy) + auxiliary * scale, counts

    def construct(self, x, positions, samples, dy, weights, scale):
        if self.is_first:
            (_, counts), gradients = self.of_weights(x, positions, samples, dy, weights, scale)
            return dy, counts, gradients
        (_, counts), (dx, gradients) = self.of_all(x, positions, samples, dy, weights, scale)
        return dx, counts, gradients


class RoutedLastBackward(nn.Cell):
    """The last pipeline stage with experts: Σ loss, gradient of x, counts, gradients of the weights."""

    def __init__(self, loss: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.weights = ParameterTuple(weights)
        self.with_gradients = ops.value_and_grad(self._scaled, 0, self.weights, has_aux=True)

    def _scaled(self, x, positions, samples, labels, weights, scale):
        loss, auxiliary, counts = self.loss.routed(x, positions, samples, labels, weights)
        return (loss + auxiliary) * scale, loss, counts

    def construct(self, x, positions, samples, labels, weights, scale):
        (_, loss, counts), (dx, gradients) = self.with_gradients(x, positions, samples, labels, weights, scale)
        return loss, dx, counts, gradients


class RoutingCounts:
    """Adds up the counts of this rank's routers during a batch.

    Args:
        model: the whole network's sizes.
        layers: the blocks with experts on this stage.
    """

    def __init__(self, model: ModelConfig, layers: list[int]):
        self.model = model
        self.here = [model.moe_layers.index(layer) for layer in layers]
        self.total = np.zeros((len(model.moe_layers), model.num_experts + 2))

    def add(self, counts) -> None:
        """``counts``: (blocks here, experts + 2), of one micro-batch."""
        self.total[self.here] += counts.asnumpy()

    def take(self, sum_over_ranks, weight_total: float) -> dict[str, Any]:
        """The fields of a ``step`` event for the counts added since the last call."""
        total = np.array(sum_over_ranks(self.total.ravel().tolist())).reshape(self.total.shape)
        self.total[:] = 0.0
        sent = total[:, :-2]
        assigned = np.maximum(sent.sum(1, keepdims=True), 1.0)
        return {
            "expert_load": np.round(sent / assigned, 4).tolist(),
            "drop_rate": round(float(total[:, -2].sum() / assigned.sum()), 4),
            "aux_loss": float(total[:, -1].sum()) / max(weight_total, 1.0),
        }


class CountingStep:
    """A ``RoutedGradientStep`` with the interface of ``GradientStep``; the counts go to ``counts``."""

    def __init__(self, step: RoutedGradientStep, counts: RoutingCounts):
        self.step, self.counts = step, counts

    def __call__(self, *inputs):
        loss, counts, gradients = self.step(*inputs)
        self.counts.add(counts)
        return loss, gradients
