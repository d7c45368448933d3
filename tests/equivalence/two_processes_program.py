"""What each rank of ``test_two_processes`` runs: every configuration of ``test_paths`` split over two tensor ranks.

The parent has written weights, inputs and the reference's numbers into ``NAME.npz``; a difference raises.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pangu_lab.launch.worker import Rank, run_rank


def check(rank: Rank, folder: Path) -> str:
    import mindspore as ms
    import numpy as np

    from tests.equivalence.test_paths import CLOSE, CONFIGS

    ms.set_context(mode=ms.GRAPH_MODE)
    for name, config in CONFIGS.items():
        given = dict(np.load(folder / f"{name}.npz"))
        weights = {key.removeprefix("w/"): value for key, value in given.items() if key.startswith("w/")}
        for sequence in (False, True) if config.num_experts == 1 else (False,):
            found = loss(rank, config, weights, given, sequence)
            assert abs(found / given["losses"].sum() - 1) < 2e-6, f"{name}: loss {found}, sequence parallel {sequence}"
        if config.num_experts == 1:
            np.testing.assert_allclose(
                logits(rank, config, weights, given["ids"]), given["logits"][0], rtol=0, atol=CLOSE
            )
    return "equal"


def mesh_of(rank: Rank, sequence: bool = False):
    from pangu_lab.config import ParallelConfig
    from pangu_lab.parallel.mesh import Mesh

    return Mesh(ParallelConfig(tensor=rank.world, sequence=sequence), rank.number)


def loss(rank: Rank, config, weights, given, sequence: bool) -> float:
    """Of training, from this rank's shards."""
    from mindspore import Tensor

    from pangu_lab.model.pangu import PanguLoss, PanguStage, Parts, Weights
    from pangu_lab.model.parameters import parameter_specs
    from pangu_lab.parallel.sharding import parameter_shards

    mesh = mesh_of(rank, sequence)
    shards = parameter_shards(parameter_specs(config), mesh, config.num_layers)
    own = Weights({name: shard.of(weights[name]) for name, shard in shards.items()}, mesh)
    cell = PanguLoss(PanguStage(Parts(config, own, mesh, seq_length=given["ids"].shape[1])))
    inputs = (given[name] for name in ("ids", "restarting", "samples", "labels", "counted"))
    return float(cell(*map(Tensor, inputs)).asnumpy())


def logits(rank: Rank, config, weights, ids):
    """(length, vocab) of the first text over the cache: a prompt, then one token after the other."""
    import numpy as np
    from mindspore import Tensor

    from pangu_lab.generate.network import CachedNetwork, cached_parts
    from pangu_lab.parallel.collectives import group_of

    network = CachedNetwork(cached_parts(weights, config, 64, group_of(mesh_of(rank), "tensor")))
    network.set_inputs(*network.dynamic_inputs())
    at, found = np.arange(ids.shape[1], dtype=np.int32)[None], []
    for start, stop in ((0, 9), *((place, place + 1) for place in range(9, ids.shape[1]))):
        part = slice(start, stop)
        rows = np.arange(stop - start, dtype=np.int32)
        inputs = (ids[:1, part], at[:, part], at[:, part], at[:, :stop], rows)
        found.append(network(*(Tensor(np.ascontiguousarray(array)) for array in inputs)).asnumpy())
    return np.concatenate(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    path = Path(parser.parse_args().run)
    run_rank(path, lambda rank: check(rank, path))
