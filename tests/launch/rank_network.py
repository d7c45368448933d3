"""The network of the launch tests; MindSpore is imported when it is made, after the rank has joined."""

from __future__ import annotations


def make_network(broken: bool = False):
    import mindspore as ms
    from mindspore import nn, ops

    ms.set_context(mode=ms.GRAPH_MODE)

    class Sum(nn.Cell):
        def __init__(self):
            super().__init__()
            self.all_reduce = ops.AllReduce()
            self.product = ops.MatMul()
            self.broken = broken

        def construct(self, x):
            if self.broken:
                x = self.product(x, x)
            return self.all_reduce(x)

    return Sum()
