"""`make bench-large`: the whole 2.6B on this machine, from a single-file release to a bundle that writes the same tokens.

The weights are random and of the published sizes and names. Each stage runs in a process of its own, so that its peak of
memory is its own, and what the next stage does not need is deleted on the way: 32 GB of disk are needed at most, 11 GB of
them for each form of the weights, and 15 GB of memory. All of it is removed at the end.

    make bench-large                                    all stages, below the folder for temporary files
    make bench-large ARGS="--folder DIR --preset 350M"  elsewhere, or a smaller size
    make bench-large ARGS="--folder DIR generate"       one stage, for what earlier stages left in DIR
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "春天来了，"
TOKENS = 16


def make(folder: Path, preset_name: str) -> dict:
    """A single-file release in fp32."""
    import numpy as np

    from pangu_lab.checkpoint.mindspore_ckpt import write_ckpt
    from pangu_lab.model.parameters import parameter_specs
    from pangu_lab.presets import preset

    rng = np.random.default_rng(1)
    pool = rng.standard_normal(1 << 22, np.float32)

    def value(spec):
        if spec.init != "normal":
            return np.full(spec.shape, spec.init == "ones", np.float32)
        return np.resize(pool[rng.integers(0, 1 << 20) :], spec.shape) * np.float32(spec.std)

    specs = parameter_specs(preset(preset_name).model)
    write_ckpt(folder / "release.ckpt", ((name, value(spec)) for name, spec in specs.items()))
    return {"bytes": (folder / "release.ckpt").stat().st_size}


def convert(folder: Path, preset_name: str) -> dict:
    """The release as this project's checkpoint; the release goes."""
    from pangu_lab.checkpoint.convert import convert_checkpoint

    done = convert_checkpoint(folder / "release.ckpt", folder / "weights", tokenizer="pangu")
    (folder / "release.ckpt").unlink()
    assert done.config.preset == preset_name, "the size was not recognised by its shapes"
    return {"parameters": done.parameters}


def generate(folder: Path, preset_name: str) -> dict:
    """The first tokens from the weights."""
    return _write(folder / "weights", folder / "tokens.json")


def export(folder: Path, preset_name: str) -> dict:
    """A bundle of the weights; they go."""
    from pangu_lab.export import export_run

    export_run(folder / "weights", folder / "bundle")
    shutil.rmtree(folder / "weights")
    return {"bytes": sum(path.stat().st_size for path in (folder / "bundle").rglob("*") if path.is_file())}


def bundle(folder: Path, preset_name: str) -> dict:
    """The same tokens from the bundle."""
    told = _write(folder / "bundle", folder / "tokens_of_bundle.json")
    ids = [json.loads((folder / name).read_text()) for name in ("tokens.json", "tokens_of_bundle.json")]
    assert ids[0] == ids[1], f"the bundle writes {ids[1]}, the weights {ids[0]}"
    return {**told, "same_tokens": True}


def _write(source: Path, out: Path) -> dict:
    from pangu_lab import PanguLM

    started = time.perf_counter()
    lm = PanguLM.load(source)
    loaded = time.perf_counter()
    lm.generate(PROMPT, max_new_tokens=2, min_new_tokens=2, temperature=0)  # compiles both graphs
    compiled = time.perf_counter()
    done = lm.generate(PROMPT, max_new_tokens=TOKENS, min_new_tokens=TOKENS, temperature=0)
    seconds = time.perf_counter() - compiled
    assert len(done.ids) == TOKENS
    out.write_text(json.dumps(done.ids))
    return {
        "load_seconds": round(loaded - started, 1),
        "compile_seconds": round(compiled - loaded, 1),
        "tokens": TOKENS,
        "tokens_per_second": round(TOKENS / seconds, 2),
    }


STAGES = {"make": make, "convert": convert, "generate": generate, "export": export, "bundle": bundle}


def run_stage(name: str, folder: Path, preset_name: str) -> dict:
    """One stage in a process of its own; seconds, peak memory, and what it tells."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.large",
        "--inside",
        "--folder",
        str(folder),
        "--preset",
        preset_name,
        name,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "GLOG_v": "3"})
    if done.returncode:
        sys.exit(f"{name} failed; {folder} is left as it is")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--preset", default="2.6B")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        started = time.perf_counter()
        told = STAGES[args.stages[0]](args.folder, args.preset)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_gib": round(peak, 2), **told}))
        return 0
    folder = args.folder or Path(tempfile.mkdtemp(prefix="bench-large-"))
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in args.stages or STAGES:
        results[name] = run_stage(name, folder, args.preset)
        print(
            f"{name:<10} {results[name]['seconds']:7.1f} s   peak {results[name]['peak_gib']:6.2f} GiB   "
            + ", ".join(f"{key} {value}" for key, value in results[name].items() if key not in ("seconds", "peak_gib")),
            flush=True,
        )
    if not args.stages:
        shutil.rmtree(folder)
    print(json.dumps({"preset": args.preset, **results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
