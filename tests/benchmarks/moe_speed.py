"""A step of the tiny mixture of experts beside the dense model of equal active parameters (the tiny preset).

Target: at most 1.4 × its time, so a ratio of at least 0.71. The mixture computes a quarter more rows (places of the
experts), routes, and updates 3.7 times the parameters.
"""

from __future__ import annotations

import sys


def trained(name: str, *overrides: str) -> None:
    import mindspore as ms

    from pangu_lab.config import parse_overrides
    from pangu_lab.presets import preset
    from pangu_lab.train.loop import Trainer
    from pangu_lab.train.starting import starting_values
    from tests.benchmarks.parallel_speed import random_batch
    from tests.benchmarks.turns import serve

    ms.set_context(mode=ms.GRAPH_MODE)
    config = preset(name).replace(**parse_overrides(list(overrides)))
    made = random_batch(config)
    trainer = Trainer(config, None, [0], None)
    trainer.build(starting_values(config))
    for _ in range(3):
        trainer.train_batch(made)
    serve(
        lambda: trainer.train_batch(made)["seconds"],
        parameters=config.model.num_parameters,
        active=config.model.active_parameters,
    )


def run(rounds: int = 9) -> dict:
    """Seconds a step of both, and dense seconds / mixture seconds."""
    from tests.benchmarks.turns import Program, compare

    return {
        "moe tiny step": compare(Program("tiny_moe", __name__, "tiny_moe"), Program("tiny", __name__, "tiny"), rounds)
    }


if __name__ == "__main__":
    trained(*sys.argv[1:])
