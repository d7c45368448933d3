"""One training step: gradients, and the AdamW update they lead to.

The step is two graphs with a decision between them. ``GradientStep`` runs the network and its backward pass and
gives the gradients of Σ loss · scale; ``UpdateStep`` clips by the global norm and moves the weights. Between the
two the host looks at one number, the norm: an infinite or undefined one means an overflow, and then the second
graph is not run, so an overflowed step changes neither weights nor optimizer states.

AdamW here is exact (Loshchilov & Hutter, arXiv 1711.05101): bias correction included, decay decoupled and not
applied to LayerNorm and biases. MindSpore's ``AdamWeightDecay`` has no bias correction, and ``ops.Adam`` adds epsilon
before it, so epsilon is handed over as eps · √(1 − β2ᵗ).

Gradients pass between graphs as separate arguments: a tuple of tensors handed to a cell becomes a constant of the
graph, which is then compiled anew at every call. Squares are summed row by row, by a product of each row with itself:
``L2Loss`` is as quick but adds one number after the other in fp32, and its error of up to 4e-4 changes with the layout.

On CPUs the norm and the update are C kernels where these can be had (``kernels.py``), and no graphs.
"""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import TrainConfig
from pangu_lab.ops.native.train import Kernels
from pangu_lab.parallel.collectives import AllGather, Group
from pangu_lab.train.kernels import KernelUpdate


class GradientStep(nn.Cell):
    """(batch inputs…, scale) → Σ loss (fp32 scalar) and the gradients of loss · scale, in the order of ``weights``."""

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


class SquaredNorm(nn.Cell):
    """gradients → Σ g², fp32 scalar: not finite exactly when some gradient is not (or the sum overflows)."""

    def __init__(self, counted: list[bool]):
        super().__init__(auto_prefix=False)
        self.counted = counted
        self.product = ops.BatchMatMul(transpose_b=True)
        self.sum = ops.ReduceSum()

    def construct(self, *gradients):
        total = ops.zeros((), mstype.float32)
        for i in range(len(self.counted)):
            if self.counted[i]:
                rows = ops.reshape(ops.cast(gradients[i], mstype.float32), (-1, 1, gradients[i].shape[-1]))
                total = total + self.sum(self.product(rows, rows))
        return total


class AddGradients(nn.Cell):
    """Element by element sum of two lists of gradients, given one after the other."""

    def construct(self, *both):
        total = ()
        half = len(both) // 2
        for i in range(half):
            total = total + (ops.add(ops.cast(both[i], mstype.float32), ops.cast(both[half + i], mstype.float32)),)
        return total


class UpdateStep(nn.Cell):
    """AdamW over all weights, in place.

    Args:
        weights: the parameters, or with optimizer parallelism this rank's rows of them.
        decay: for each, whether weight decay applies.
        moments: (first, second) moment arrays by name to start from; zeros where absent.
        rows: for each, the (first, last + 1) row of the gradient that belongs to it; None for all rows.
    """

    def __init__(self, weights: list[Parameter], decay: list[bool], config: TrainConfig, moments=None, rows=None):
        super().__init__(auto_prefix=False)
        moments = moments or {}
        self.weights = ParameterTuple(weights)
        self.first = ParameterTuple([_moment("adam_m", p, moments) for p in weights])
        self.second = ParameterTuple([_moment("adam_v", p, moments) for p in weights])
        self.decay = decay
        self.rows = rows or [None] * len(weights)
        self.beta1 = Tensor(config.beta1, mstype.float32)
        self.beta2 = Tensor(config.beta2, mstype.float32)
        self.adam = ops.Adam()
        self.mul = ops.Mul()

    def construct(self, factor, lr, decay_factor, beta1_power, beta2_power, eps, *gradients):
        """Scalars, fp32: ``factor`` multiplies the gradients (unscale and clip), ``decay_factor`` is 1 − lr · decay."""
        done = ()
        for i in range(len(self.weights)):
            weight = self.weights[i]
            gradient = gradients[i]
            if self.rows[i] is not None:
                gradient = gradient[self.rows[i][0]:self.rows[i][1]]
            gradient = self.mul(ops.cast(gradient, mstype.float32), factor)
            if self.decay[i]:
                gradient = ops.depend(gradient, ops.assign(weight, self.mul(weight, decay_factor)))
            updated = self.adam(weight, self.first[i], self.second[i], beta1_power, beta2_power, lr, self.beta1,
                                self.beta2, eps, gradient)
            done = done + (updated[0],)
        return ops.depend(factor, done)


