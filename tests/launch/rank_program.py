"""What the launch tests run in each rank: all-reduces in graph mode, and a fault on demand.

Run by the launcher as ``python rank_program.py [FAULT] --run RUN``; a fault is done by rank 1 at step 3.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.launch.worker import Rank, run_rank
from pangu_lab.runs.heartbeat import beat

STEPS = 6


def do_fault(fault: str, run: Path) -> None:
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "raise":
        raise ValueError("a wrong number\nand a second line")
    elif fault == "refuse":
        raise InputError("data.path: holds nothing; give another")
    elif fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "stand":
        time.sleep(600)
    elif fault == "once" and not (run / "failed-once").exists():
        (run / "failed-once").touch()
        raise ValueError("only the first time")


def make_network(broken: bool):
    """The sum over all ranks, in graph mode; MindSpore is imported only now, after the rank has joined."""
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


def work(rank: Rank, fault: str, run: Path) -> str:
    network = make_network(broken=fault == "compile" and rank.number == 1)
    import numpy as np
    from mindspore import Tensor

    steps = 100_000 if fault == "endless" else STEPS
    for step in range(1, steps + 1):
        if rank.number == 1 and step == 3:
            do_fault(fault, run)
        beat("training", step)
        total = network(Tensor(np.full((4,), rank.number + 1, np.float32))).asnumpy()
        assert (total == rank.world * (rank.world + 1) / 2).all()
        if fault == "endless":
            time.sleep(0.05)
            asked = Tensor(np.full((4,), float((run / "stop").exists()), np.float32))
            if network(asked).asnumpy()[0]:  # all ranks stop at the same step
                (run / f"saved-{rank.number}").write_text(str(step))
                return "stop file"
    (run / f"saw-{rank.number}").write_text(
        " ".join(f"{name}={os.environ.get(name)}" for name in ("OMP_NUM_THREADS", "MS_NODE_ID", "DEVICE_ID"))
    )
    return "finished"


if __name__ == "__main__":
    fault = sys.argv[1] if len(sys.argv) > 1 and not sys.argv[1].startswith("--") else ""
    folder = Path(sys.argv[sys.argv.index("--run") + 1])
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun starts the scheduler with the ranks' program
        from pangu_lab.launch.worker import main

        sys.exit(main(["--run", str(folder)]))
    run_rank(folder, lambda rank: work(rank, fault, folder))
