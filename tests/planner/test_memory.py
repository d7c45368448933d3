"""What the planner says a CPU process needs, beside what real processes take: within 15 %, for every kind of layout.

Whoever changes which tensors an operator keeps measures again: each case prints both numbers when it fails, and ``Cpu``
in ``pangu_lab/planner/memory.py`` says what each number there stands for.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pangu_lab.launch import launch
from pangu_lab.planner.hardware import hardware
from pangu_lab.planner.memory import stage_memory
from pangu_lab.presets import preset

PROGRAM = str(Path(__file__).with_name("memory_program.py"))
WIDE = {
    "model.hidden_size": 512,
    "model.num_heads": 8,
    "model.num_layers": 4,
    "data.seq_length": 128,
    "data.batch_size": 16,
}
CASES = {
    "one": WIDE,
    "another-activation": {**WIDE, "model.hidden_act": "gelu"},
    "dropout": {**WIDE, "model.dropout_rate": 0.1},
    "recompute": {**WIDE, "parallel.recompute": True},
    "deep-recompute": {
        "model.hidden_size": 128,
        "model.num_heads": 4,
        "model.num_layers": 24,
        "data.seq_length": 512,
        "model.num_positions": 512,
        "data.batch_size": 2,
        "parallel.recompute": True,
    },
    "accumulate": {**WIDE, "train.accumulation": 2},
    "tensor": {**WIDE, "parallel.tensor": 2},
    "data": {**WIDE, "parallel.data": 2},
    "optimizer": {**WIDE, "parallel.data": 2, "parallel.optimizer": True},
    "pipeline": {**WIDE, "parallel.pipeline": 2, "parallel.micro_batches": 2},
}
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def measured(config, run: Path) -> list[int]:
    """Bytes that each rank's peak lies above its idle process."""
    ranks = config.parallel.world_size
    launch(config, run, ranks, program=[PROGRAM])
    return [json.loads((run / f"memory-{rank}.json").read_text())["peak"] for rank in range(ranks)]


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_a_process_takes_what_the_planner_says_within_15_percent(change, tmp_path):
    config = preset("small").replace(**change)
    parallel = config.parallel
    for rank, peak in enumerate(measured(config, tmp_path / "run")):
        stage = rank // (parallel.data * parallel.tensor)
        moments = stage_memory(config, hardware("cpu"), stage)
        told = max(sum(kinds.values()) for kinds in moments.values())
        assert told == pytest.approx(peak, rel=0.15), f"rank {rank}: told {told >> 20} MiB, took {peak >> 20} MiB"
