"""Run by the launcher in each rank: three training steps on random tokens, and how far they raised this process's memory.

Writes ``memory-RANK.json`` into the run folder: resident bytes of the idle process (MindSpore imported, ranks joined, one
small graph compiled and run) and the highest that the steps came to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pangu_lab.launch.worker import Rank, read_config, run_rank
from pangu_lab.runs.heartbeat import beat


def resident(key: str) -> int:
    """Bytes now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key}")


def warm_up() -> None:
    """What any graph needs: the compiler's and the math library's own memory."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, ops

    ms.set_context(mode=ms.GRAPH_MODE)
    ops.matmul(Tensor(np.ones((64, 64), np.float32)), Tensor(np.ones((64, 64), np.float32))).asnumpy()


def random_batch(config, rank: int, ranks: int):
    import numpy as np

    from pangu_lab.data import Batch

    batch, seq = config.data.batch_size // ranks, config.data.seq_length
    rng = np.random.default_rng(rank)
    ids, labels = rng.integers(0, config.model.vocab_size, (2, batch, seq)).astype(np.int32)
    return Batch(
        ids,
        labels,
        np.tile(np.arange(seq, dtype=np.int32), (batch, 1)),
        np.ones((batch, seq), np.float32),
        np.arange(batch, dtype=np.int32),
        float(batch * seq * ranks),
    )


def work(rank: Rank, run: Path) -> str:
    warm_up()
    from pangu_lab.parallel.mesh import Mesh
    from pangu_lab.train.loop import Trainer
    from pangu_lab.train.run_folder import RunFolder
    from pangu_lab.train.starting import starting_values

    config = read_config(run)
    mesh = Mesh(config.parallel, rank.number)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far starts anew from here
    idle = resident("VmRSS")
    trainer = Trainer(config, RunFolder(run, owner=False), [0], None, mesh)
    trainer.build(starting_values(config))
    built = resident("VmHWM")
    batch = random_batch(config, mesh.index("data"), mesh.size("data"))
    for step in range(3):
        beat("training", step)
        trainer.train_batch(batch)
    (run / f"memory-{rank.number}.json").write_text(
        json.dumps(
            {"idle": idle, "built": built - idle, "peak": resident("VmHWM") - idle, "after": resident("VmRSS") - idle}
        )
    )
    return "finished"


if __name__ == "__main__":
    folder = Path(sys.argv[sys.argv.index("--run") + 1])
    run_rank(folder, lambda rank: work(rank, folder))
