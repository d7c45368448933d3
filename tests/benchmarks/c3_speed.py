"""C3 questions a second: the scoring engine beside scoring each candidate alone, padded to 1024.

The padded way is the reference's. Both use the ``tiny`` preset with 1024 positions and random weights, and the
mean log-probability of the passage. The questions are those of c3-d-dev where PANGU_LAB_DATA has it, else
dialogues of the shipped sample with made-up options. Compilation is told apart and not counted. The peer's cost
does not depend on the text, so a few questions are enough.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pangu_lab.evaluate.tasks import Question, make_task

POSITIONS = 1024
OUR_QUESTIONS, PEER_QUESTIONS = 150, 6  # a round


def questions() -> tuple[str, list[Question]]:
    """(name of the data, questions)."""
    task = make_task("c3")
    root = Path(os.environ.get("PANGU_LAB_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if (root / "c3").is_dir():
        return "c3 d-dev", task.read(task.find(root / "c3", half="d"))
    from pangu_lab.data import sample_files

    [file] = [path for path in sample_files("train") if path.stem == "dialogues"]
    blocks = [block for block in file.read_text(encoding="utf-8").split("\n\n") if block.strip()]
    return "c3 sample", [
        Question(
            str(number),
            {"question": "他们在说什么?", "passage": block.replace("\n", "")},
            tuple(block[start : start + 5].replace("\n", "") for start in (0, 10, 20, 30)),
        )
        for number, block in enumerate(blocks)
    ]


def model():
    """(configuration, weights, tokenizer): the tiny preset with room for the whole passage."""
    from pangu_lab.data import sample_files
    from pangu_lab.model.parameters import initial_weights
    from pangu_lab.presets import preset
    from pangu_lab.tokenizer import load_tokenizer, train_vocabulary

    config = preset("tiny").replace(**{"model.num_positions": POSITIONS, "model.dropout_rate": 0.0}).model
    with tempfile.TemporaryDirectory() as folder:
        train_vocabulary([str(path) for path in sample_files("train")], f"{folder}/tokenizer", config.vocab_size)
        tokenizer = load_tokenizer(f"{folder}/tokenizer")
    return config, initial_weights(config, 1), tokenizer


def padded_scorer(config, weights, scorer):
    """pairs → mean log-probability of each continuation, one sequence of 1024 at a time."""
    import numpy as np
    from mindspore import Tensor

    from tests.benchmarks.padded import PaddedScores

    network = PaddedScores(config, weights)
    positions = Tensor(np.arange(POSITIONS, dtype=np.int32)[None])

    def score(context: str, continuation: str) -> float:
        pair = scorer.encode(context, continuation, "continuation")
        ids = np.zeros((2, POSITIONS), np.int32)
        ids[0, : len(pair.inputs)] = pair.inputs
        ids[1, : len(pair.inputs)] = pair.ids[1:]
        logprobs = network(Tensor(ids[:1]), positions, Tensor(ids[1:])).asnumpy()
        return float(logprobs[pair.start - 1 : len(pair.ids) - 1].mean())

    return score


def run(rounds: int = 7) -> dict[str, dict]:
    """Seconds for 100 questions of both, taken in turn; the ratio is peer / ours."""
    os.environ.setdefault("GLOG_v", "3")
    from pangu_lab.evaluate.scoring import LocalScorer

    name, found = questions()
    task, generator = make_task("c3"), random.Random(0)
    config, weights, tokenizer = model()
    scorer = LocalScorer(config, weights, tokenizer)
    padded = padded_scorer(config, weights, scorer)

    def ours(part):
        pairs = [pair for question in part for pair in task.pairs(question)]
        return [score.mean for score in task.score(scorer, pairs)]

    def theirs(part):
        return [padded(*pair) for question in part for pair in task.pairs(question)]

    compiling = _seconds(lambda: ours(found[:600]))
    _seconds(lambda: theirs(found[:1]))
    difference = max(abs(a - b) for a, b in zip(ours(found[:4]), theirs(found[:4])))
    pairs = []
    for _ in range(rounds):
        part = generator.sample(found, min(OUR_QUESTIONS, len(found)))
        few = part[:PEER_QUESTIONS]
        mine = _seconds(lambda: ours(part)) / len(part) * 100
        pairs.append((mine, _seconds(lambda: theirs(few)) / len(few) * 100))
    mine, other = statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)
    return {
        f"{name} (100 questions)": {
            "ours_seconds": mine,
            "peer_seconds": other,
            "ratio": statistics.median(b / a for a, b in pairs),
            "rounds": rounds,
            "ours": {"questions_per_second": 100 / mine, "first_600_with_compiling_seconds": compiling},
            "peer": {"questions_per_second": 100 / other},
            "largest_difference": difference,
        }
    }


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    import json

    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 5), indent=1))
