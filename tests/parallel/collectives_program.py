"""What each rank of ``test_collectives`` runs; exits 1 on a difference.

Every collective and its gradient against numpy, and the masks of dropout against those of a single process.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pangu_lab.launch.worker import run_rank


def check(rank) -> str:
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
    rank, world = rank.number, rank.world
    pairs = [tuple(range(world))] + ([(0, 1), (2, 3)] if world == 4 else [])
    for ranks in pairs:
        if rank not in ranks:
            continue
        group, n = make_group(ranks, rank), len(ranks)
        everyone = np.random.default_rng(n).standard_normal((n, 2 * n, 3)).astype(np.float32)
        gradients = np.random.default_rng(9).standard_normal((n, 2 * n, 3)).astype(np.float32)
        x, mine, total = everyone[group.index], group.index, everyone.sum(0)
        parts = slice(2 * mine, 2 * mine + 2)
        swapped = lambda a: np.concatenate([a[j][parts] for j in range(n)])
        big = np.concatenate(list(np.random.default_rng(8).standard_normal((n, 2 * n * n, 3)).astype(np.float32)))
        big = big.reshape(n, 2 * n * n, 3)
        cases = {
            "AllReduce": (collectives.AllReduce(group), total, gradients[mine], gradients[mine]),
            "ReduceGradient": (collectives.ReduceGradient(group), x, gradients[mine], gradients.sum(0)),
            "AllGather": (
                collectives.AllGather(group),
                everyone.reshape(-1, 3),
                big[mine],
                big.sum(0)[mine * 2 * n : (mine + 1) * 2 * n],
            ),
            "ReduceScatter": (
                collectives.ReduceScatter(group),
                total[parts],
                gradients[mine][:2],
                gradients[:, :2].reshape(-1, 3),
            ),
            "AllToAll": (collectives.AllToAll(group), swapped(everyone), gradients[mine], swapped(gradients)),
        }
        for name, (cell, want, dout, want_gradient) in cases.items():
            assert np.allclose(cell(Tensor(x)).asnumpy(), want, atol=1e-5), f"{name} forward over {ranks}"
            got = Gradient(cell)(Tensor(x), Tensor(np.ascontiguousarray(dout))).asnumpy()
            assert np.allclose(got, want_gradient, atol=1e-5), f"{name} gradient over {ranks}"
        if n == 2:
            check_messages(collectives, group, Gradient, everyone, gradients)
    for sequence in (False, True):
        check_masks(rank, world, sequence)
    return "checked"


def check_messages(collectives, group, gradient_of, everyone, gradients) -> None:
    """Messages between two ranks: what arrives, and what gradient goes back."""
    from mindspore import Tensor

    mine, other, shape = group.index, 1 - group.index, everyone[0].shape
    exchange = collectives.Exchange(group, shape)
    assert (exchange(Tensor(everyone[mine])).asnumpy() == everyone[other]).all(), "Exchange forward"
    got = gradient_of(exchange)(Tensor(everyone[mine]), Tensor(gradients[mine])).asnumpy()
    assert (got == gradients[other]).all(), "Exchange gradient"


def check_masks(rank: int, world: int, sequence: bool) -> None:
    """Under tensor parallelism: what ranks hold alike is masked alike, and what is split by its part of the whole mask."""
    import numpy as np
    from mindspore import Tensor

    from pangu_lab.config import ModelConfig, ParallelConfig
    from pangu_lab.model.pangu import Layer, Parts, Weights
    from pangu_lab.model.parameters import initial_weights
    from pangu_lab.parallel.mesh import Mesh

    config = ModelConfig(num_layers=2, hidden_size=32, num_heads=4, num_positions=8, vocab_size=64, dropout_rate=0.5)
    weights = Weights(initial_weights(config, 1))
    split = Mesh(ParallelConfig(tensor=world, sequence=sequence), rank)
    single, mine = (Layer(Parts(config, weights, mesh, seed=7), 0) for mesh in (Mesh(), split))
    batch, seq, heads = 3, 8, config.num_heads // world
    keys = Tensor(np.random.default_rng(0).integers(-(2**31), 2**31, (batch * seq, 1)).astype(np.int32))
    whole, part = (
        layer.attention.attend._kept(keys, batch, seq).asnumpy().reshape(batch, -1, seq, seq)
        for layer in (single, mine)
    )
    assert (part == whole[:, rank * heads : (rank + 1) * heads]).all(), "a rank's heads have their part of the mask"
    assert all((whole[:, 0] != whole[:, head]).any() for head in (1, 2, 3)), "no two heads share a mask"
    rows = batch * seq // world if sequence else batch * seq
    first = rank * rows if sequence else 0
    for name in ("dropout1", "dropout2"):
        whole = getattr(single, name).mask(keys, config.hidden_size).asnumpy()
        part = getattr(mine, name).mask(mine.own_rows(keys), config.hidden_size).asnumpy()
        assert (part == whole[first : first + rows]).all() and 0.4 < (whole == 0).mean() < 0.6, f"mask of {name}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    run_rank(Path(parser.parse_args().run), check)
