"""What the ranks do with their gradients: sum them over the data dimension, and share out the optimizer's work.

All gradients travel in one flat message, because on every back end a few large collectives cost less than many small
ones.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn, ops
from mindspore import dtype as mstype

from pangu_lab.parallel.collectives import AllReduce, Group


class SumGradients(nn.Cell):
    """The gradients' sums over the group, fp32, by one all-reduce. Shapes as given."""

    def __init__(self, group: Group, shapes: list[tuple[int, ...]]):
        super().__init__(auto_prefix=False)
        self.reduce = AllReduce(group)
        self.shapes = shapes
        self.sizes = [int(np.prod(shape)) for shape in shapes]
        self.starts = [int(start) for start in np.cumsum([0, *self.sizes[:-1]])]
        self.concat = ops.Concat(0)

    def construct(self, *gradients):
        flat = ()
        for gradient in gradients:
            flat = flat + (ops.reshape(ops.cast(gradient, mstype.float32), (-1,)),)
        total = self.reduce(self.concat(flat))
        result = ()
        for i in range(len(self.shapes)):
            part = total[self.starts[i]:self.starts[i] + self.sizes[i]]
            result = result + (ops.reshape(part, self.shapes[i]),)
        return result
