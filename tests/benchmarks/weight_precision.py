"""Weights in fp16, bf16 and int8 beside fp32, in one process and in turn: 12 layers × 768, vocabulary 40000, by the kernels.

``one`` is a decode step of one sequence, ``batch of 8`` one of eight, ``prompt`` reads 512 tokens. Weights are random;
the ratios are medians over the rounds.

    make bench ARGS=precision
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

SLOTS, PROMPT, SPAN = 8192, 512, 64


def _steps(runner, batch: int, count: int) -> None:
    """``count`` steps of ``batch`` sequences, each behind SPAN positions."""
    ids, slots = np.full((batch, 1), 5), np.arange(batch * 1024).reshape(batch, 1024)
    for at in range(SPAN, SPAN + count):
        runner.run(ids, np.full((batch, 1), at), slots[:, at : at + 1], slots[:, : at + 1])


def _prompt(runner) -> None:
    at = np.arange(PROMPT)[None]
    runner.run(np.full((1, PROMPT), 5), at, at, at, np.array([PROMPT - 1]))


WORK: dict[str, tuple[Callable, int]] = {  # with how many tokens it makes or reads
    "one": (lambda runner: _steps(runner, 1, 24), 24),
    "batch of 8": (lambda runner: _steps(runner, 8, 8), 64),
    "prompt": (_prompt, PROMPT),
}


def run(rounds: int = 7) -> dict:
    """Tokens a second of each type, and how many times as quick as fp32."""
    from pangu_lab.config import ModelConfig
    from pangu_lab.generate.runner import DTYPES, kernel_runner, network_runner
    from pangu_lab.model.parameters import initial_weights

    config = ModelConfig(40000, 1024, 768, 12, 12, dropout_rate=0.0)
    weights = initial_weights(config, 1)
    runners = {
        dtype: network_runner(weights, config, SLOTS)
        if dtype == "float32"
        else kernel_runner(weights, config, dtype, SLOTS)
        for dtype in DTYPES
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):  # the first warms up, and compares the kernels with the graph
        for work, (do, _) in WORK.items():
            for dtype, runner in runners.items():
                started = time.perf_counter()
                do(runner)
                if number:
                    seconds.setdefault((work, dtype), []).append(time.perf_counter() - started)
    found = {}
    for work, (_, tokens) in WORK.items():
        times = {dtype: seconds[work, dtype] for dtype in runners}
        ratios = {
            dtype: statistics.median(whole / own for whole, own in zip(times["float32"], times[dtype]))
            for dtype in runners
        }
        told = ", ".join(
            f"{dtype} {tokens / statistics.median(times[dtype]):.1f} tokens/s ({ratios[dtype]:.2f} ×)"
            for dtype in runners
        )
        found[f"precision, {work}"] = {
            "told": told,
            "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        }
    return found
