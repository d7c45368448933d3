"""Backward graphs for a part of the network, for callers that run the parts one after the other.

Each recomputes its part of the forward pass from the part's input, so that its arguments are all it needs.
"""

from __future__ import annotations

from mindspore import Parameter, ParameterTuple, nn, ops


class StageBackward(nn.Cell):
    """Inner part: (x, positions, samples, dy) → gradients of x and of the weights. In the first part dx = dy."""

    def __init__(self, stage: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.stage = stage
        self.is_first = stage.is_first
        self.weights = ParameterTuple(weights)
        self.of_weights = ops.GradOperation(get_by_list=True, sens_param=True)
        self.of_all = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, x, positions, samples, dy):
        if self.is_first:
            return dy, self.of_weights(self.stage, self.weights)(x, positions, samples, dy)
        inputs, gradients = self.of_all(self.stage, self.weights)(x, positions, samples, dy)
        return inputs[0], gradients


class LastBackward(nn.Cell):
    """Last part: (x, positions, samples, labels, weights, scale) → Σ loss, gradients of x and of the weights."""

    def __init__(self, loss: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.weights = ParameterTuple(weights)
        self.with_gradients = ops.value_and_grad(self._scaled, 0, self.weights, has_aux=True)

    def _scaled(self, x, positions, samples, labels, weights, scale):
        loss = self.loss(x, positions, samples, labels, weights)
        return loss * scale, loss

    def construct(self, x, positions, samples, labels, weights, scale):
        (_, loss), (dx, gradients) = self.with_gradients(x, positions, samples, labels, weights, scale)
        return loss, dx, gradients
