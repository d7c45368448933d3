"""Recomputation by pieces: one graph a layer, of which only the input is kept until its backward pass.

MindSpore's ``cell.recompute()`` marks layers inside one graph, and on accelerators that is what is used. Its CPU back
end runs the marked operators again but frees nothing early: the measured peak goes up. Here the layers of a rank are
separate graphs instead. The forward pass keeps each layer's input, the backward pass takes the layers from the
last to the first and computes each anew in its own backward graph, so that at any moment the activations of one
layer are alive, and with ``parallel.optimizer: parameters`` the gathered weights of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from pangu_lab.config import RunConfig
from pangu_lab.model.pangu import PanguLoss, PanguStage, Weights
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.train.backward import LastBackward, StageBackward


def by_pieces(config: RunConfig) -> bool:
    """Whether recomputation is done by the pieces of this module."""
    dense = config.model.num_experts == 1
    return config.parallel.recompute and ms.get_context("device_target") == "CPU" and dense


class Pieces:
    """This rank's layers, one graph each.

    Args:
        parameters: this rank's parameters by name; gradients come in their order.
    """

    def __init__(self, config: RunConfig, weights: Weights, mesh: Mesh, parameters: dict[str, Parameter]):
        model = config.model
        self.stages = [PanguStage(model, weights, mesh, config.train.seed, config.data.seq_length,
                                  layers=range(i, i + 1))
                       for i in mesh.layers(model.num_layers)]
        self.is_first = self.stages[0].is_first
        self.order = {name: place for place, name in enumerate(parameters)}
        self.loss = None
        inner = self.stages
        if mesh.is_last_stage:
            inner, loss = self.stages[:-1], PanguLoss(model, self.stages[-1], mesh)
            self.loss_names = _names(loss)
            self.loss = LastBackward(loss, [parameters[name] for name in self.loss_names])
        self.names = [_names(stage) for stage in inner]
        self.backwards = [StageBackward(stage, [parameters[name] for name in names])
                          for stage, names in zip(inner, self.names)]

    def forward(self, x: Tensor, positions: Tensor, samples: Tensor) -> Tensor:
        """As ``PanguStage``."""
        return self._inputs(x, positions, samples, self.stages)[-1]

    def _inputs(self, x, positions, samples, stages: Sequence[PanguStage]) -> list[Tensor]:
        """The input of each piece, and last the output of all."""
        inputs = [x]
        for stage in stages:
            inputs.append(stage(inputs[-1], positions, samples))
        return inputs

    def backward(self, x: Tensor, positions: Tensor, samples: Tensor, dy: Tensor):
        """As ``StageBackward``: gradients of x and of the parameters."""
        inputs = self._inputs(x, positions, samples, self.stages[:-1])
        return self._back(inputs, positions, samples, dy, {})

    def last_backward(self, x, positions, samples, labels, weights, scale):
        """As ``LastBackward``: Σ loss, gradients of x and of the parameters."""
        inputs = self._inputs(x, positions, samples, self.stages[:-1])
        loss, dy, gradients = self.loss(inputs.pop(), positions, samples, labels, weights, scale)
        return loss, *self._back(inputs, positions, samples, dy, dict(zip(self.loss_names, gradients)))

    def gradients(self, *batch):
        """As ``GradientStep``: Σ loss, and the gradients of the parameters."""
        loss, _, gradients = self.last_backward(*batch)
        return loss, gradients

    def _back(self, inputs: list[Tensor], positions, samples, dy, found: dict[str, Tensor]):
        for piece, names in zip(reversed(self.backwards), reversed(self.names)):
            dy, gradients = piece(inputs.pop(), positions, samples, dy)
            for name, gradient in zip(names, gradients):  # the word embedding is used by the first and the last
                found[name] = ops.add(found[name], gradient) if name in found else gradient
        return dy, tuple(found[name] for name in sorted(found, key=self.order.__getitem__))


def _names(cell: nn.Cell) -> list[str]:
    return [parameter.name for parameter in cell.get_parameters()]
