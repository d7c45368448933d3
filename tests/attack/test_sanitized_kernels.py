"""The kernels with every access to memory checked (AddressSanitizer, UndefinedBehaviorSanitizer), on one to four threads and
with each of the three vector widths. Slow: each is a run of ``tests/ops/native`` of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "-fsanitize=address,undefined -fno-sanitize-recover -g -O1"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def runtime(name: str) -> str:
    """The path of a sanitizer's library, which must be there before Python is."""
    if shutil.which("gcc") is None:
        pytest.skip("the sanitizers need gcc")
    path = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_file():
        pytest.skip(f"gcc has no {name} here")
    return path


def supported(level: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return {"x86-64-v4": "avx512f", "x86-64-v3": "avx2", "x86-64-v2": "sse4_2"}[level] in flags


@pytest.mark.parametrize(
    "threads, level", [(1, None), (2, None), (3, None), (4, None), (2, "x86-64-v4"), (2, "x86-64-v3"), (2, "x86-64-v2")]
)
def test_no_access_outside_any_array(threads, level):
    if level is not None and not supported(level):
        pytest.skip(f"this processor is no {level}")
    flags = CHECKED if level is None else f"{CHECKED} -DONE_TARGET -march={level}"
    environment = {
        **os.environ,
        "PANGU_LAB_CFLAGS": flags,
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": str(threads),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/native"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