def _moment(prefix: str, weight: Parameter, moments) -> Parameter:
    name = f"{prefix}.{weight.name.removeprefix('own.')}"
    value = moments.get(name)
    return Parameter(Tensor(np.zeros(weight.shape, np.float32) if value is None else value), name=name)


def own_rows(weight: Parameter, rows) -> Parameter:
    """The rows of a weight that this rank updates, as a parameter of their own."""
    if rows is None:
        return weight
    return Parameter(Tensor(np.ascontiguousarray(weight.asnumpy()[rows[0]:rows[1]])), name=f"own.{weight.name}")


class GatherWeights(nn.Cell):
    """Optimizer parallelism's second half: every rank's updated rows, in one message, into every rank's weights."""

    def __init__(self, group: Group, pairs):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple([weight for weight, _ in pairs])
        self.own = ParameterTuple([own for _, own in pairs])
        self.shapes = [weight.shape for weight, _ in pairs]
        sizes = [int(np.prod(own.shape)) for _, own in pairs]
        self.ends = [int(end) for end in np.cumsum(sizes)]
        self.starts = [end - size for end, size in zip(self.ends, sizes)]
        self.gather = AllGather(group)
        self.size = group.size
        self.concat = ops.Concat(0)

    def construct(self):
        flat = ()
        for own in self.own:
            flat = flat + (ops.reshape(own, (-1,)),)
        parts = ops.reshape(self.gather(self.concat(flat)), (self.size, -1))
        done = ()
        for i in range(len(self.weights)):
            whole = ops.reshape(parts[:, self.starts[i]:self.ends[i]], self.shapes[i])
            done = done + (ops.assign(self.weights[i], whole),)
        return ops.depend(ops.zeros((), mstype.float32), done)


class AdamW:
    """Clip, learning rate and bias correction around ``UpdateStep``; counts the good steps."""

    masters: dict[str, np.ndarray] = {}  # no weight has its fp32 value elsewhere; see ``offload.py``

    def __init__(self, weights: list[Parameter], decay: list[bool], config: TrainConfig, moments=None, steps: int = 0,
                 rows=None, group: Group | None = None, kernels: Kernels | None = None):
        self.config = config
        self.steps = steps
        self.own, self.gather = weights, None
        if rows is not None and any(part is not None for part in rows):
            self.own = [own_rows(weight, part) for weight, part in zip(weights, rows)]
            self.gather = GatherWeights(group, [(weight, own) for weight, own, part in zip(weights, self.own, rows)
                                                if part is not None])
        self.graph = UpdateStep(self.own, decay, config, moments, rows)
        if kernels is not None:
            self.graph = KernelUpdate(kernels, self.graph, config)

    def update(self, gradients, norm: float, inverse_scale: float, lr: float) -> None:
        """Apply one step. ``norm`` is the global norm of the unscaled gradients."""
        config = self.config
        self.steps += 1
        clip = min(1.0, config.clip_norm / (norm + 1e-6))
        power1, power2 = config.beta1**self.steps, config.beta2**self.steps
        scalars = (clip * inverse_scale, lr, 1.0 - lr * config.weight_decay, power1, power2,
                   config.adam_eps * (1.0 - power2) ** 0.5)
        self.graph(*[Tensor(value, mstype.float32) for value in scalars], *gradients)
        if self.gather is not None:
            self.gather()

    def moments(self) -> dict[str, np.ndarray]:
        """Both moments of every weight, by ``adam_m.NAME`` and ``adam_v.NAME``."""
        return {p.name: p.asnumpy() for p in (*self.graph.first, *self.graph.second)}
