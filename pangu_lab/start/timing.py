"""How quickly this machine trains a model: a few real steps in a process of its own, which gives its memory back.

python -m pangu_lab.start.timing CONFIG.yaml      writes one line of JSON
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.config import RunConfig
from pangu_lab.data import Batch
from pangu_lab.errors import InputError
from pangu_lab.files import write_text_atomic
from pangu_lab.presets import load_yaml
from pangu_lab.train.run_folder import RunFolder
from pangu_lab.train.starting import starting_values

SECONDS, FEWEST = 4.0, 3  # of steps after the first, which compiles
LIMIT = 600.0


def measured_speed(config: RunConfig) -> float:
    """Tokens a second with the training cell of ``config``, compilation not counted.

    Raises:
        InputError: it cannot be trained here; with what was said about it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        write_text_atomic(path, config.to_yaml())
        root = str(Path(__file__).resolve().parent.parent.parent)
        modules = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pangu_lab.start.timing", str(path)],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": modules, "GLOG_v": os.environ.get("GLOG_v", "3")},
            )
        except subprocess.TimeoutExpired:
            raise InputError(
                f"a few steps of the proposed model take more than {LIMIT:g} s here: give smaller sizes"
            ) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise InputError(f"a step of the proposed model could not be timed: {said[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])


def timed(config: RunConfig, seconds: float = SECONDS) -> float:
    """As ``measured_speed``, in this process: on random tokens, which take as long as others."""
    import mindspore as ms

    from pangu_lab.train.loop import Trainer

    ms.set_context(mode=ms.GRAPH_MODE)
    nothing: Any = _Nothing()
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config.replace(**{"train.sample_prompts": ()}), RunFolder(Path(folder) / "run"), nothing, None
        )
        trainer.build(starting_values(config))
        batch = _random_batch(config)
        trainer.train_batch(batch)
        end = time.monotonic() + seconds
        while len(times) < FEWEST or time.monotonic() < end:
            begun = time.perf_counter()
            trainer.train_batch(batch)
            times.append(time.perf_counter() - begun)
    return config.data.batch_size * config.data.seq_length / statistics.mean(times)


class _Nothing:
    """In the place of a data set: of one record."""

    def __len__(self) -> int:
        return 1


def _random_batch(config: RunConfig) -> Batch:
    rows, length = config.data.batch_size, config.data.seq_length
    ids = np.random.default_rng(1).integers(0, config.model.vocab_size, (rows, length + 1), dtype=np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    return Batch(
        np.ascontiguousarray(ids[:, :-1]),
        np.ascontiguousarray(ids[:, 1:]),
        positions,
        np.ones((rows, length), np.float32),
        np.arange(rows, dtype=np.int32),
        float(rows * length),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"tokens_per_second": timed(load_yaml(sys.argv[1]))}) + "\n")
