"""Pipeline parallelism: micro-batches through the stages in the 1F1B order (Narayanan et al., arXiv 2104.04473).

Every rank runs the schedule of its own stage on the host: a few warm-up forward passes, then one forward and one
backward pass in turn, then the remaining backward passes. Of each micro-batch a stage keeps only the *input* and
recomputes its layers in the backward graph, which therefore needs nothing but its arguments. Stage i of p, counted from
0, keeps at most p − i inputs.

Neighbours communicate through ``Exchange``, in which both directions are one collective: in the steady state a stage
sends its output up and receives a gradient at the same time, so no two stages can deadlock. The word embedding is on
the first stage and on the last; its gradients are summed over the two, which keeps both copies equal.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.parallel.collectives import AllReduce, Exchange, Group, group_of, make_group
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.train.backward import LastBackward, StageBackward
from pangu_lab.train.recompute import Pieces
from pangu_lab.train.routing import RoutedLastBackward, RoutedStageBackward, RoutingCounts
from pangu_lab.train.step import AddGradients


class Neighbours:
    """Exchanges with the previous and the next stage. A direction that does not exist gives None."""

    def __init__(self, mesh: Mesh):
        stage = mesh.index("pipeline")
        self.previous = None if mesh.is_first_stage else Exchange(_pair(mesh, stage - 1))
        self.next = None if mesh.is_last_stage else Exchange(_pair(mesh, stage))

    def up(self, output, shape):
        """Send our output (or None) to the next stage, and receive its gradient."""
        return None if self.next is None else self.next(_zeros(shape) if output is None else output)

    def down(self, gradient, shape):
        """Send our gradient (or None) to the previous stage, and receive its output."""
        return None if self.previous is None else self.previous(_zeros(shape) if gradient is None else gradient)


def _pair(mesh: Mesh, lower: int) -> Group:
    ranks = (mesh.rank_at(pipeline=lower), mesh.rank_at(pipeline=lower + 1))
    return make_group(ranks, mesh.rank)


def _zeros(shape) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def _rows_shape(mesh: Mesh, positions: Tensor, hidden: int) -> tuple[int, int]:
    """The shape of what neighbours exchange: this tensor rank's rows."""
    batch, seq = positions.shape
    return batch * seq // mesh.row_parts, hidden


class PipelineGradients:
    """The gradients of a batch, through this rank's part of the 1F1B schedule.

    Args:
        mesh: the layout.
        stage: this rank's layers.
        loss: the stage with the loss on top, used on the last stage.
        weights: this rank's parameters by name.
        word: the name of the word embedding among them.
        log: called with ("step", 0) when a batch begins, ("forward" or "backward", micro-batch) when a pass begins, and
            ("wait", micro-batch) when it has ended; for plots of the schedule.
        counts: receives the routers' counts, if this stage has experts.
        pieces: the stage layer by layer, to recompute each from its own input.
    """

    def __init__(
        self,
        mesh: Mesh,
        stage: nn.Cell,
        loss: nn.Cell,
        weights: dict[str, Parameter],
        word: str,
        hidden: int,
        log=lambda kind, number: None,
        counts: RoutingCounts | None = None,
        pieces: Pieces | None = None,
    ):
        self.mesh, self.stage, self.hidden, self.log = mesh, stage, hidden, log
        parameters = list(weights.values())
        self.is_last = mesh.is_last_stage
        self.counts = counts if stage.moe_layers else None
        if pieces is not None:
            self.stage, self.backward = pieces.forward, pieces.last_backward if self.is_last else pieces.backward
        elif self.counts is not None:
            self.backward = (
                RoutedLastBackward(loss, parameters) if self.is_last else RoutedStageBackward(stage, parameters)
            )
        else:
            self.backward = LastBackward(loss, parameters) if self.is_last else StageBackward(stage, parameters)
        self.neighbours = Neighbours(mesh)
        self.add = AddGradients()
        self.word = list(weights).index(word) if word in weights else None
        if self.word is not None:
            ends = tuple(mesh.rank_at(pipeline=stage) for stage in (0, mesh.size("pipeline") - 1))
            self.sum_word = AllReduce(make_group(ends, mesh.rank))

    def __call__(self, parts: list[list[Tensor]], scale: Tensor):
        """``parts``: for each micro-batch inputs, positions, samples, labels, weights → Σ loss here, gradients."""
        self.parts, self.scale, self.loss, self.gradients = parts, scale, 0.0, None
        self.kept: deque = deque()
        self.most_kept = 0
        self.log("step", 0)
        self._schedule(len(parts), _rows_shape(self.mesh, parts[0][1], self.hidden))
        if self.word is not None:
            gradients = list(self.gradients)
            gradients[self.word] = self.sum_word(ops.cast(gradients[self.word], mstype.float32))
            self.gradients = tuple(gradients)
        return self.loss, self.gradients

    def _schedule(self, count: int, shape) -> None:
        up, down = self.neighbours.up, self.neighbours.down
        warmup = min(count, self.mesh.size("pipeline") - 1 - self.mesh.index("pipeline"))
        for number in range(warmup):
            up(self._forward(number, down(None, shape)), shape)
        x = down(None, shape) if count > warmup else None
        for number in range(warmup, count):
            dy = up(self._forward(number, x), shape)
            dx = self._backward(number - warmup, dy)
            x = down(dx, shape) if self.neighbours.previous is not None else None
        for number in range(count - warmup, count):
            down(self._backward(number, up(None, shape)), shape)

    def _forward(self, number: int, received):
        """Keep the input for the backward pass and return the output; the last stage computes it there."""
        x = self.parts[number][0] if received is None else received
        self.kept.append(x)
        self.most_kept = max(self.most_kept, len(self.kept))
        if self.is_last:
            return None
        self.log("forward", number)
        output = self.stage(x, *self.parts[number][1:3])
        self.log("wait", number)
        return output

    def _backward(self, number: int, dy):
        x, inputs = self.kept.popleft(), self.parts[number]
        self.log("backward", number)
        if self.is_last:
            loss, dx, *routing, gradients = self.backward(x, *inputs[1:], self.scale)
            self.loss += float(loss.asnumpy())
        elif self.counts is None:
            routing, (dx, gradients) = [], self.backward(x, *inputs[1:3], dy)
        else:
            dx, *routing, gradients = self.backward(x, *inputs[1:3], dy, inputs[4], self.scale)
        for counts in routing:
            self.counts.add(counts)
        self.gradients = gradients if self.gradients is None else self.add(*self.gradients, *gradients)
        self.log("wait", number)
        return dx


class PipelineLoss:
    """Held-out loss through the stages: called like ``PanguLoss``, returns the same number on every rank."""

    def __init__(self, mesh: Mesh, stage: nn.Cell, loss: nn.Cell, hidden: int):
        self.mesh, self.stage, self.loss, self.hidden = mesh, stage, loss, hidden
        self.neighbours = Neighbours(mesh)
        self.total = AllReduce(group_of(mesh, "pipeline"))

    def __call__(self, inputs, positions, samples, labels, weights) -> Tensor:
        shape = _rows_shape(self.mesh, positions, self.hidden)
        received = self.neighbours.down(None, shape)
        x = inputs if received is None else received
        if self.mesh.is_last_stage:
            return self.total(ops.reshape(self.loss(x, positions, samples, labels, weights), (1,)))
        self.neighbours.up(self.stage(x, positions, samples), shape)
        return self.total(_zeros((1,)))
