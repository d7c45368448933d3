"""`make bench`: ours and the peer in turn; a table, and as the last line one JSON document.

`make bench ARGS=train` runs only the part of that name; `--rounds N` how often each, `--keep` writes the tables.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys

from tests.benchmarks.table import keep

PARTS = {
    "train": "tests.benchmarks.train_speed",
    "decode": "tests.benchmarks.decode_speed",
    "precision": "tests.benchmarks.weight_precision",
    "prepare": "tests.benchmarks.prepare_speed",
    "c3": "tests.benchmarks.c3_speed",
    "moe": "tests.benchmarks.moe_speed",
    "parallel": "tests.benchmarks.parallel_speed",
    "recompute": "tests.benchmarks.recompute_memory",
    "serve": "tests.benchmarks.serve_speed",
    "wait": "tests.benchmarks.waiting_speed",
    "monitor": "tests.benchmarks.monitor_speed",
    "learning": "tests.benchmarks.learning",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts; all when none is named")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="into results.json, and into the tables of both readmes")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("The peers are not installed: make bench installs them, or pip install -e '.[bench]'", file=sys.stderr)
        return 2
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; ratio above 1: we are quicker"
    )
    results = {}
    for part in args.parts or PARTS:
        if importlib.util.find_spec(PARTS[part]) is None:
            continue
        for name, found in importlib.import_module(PARTS[part]).run(rounds=args.rounds).items():
            results[name] = found
            if "told" in found:
                print(f"{name:<28} {found['told']}", flush=True)
                continue
            print(
                f"{name:<28} ours {found['ours_seconds']:8.3f} s   peer {found['peer_seconds']:8.3f} s   "
                f"ratio {found['ratio']:.2f}",
                flush=True,
            )
    if args.keep:
        keep(results)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
