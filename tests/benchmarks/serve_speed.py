"""Eight streams beside one, through a real server: 12 layers × 384, vocabulary 40000, fp32, 64 tokens each.

"Ours" is the seconds for one token of eight streams together, the "peer" those of one stream alone, so the ratio is
the gain in throughput from batching. Weights are random. Every text is compared with the text that the same
question is given alone; an answer lost or mixed up ends the benchmark.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LAYERS, HIDDEN, HEADS, VOCABULARY, POSITIONS, SLOTS = 12, 384, 6, 40_000, 256, 2048
STREAMS, NEW_TOKENS = (1, 8), 64


def run(rounds: int = 7) -> dict:
    """``rounds`` × 4 seconds of each number of streams."""
    with tempfile.TemporaryDirectory() as folder:
        return {"serve, 8 streams to 1": _measure(_bundle(Path(folder) / "bundle"), 4.0 * rounds)}


def _bundle(out: Path) -> Path:
    from pangu_lab.config import ModelConfig
    from pangu_lab.export import export_bundle
    from pangu_lab.model.parameters import initial_weights
    from pangu_lab.tokenizer import load_tokenizer

    config = ModelConfig(VOCABULARY, POSITIONS, HIDDEN, LAYERS, HEADS, dropout_rate=0.0)
    return export_bundle(initial_weights(config, 1), config, load_tokenizer("pangu"), out, slots=SLOTS)


def _measure(bundle: Path, seconds: float) -> dict:
    from pangu_lab.serve.load import drive

    command = [sys.executable, "-m", "pangu_lab.cli", "serve", "--bundle", str(bundle), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "GLOG_v": "3"})
    try:
        ready = json.loads(next(line for line in server.stdout if line.startswith("{")))
        loads = drive(ready["url"], STREAMS, seconds, NEW_TOKENS, pid=ready["pid"])
    finally:
        server.terminate()
        server.communicate(timeout=120)
    problems = [problem for load in loads for problem in load.problems]
    assert not problems, problems
    one, many = loads
    return {
        "ours_seconds": 1 / many.tokens_per_second,
        "peer_seconds": 1 / one.tokens_per_second,
        "ratio": many.tokens_per_second / one.tokens_per_second,
        "ours": many.summary(),
        "peer": one.summary(),
    }


if __name__ == "__main__":
    from pangu_lab.terminal import say_json

    say_json(run(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
