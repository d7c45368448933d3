"""What each rank of ``test_collectives`` runs: every collective and its gradient against numpy; exits 1 on a difference."""

from __future__ import annotations

import argparse
from pathlib import Path

from pangu_lab.launch.worker import run_rank


def check(place) -> str:
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    from pangu_lab.parallel import collectives
    from pangu_lab.parallel.collectives import make_group

    class Gradient(nn.Cell):
        def __init__(self, cell):
            super().__init__()
            self.cell, self.grad = cell, ops.GradOperation(sens_param=True)

        def construct(self, x, dout):
            return self.grad(self.cell)(x, dout)

    ms.set_context(mode=ms.GRAPH_MODE)
    rank, world = place.rank, place.world
    pairs = [tuple(range(world))] + ([(0, 1), (2, 3)] if world == 4 else [])
    for ranks in pairs:
        if rank not in ranks:
            continue
        group, n = make_group(ranks, rank), len(ranks)
        everyone = np.random.default_rng(n).standard_normal((n, 2 * n, 3)).astype(np.float32)
        gradients = np.random.default_rng(9).standard_normal((n, 2 * n, 3)).astype(np.float32)
        x, mine, total = everyone[group.index], group.index, everyone.sum(0)
        parts = slice(2 * mine, 2 * mine + 2)
        swapped = lambda a: np.concatenate([a[j][parts] for j in range(n)])  # noqa: E731
        big = np.concatenate(list(np.random.default_rng(8).standard_normal((n, 2 * n * n, 3)).astype(np.float32)))
        big = big.reshape(n, 2 * n * n, 3)
        cases = {
            "AllReduce": (collectives.AllReduce(group), total, gradients[mine], gradients[mine]),
            "ReduceGradient": (collectives.ReduceGradient(group), x, gradients[mine], gradients.sum(0)),
            "AllGather": (collectives.AllGather(group), everyone.reshape(-1, 3), big[mine],
                          big.sum(0)[mine * 2 * n:(mine + 1) * 2 * n]),
            "ReduceScatter": (collectives.ReduceScatter(group), total[parts], gradients[mine][:2],
                              gradients[:, :2].reshape(-1, 3)),
            "AllToAll": (collectives.AllToAll(group), swapped(everyone), gradients[mine], swapped(gradients)),
            "Broadcast": (collectives.Broadcast(group, 1), everyone[1], gradients[mine],
                          gradients.sum(0) if mine == 1 else np.zeros_like(x)),
        }
        for name, (cell, want, dout, want_gradient) in cases.items():
            assert np.allclose(cell(Tensor(x)).asnumpy(), want, atol=1e-5), f"{name} forward over {ranks}"
            got = Gradient(cell)(Tensor(x), Tensor(np.ascontiguousarray(dout))).asnumpy()
            assert np.allclose(got, want_gradient, atol=1e-5), f"{name} gradient over {ranks}"
        if n == 2:
            assert (collectives.Exchange(group)(Tensor(x)).asnumpy() == everyone[1 - mine]).all(), "Exchange"
        assert collectives.Barrier(group)(Tensor(1.0, ms.float32)).asnumpy() == n, "Barrier"
    return "checked"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    run_rank(Path(parser.parse_args().run), check)
