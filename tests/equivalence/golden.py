"""Fifty losses and gradient norms of small presets, to the last bit: for a change that must not change what is computed.

    python -m tests.equivalence.golden before.json     on the state before
    python -m tests.equivalence.golden after.json --like before.json     on the same machine afterwards

Bits depend on the processor, the number of threads and MindSpore's version, so no such file is kept here. Each preset is
trained with the C kernels and with MindSpore's operators, in a process of its own. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {"kernels": "1", "operators": "0"}
PRESETS = ("debug", "debug_moe", "tiny")


def measure(name: str) -> list[str]:
    """What a preset's first 50 steps say: kind, step, loss, gradient norm."""
    from pangu_lab import preset, read_curves
    from pangu_lab.demo import sample_data
    from pangu_lab.train import train

    with tempfile.TemporaryDirectory() as folder:
        config = sample_data(Path(folder) / "data", preset(name)).replace(
            **{"train.steps": 50, "train.log_every": 1, "train.eval_every": 25, "train.eval_batches": 2}
        )
        train(config, Path(folder) / "run")
        curves = read_curves(Path(folder) / "run")
    return [
        f"{event['kind']} {event['step']} {event['loss']!r} {event.get('grad_norm')!r}"
        for event in sorted(curves.steps + curves.evals, key=lambda event: event["time"])
    ]


def measured() -> dict[str, list[str]]:
    found = {}
    for name in PRESETS:
        for way, native in WAYS.items():
            made = subprocess.run(
                [sys.executable, "-m", "tests.equivalence.golden", "--one", name],
                stdout=subprocess.PIPE,
                env={**os.environ, "PANGU_LAB_NATIVE": native},
                text=True,
                check=True,
            )
            found[f"{name}, {way}"] = json.loads(made.stdout.splitlines()[-1])
            print(f"{name}, {way}: {found[f'{name}, {way}'][-1]}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", help="where to keep what was measured")
    parser.add_argument("--like", metavar="FILE", help="compare with an earlier one; exit code 1 when a bit differs")
    parser.add_argument("--one", metavar="PRESET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return 0
    found = measured()
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1), encoding="utf-8")
    if not args.like:
        return 0
    wanted = json.loads(Path(args.like).read_text(encoding="utf-8"))
    different = [name for name in wanted if wanted[name] != found.get(name)]
    print(f"different: {', '.join(different)}" if different else "equal to the last bit")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
