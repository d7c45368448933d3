"""Peak memory and seconds of a step with and without recomputation, for a deep, narrow model with long sequences.

24 layers × 128, sequence 1024, batch 1: nearly all of its memory are activations, which recomputation gives up. "Ours"
is with recomputation, the "peer" without; the ratio is of the seconds (below 1: recomputation costs time), the peaks stand
in the facts: the process's largest resident size, which compiling and MindSpore itself (``before_mb``) are part of.
"""

from __future__ import annotations

import sys

SIZE = {
    "model.num_layers": 24,
    "model.hidden_size": 128,
    "model.num_heads": 4,
    "model.vocab_size": 2000,
    "model.num_positions": 1024,
    "model.dropout_rate": 0.0,
    "data.seq_length": 1024,
    "data.batch_size": 1,
}


def trained(recompute: bool) -> None:
    import mindspore as ms

    from pangu_lab.presets import preset
    from pangu_lab.train.loop import Trainer
    from pangu_lab.train.memory import peak_mb
    from pangu_lab.train.starting import starting_values
    from tests.benchmarks.parallel_speed import random_batch
    from tests.benchmarks.turns import serve

    ms.set_context(mode=ms.GRAPH_MODE)
    config = preset("small").replace(**SIZE, **{"parallel.recompute": recompute})
    trainer, batch, before = Trainer(config, None, [0], None), random_batch(config), peak_mb()
    trainer.build(starting_values(config))
    for _ in range(3):
        loss = trainer.train_batch(batch)["loss"]
    serve(
        lambda: trainer.train_batch(batch)["seconds"],
        peak_mb=round(peak_mb()),
        before_mb=round(before),
        loss=round(loss, 6),
    )


def run(rounds: int = 3) -> dict:
    """Seconds a step with and without recomputation, and the peaks."""
    from tests.benchmarks.turns import Program, compare

    programs = [Program(name, __name__, name) for name in ("recompute", "whole")]
    return {"recompute 24 × 128": compare(*programs, min(rounds, 3))}


if __name__ == "__main__":
    trained(sys.argv[1] == "recompute")
