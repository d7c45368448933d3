"""Two processes with one thread each beside one process with two, at the yardstick: data and tensor parallelism.

The same global batch, so the same work. Target of dp2: at least 0.85 × the single process. Each round starts both ways
anew (compilation is not counted) and takes the median step of each; the ratio is single / parallel seconds.

The share of a step in collectives: of dp2 the time from a rank's own gradients to the sums, the wait for the other rank in
it; of tp2, whose collectives are inside the graph, their number and size taken from a step's graph and timed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

WARM_UP, STEPS = 3, 8
LAYOUTS = {"single": {}, "dp2": {"parallel.data": 2}, "tp2": {"parallel.tensor": 2}}


def configuration(layout: str):
    """The yardstick (preset ``small`` with its own batch) under a layout."""
    from pangu_lab.presets import preset
    from tests.benchmarks.train_speed import SIZES

    layers, hidden, heads, seq, batch, vocab = SIZES["yardstick"]
    return preset("small").replace(
        **{
            "model.num_layers": layers,
            "model.hidden_size": hidden,
            "model.num_heads": heads,
            "model.vocab_size": vocab,
            "model.num_positions": seq,
            "data.seq_length": seq,
            "data.batch_size": batch,
            "model.dropout_rate": 0.0,
            **LAYOUTS[layout],
        }
    )


def random_batch(config):
    """A data rank's part of a batch of random tokens."""
    import numpy as np

    from pangu_lab.data import Batch

    data = config.parallel.data
    rows, seq, vocab = config.data.batch_size // data, config.data.seq_length, config.model.vocab_size
    ids, labels = np.random.default_rng(0).integers(0, vocab, (2, rows, seq)).astype(np.int32)
    return Batch(
        ids,
        labels,
        np.tile(np.arange(seq, dtype=np.int32), (rows, 1)),
        np.ones((rows, seq), np.float32),
        np.arange(rows, dtype=np.int32),
        float(rows * seq * data),
    )


def measured(run: Path, place) -> str:
    """What each rank does: some steps of the trainer, each timed, and the collectives of one."""
    import mindspore as ms

    from pangu_lab.launch.worker import read_config
    from pangu_lab.parallel.mesh import Mesh
    from pangu_lab.train.loop import Trainer
    from pangu_lab.train.starting import starting_values

    ms.set_context(mode=ms.GRAPH_MODE)
    config = read_config(run)
    mesh = Mesh(config.parallel, place.rank)
    batch = random_batch(config)
    trainer = Trainer(config, None, [0], None, mesh)
    trainer.build(starting_values(config))
    spent = timed(trainer.ranks, "sum_gradients")
    steps = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        trainer.train_batch(batch)
        steps.append(time.perf_counter() - started)
    seconds = statistics.median(steps[WARM_UP:])
    inside = tensor_collectives(config, mesh) if mesh.size("tensor") > 1 else 0.0
    found = {"seconds": seconds, "collectives": statistics.median(spent[WARM_UP:]) + inside}
    if mesh.size("data") > 1:
        found.update(sums_alone(mesh, [tuple(parameter.shape) for parameter in trainer.parameters]))
    (run / f"measured-{place.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return "measured"


def timed(owner, name: str) -> list[float]:
    """Seconds of every call of a method, from when its inputs are computed."""
    method, spent = getattr(owner, name), []

    def call(gradients):
        for gradient in gradients:
            gradient.asnumpy()  # else the wait for the backward pass would count as communication
        started = time.perf_counter()
        result = method(gradients)
        spent.append(time.perf_counter() - started)
        return result

    setattr(owner, name, call)
    return spent


def tensor_collectives(config, mesh) -> float:
    """Seconds of a step's all-reduces of rows × hidden, one after the other: two a layer forward, two backward, and one each
    way at embedding and head."""
    import numpy as np
    from mindspore import Tensor

    from pangu_lab.parallel.collectives import AllReduce, group_of

    rows = config.data.batch_size * config.data.seq_length
    x = Tensor(np.ones((rows, config.model.hidden_size), np.float32))
    reduce, count = AllReduce(group_of(mesh, "tensor")), 4 * config.model.num_layers + 2
    reduce(x).asnumpy()
    started = time.perf_counter()
    for _ in range(count):
        reduce(x).asnumpy()
    return time.perf_counter() - started


def sums_alone(mesh, shapes) -> dict[str, float]:
    """Seconds of the gradients' sums when nobody waits for anybody: the way that is used, and MindSpore's all-reduce."""
    import mindspore as ms
    import numpy as np

    from pangu_lab.parallel.collectives import group_of
    from pangu_lab.parallel.gradients import SumGradients, sum_gradients_over

    gradients, group, result = [ms.Tensor(np.ones(shape, np.float32)) for shape in shapes], group_of(mesh, "data"), {}
    for name, kind in (("sum", sum_gradients_over), ("sum_by_all_reduce", SumGradients)):
        add, times = kind(group, shapes), []
        for _ in range(WARM_UP + STEPS):
            started = time.perf_counter()
            add(*gradients)[-1].asnumpy()
            times.append(time.perf_counter() - started)
        result[name] = statistics.median(times[WARM_UP:])
    return result


def one_round(layout: str, folder: Path) -> dict:
    """Seconds of a step, and of its collectives, of the slower rank."""
    from pangu_lab.launch import launch

    config = configuration(layout)  # the launcher gives each rank its part of the cores
    launch(config, folder, config.parallel.world_size, program=("-m", __name__))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("measured-*.json")]
    return max(found, key=lambda entry: entry["seconds"])


def run(rounds: int = 3) -> dict:
    """Seconds a step of each layout, and single seconds / parallel seconds."""
    rounds = min(rounds, 3)  # each starts five processes and compiles in all of them
    found = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for layout in LAYOUTS:
                found[layout].append(one_round(layout, Path(folder) / f"{layout}-{number}"))
    single = [entry["seconds"] for entry in found["single"]]
    result = {}
    for layout in ("dp2", "tp2"):
        ours = [entry["seconds"] for entry in found[layout]]
        tokens = 12 * 256
        result[f"parallel {layout}"] = {
            "ours_seconds": statistics.median(ours),
            "peer_seconds": statistics.median(single),
            "ratio": statistics.median(b / a for a, b in zip(ours, single)),
            "rounds": rounds,
            "ours": {
                "tokens_per_second": round(tokens / statistics.median(ours)),
                "share_in_collectives": round(
                    statistics.median(entry["collectives"] / entry["seconds"] for entry in found[layout]), 3
                ),
                **{
                    name: round(statistics.median(entry[name] for entry in found[layout]), 4)
                    for name in ("sum", "sum_by_all_reduce")
                    if name in found[layout][0]
                },
            },
            "peer": {"tokens_per_second": round(tokens / statistics.median(single))},
        }
    return result


if __name__ == "__main__":
    from pangu_lab.launch.worker import run_rank

    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    folder = Path(parser.parse_args().run)
    run_rank(folder, lambda place: measured(folder, place))
