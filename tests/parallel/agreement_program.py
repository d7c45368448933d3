"""What each rank of ``test_agreement`` runs: fp16 trainings in which one rank alone overflows once.

Each rank writes what it saw into ``agreement-LAYOUT-RANK.json``: every step and overflow, digests of the parameters that
others hold too, and in a pipeline the order of its passes and how many activations it kept at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from pangu_lab.launch.worker import read_config, run_rank

BAD_STEP = 3


def watch(seen: dict, rank: int, last_rank: int) -> None:
    """Replace methods of the trainer by ones that tell, and let the last rank's gradients overflow once."""
    import numpy as np
    from mindspore import Tensor

    from pangu_lab.runs.pipeline_log import PipelineLog
    from pangu_lab.train.loop import Trainer

    gradients, train_batch = Watched.gradients, Watched.train_batch

    def bad_once(self, batch):
        total, found = gradients(self, batch)
        if rank == last_rank and self.step == BAD_STEP and seen["events"][-1]["kind"] != "overflow":
            at = next(i for i, name in enumerate(self.specs) if name.endswith("dense1.weight"))
            found = [Tensor(np.full(g.shape, np.inf, np.float32)) if i == at else g for i, g in enumerate(found)]
        return total, found

    def told(self, batch):
        seen["trainer"] = self
        event = train_batch(self, batch)
        seen["events"].append({key: event.get(key) for key in ("kind", "step", "loss_scale", "grad_norm", "loss")})
        return event

    Trainer.gradients, Trainer.train_batch = bad_once, told
    PipelineLog.__call__ = lambda self, kind, number: seen["passes"].append((kind, number))


class Watched:
    """The trainer's own methods."""


def work(run: Path, rank) -> str:
    from pangu_lab.train import train
    from pangu_lab.train.loop import Trainer

    Watched.gradients, Watched.train_batch = Trainer.gradients, Trainer.train_batch
    for name, changes in json.loads((run / "trainings.json").read_text(encoding="utf-8")):
        seen = {"events": [], "passes": []}
        watch(seen, rank.number, rank.world - 1)
        train(read_config(run).replace(**changes), run / "runs" / name)
        trainer = seen.pop("trainer")
        seen["digests"] = {
            parameter: hashlib.sha256(trainer.weights(parameter).asnumpy().tobytes()).hexdigest()
            for parameter in trainer.specs
        }
        seen["kept"] = getattr(trainer.gradient_step, "most_kept", 0)
        (run / f"agreement-{name}-{rank.number}.json").write_text(json.dumps(seen), encoding="utf-8")
    return "agreed"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    folder = Path(parser.parse_args().run)
    run_rank(folder, lambda rank: work(folder, rank))
