"""The parts of a training step that C kernels do, outside of any graph: the norm of the gradients, and AdamW.

On a CPU a MindSpore tensor and the numpy array that ``asnumpy`` gives are one piece of memory, so both work where the
gradients, weights and moments lie. What the network itself does by kernels is chosen where its cells are made
(``ops/native/cells.py``).
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np

from pangu_lab.config import ModelConfig, TrainConfig
from pangu_lab.ops.native import train as native


def training_kernels(config: ModelConfig) -> Optional[native.Kernels]:
    """The kernels, where they can train this model and this process trains on a CPU."""
    return native.kernels_for(config) if ms.get_context("device_target") == "CPU" else None


class KernelNorm:
    """``SquaredNorm``, called alike; gives a float, summed in double precision."""

    def __init__(self, kernels: native.Kernels, counted: list[bool]):
        self.kernels, self.counted = kernels, counted

    def __call__(self, *gradients) -> float:
        return native.squared_norm(self.kernels, [contiguous(gradient.asnumpy())
                                                  for gradient, counts in zip(gradients, self.counted) if counts])


class KernelUpdate:
    """``UpdateStep``, called alike, in one pass over memory.

    Args:
        graph: whose weights, moments and settings these are; it is not compiled.
    """

    def __init__(self, kernels: native.Kernels, graph, config: TrainConfig):
        self.kernels, self.config = kernels, config
        self.weights, self.first, self.second = graph.weights, graph.first, graph.second
        self.decay, self.rows = graph.decay, graph.rows

    def __call__(self, *given) -> None:
        factor, lr, decay_factor, beta1_power, beta2_power, eps = map(float, given[:6])
        rate = lr * (1.0 - beta2_power) ** 0.5 / (1.0 - beta1_power)
        tensors = []
        for i, gradient in enumerate(given[6:]):
            gradient = gradient.asnumpy()
            if self.rows[i] is not None:
                gradient = gradient[self.rows[i][0]:self.rows[i][1]]
            places = (parameter.asnumpy() for parameter in (self.weights[i], self.first[i], self.second[i]))
            tensors.append((*places, contiguous(gradient), self.decay[i]))
        native.update(self.kernels, tensors, factor, rate, decay_factor, self.config.beta1, self.config.beta2, eps)


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array, or a copy of it, in one piece and fp32."""
    return np.ascontiguousarray(array, np.float32)
