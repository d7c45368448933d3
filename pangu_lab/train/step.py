"""One training step: gradients, and the AdamW update they lead to.

The step is two graphs with a decision between them. ``GradientStep`` runs the network and its backward pass and
returns the gradients of Σ loss · scale; ``AdamW`` clips by the global norm and updates the weights. Between the two the
host checks one number, the norm: if it is infinite or NaN there was an overflow, and the second graph is not run, so an
overflowed step changes neither weights nor optimizer states.

Gradients pass between graphs as separate arguments: a tuple of tensors passed to a cell becomes a constant of the
graph, which is then recompiled at every call.

The back end makes the norm and the update: graphs (``ops/adamw.py``), or C kernels without graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import TrainConfig
from pangu_lab.ops.adamw import AdamWState
from pangu_lab.ops.backend import Backend
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import GatherParts, Group


class GradientStep(nn.Cell):
    """(batch inputs …, scale) → Σ loss (fp32 scalar), gradients of loss · scale in the order of ``weights``."""

    def __init__(self, loss: nn.Cell, weights: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.weights = ParameterTuple(weights)
        self.with_gradients = ops.value_and_grad(self._scaled, None, self.weights, has_aux=True)

    def _scaled(self, inputs, positions, samples, labels, weights, scale):
        loss = self.loss(inputs, positions, samples, labels, weights)
        return loss * scale, loss

    def construct(self, inputs, positions, samples, labels, weights, scale):
        (_, loss), gradients = self.with_gradients(inputs, positions, samples, labels, weights, scale)
        return loss, gradients


class AddGradients(nn.Cell):
    """Elementwise sum of two lists of gradients, given one after the other."""

    def construct(self, *both):
        total = ()
        half = len(both) // 2
        for i in range(half):
            total = total + (ops.add(ops.cast(both[i], mstype.float32), ops.cast(both[half + i], mstype.float32)),)
        return total


def own_rows(weight: Parameter, rows) -> Parameter:
    """The rows of a weight that this rank updates, as a separate parameter."""
    if rows is None:
        return weight
    return Parameter(Tensor(np.ascontiguousarray(weight.asnumpy()[rows[0] : rows[1]])), name=f"own.{weight.name}")


def gathers(
    group: Group, weights: Sequence[Parameter], own: Sequence[Parameter], rows: Sequence
) -> list[GatherWeights]:
    """One message for each data type, with the weights of which other ranks update some rows."""
    pairs: dict[Any, list] = {}
    for weight, mine, part in zip(weights, own, rows):
        if part is not None:
            pairs.setdefault(weight.dtype, []).append((weight, mine))
    return [GatherWeights(group, items) for items in pairs.values()]


class GatherWeights(nn.Cell):
    """The second half of optimizer parallelism: sends every rank's updated rows, in one message, to all ranks."""

    def __init__(self, group: Group, pairs):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple([weight for weight, _ in pairs])
        self.own = ParameterTuple([own for _, own in pairs])
        self.gather = GatherParts(group, [own.shape for _, own in pairs], [0] * len(pairs))

    def construct(self):
        parts = ()
        for own in self.own:
            parts = parts + (own,)
        wholes = self.gather(*parts)
        done = ()
        for i in range(len(self.weights)):
            done = done + (ops.assign(self.weights[i], wholes[i]),)
        return ops.depend(ops.zeros((), mstype.float32), done)


class AdamW:
    """Clipping, learning rate and bias correction around the back end's update; counts the steps without overflow.

    Args:
        moments, rows: see ``AdamWState.of``.
        group: with ``rows``, the ranks that update the other rows.
    """

    masters: dict[str, np.ndarray] = {}  # fp32 master weights: none here; see ``offload.py``

    def __init__(
        self,
        weights: list[Parameter],
        decay: list[bool],
        config: TrainConfig,
        moments=None,
        steps: int = 0,
        rows=None,
        group: Group | None = None,
        backend: Backend = Portable(),
    ):
        self.config = config
        self.steps = steps
        rows = rows or [None] * len(weights)
        self.own = [own_rows(weight, part) for weight, part in zip(weights, rows)]
        self.gathers = gathers(group, weights, self.own, rows)
        self.state = AdamWState.of(self.own, decay, moments, rows)
        self.apply = backend.adamw(self.state, config.beta1, config.beta2)

    def update(self, gradients, norm: float, inverse_scale: float, lr: float) -> None:
        """Apply one step. ``norm`` is the global norm of the unscaled gradients."""
        config = self.config
        self.steps += 1
        clip = min(1.0, config.clip_norm / (norm + 1e-6))
        power1, power2 = config.beta1**self.steps, config.beta2**self.steps
        scalars = (
            clip * inverse_scale,
            lr,
            1.0 - lr * config.weight_decay,
            power1,
            power2,
            config.adam_eps * (1.0 - power2) ** 0.5,
        )
        self.apply(*[Tensor(value, mstype.float32) for value in scalars], *gradients)
        for gather in self.gathers:
            gather()

    def moments(self) -> dict[str, np.ndarray]:
        """Both moments of every weight, by ``adam_m.NAME`` and ``adam_v.NAME``."""
        return {p.name: p.asnumpy() for p in (*self.state.first, *self.state.second)}
