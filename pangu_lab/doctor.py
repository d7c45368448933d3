"""Checks whether this machine is ready, and how to fix it if not.

``checks()`` examines everything the lab depends on and gives one line each: what was found, and the command that fixes
it. Nothing is imported that could crash the doctor itself: versions come from the packages' metadata, and
MindSpore computes something in a separate process (with numpy 2 its import can die half-way). ``bad`` means the
main job cannot run; ``warning`` means that something optional cannot, or will be slow.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pangu_lab import compiling, memory
from pangu_lab.plotting import cjk_font

PACKAGES = (
    "mindspore",
    "numpy",
    "jupyterlab",
    "ipywidgets",
    "anywidget",
    "gradio",
    "sentencepiece",
    "jieba",
    "pcl-pangu",
    "tokenizers",
    "safetensors",
    "matplotlib",
)
PORTS = {
    7860: ("pangu-lab serve", "pangu-lab serve --port 0 takes a free one"),
    8888: ("make lab", "JupyterLab takes the next free one by itself"),
}
GIB = 2**30

# Runs in a separate process; its last line says which devices answered, after a product that must be 11.
_MINDSPORE_PROBE = """
import json
import mindspore as ms
from mindspore import Tensor, ops
ms.set_device("CPU")
total = float(ops.matmul(Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]])).asnumpy()[0, 0])
devices = {}
for name in ("CPU", "GPU", "Ascend"):
    try:
        devices[name] = ms.hal.device_count(name) if ms.hal.is_available(name) else 0
    except Exception:
        devices[name] = 0
print(json.dumps({"total": total, "devices": devices}))
"""


@dataclass(frozen=True)
class Check:
    """The result of one check. ``state`` is ok, warning or bad; ``fix`` is empty when there is nothing to do."""

    name: str
    state: str
    value: str
    fix: str = ""


def checks(folder: Path | str = ".") -> list[Check]:
    """Check this machine; takes a few seconds, most of them for MindSpore's import.

    Args:
        folder: where runs and data sets will be written (its free space is checked).
    """
    programs = (
        (
            "chromium",
            ("chromium", "chromium-browser", "google-chrome"),
            "only browser tests need it: apt-get install chromium chromium-driver",
        ),
        ("mpirun", ("mpirun",), "only launching with Open MPI needs it: apt-get install openmpi-bin"),
    )
    return [
        _python(),
        *_packages(),
        *_mindspore(),
        _memory(),
        _cores(),
        _disk(Path(folder)),
        _compiler(),
        _font(),
        *(_program(*program) for program in programs),
        *_ports(),
    ]


def _python() -> Check:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Check(
        "Python",
        "ok" if good else "bad",
        f"{version} at {sys.executable}",
        "" if good else "install Python 3.10, 3.11 or 3.12, delete .venv and run make again",
    )


def _packages() -> Iterator[Check]:
    """Installed versions against the requirements in this package's own metadata."""
    wanted = _wanted_versions()
    if not wanted:
        yield Check("pangu-lab", "warning", "not installed as a package", "pip install -e .")
    for name in PACKAGES:
        yield _package(name, wanted.get(name))


def _package(name: str, wanted) -> Check:
    text = str(wanted) if wanted is not None else ""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "bad", "not installed", f"pip install '{name}{text}'")
    if name == "numpy" and int(version.split(".")[0]) >= 2:
        return Check(name, "bad", f"{version}: MindSpore's compiled parts need numpy 1", "pip install 'numpy>=1.26,<2'")
    if wanted is not None and not wanted.contains(version, prereleases=True):
        return Check(name, "warning", f"{version}, tested with {text}", f"pip install '{name}{text}'")
    return Check(name, "ok", version)


def _wanted_versions() -> dict[str, object]:
    """Package name → the versions the lab asks for; empty when the lab is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("pangu-lab") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {item.name.lower(): item.specifier for item in requirements if item.marker is None}


def _mindspore() -> Iterator[Check]:
    try:
        found = _run([sys.executable, "-c", _MINDSPORE_PROBE], seconds=120)
    except subprocess.TimeoutExpired:
        yield Check("MindSpore computes", "bad", "no answer within 120 s", "look for a hanging process; run again")
        return
    answer = _last_json(found.stdout)
    if answer is None or answer["total"] != 11.0:
        lines = [line for line in found.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
        yield Check(
            "MindSpore computes",
            "bad",
            reason.strip()[:200],
            f"{sys.executable} -m pip install --force-reinstall mindspore==2.10.* 'numpy<2'",
        )
        return
    yield Check("MindSpore computes", "ok", "a product of matrices is right")
    yield _devices(answer["devices"])


def _devices(counts: dict[str, int]) -> Check:
    """The devices MindSpore can use; an accelerator with a driver that MindSpore does not see is named."""
    value = ", ".join(f"{name} × {count}" if count > 1 else name for name, count in counts.items() if count)
    for name, tool, needs in (
        ("GPU", "nvidia-smi", "CUDA 11.1 or 11.6 with cuDNN on LD_LIBRARY_PATH"),
        ("Ascend", "npu-smi", "the CANN toolkit (source its set_env.sh)"),
    ):
        if not counts.get(name) and shutil.which(tool):
            return Check(
                "devices",
                "warning",
                f"{value}; {tool} is here but MindSpore sees no {name}",
                f"MindSpore looks for {needs}; without it everything runs on the CPU",
            )
    return Check("devices", "ok", value)


def _last_json(text: str) -> dict | None:
    try:
        return json.loads(text.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return None


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "GLOG_v": "3"},
        check=False,
    )


def _memory() -> Check:
    free = memory.available()
    value = f"{free / GIB:.1f} GiB free of {memory.total() / GIB:.1f} GiB"
    if free < 3 * GIB:
        return Check("memory", "warning", value, "the tiny preset wants about 3 GiB free: close other programs")
    return Check("memory", "ok", value)


def _cores() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 2:
        return Check("cores", "warning", "1", "everything works, at about half the speed the times are given for")
    return Check("cores", "ok", str(count))


def _disk(folder: Path) -> Check:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    value = f"{free / GIB:.1f} GiB free in {folder.resolve()}"
    if free < 2 * GIB:
        return Check("disk", "warning", value, "checkpoints need room: free some space or choose another folder")
    return Check("disk", "ok", value)


def _compiler() -> Check:
    if compiling.compiler() is None and compiling.all_built():
        return Check("compiler", "ok", "none, nor needed: the C libraries were built with the package")
    return _program(
        "compiler",
        ("cc", "gcc", "clang"),
        "with one, training, generation and preparing text are quicker, by 1.3 to 4 times: apt-get install gcc",
    )


def _program(name: str, commands: tuple[str, ...], fix: str) -> Check:
    path = next((found for found in map(shutil.which, commands) if found), None)
    if path is None:
        return Check(name, "warning", "not found", fix)
    try:
        lines = _run([path, "--version"], seconds=20).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, "warning", f"{path} does not run ({type(error).__name__})", fix)
    return Check(name, "ok", lines[0] if lines else path)


def _font() -> Check:
    font = cjk_font()
    if font is None:
        return Check(
            "Chinese font",
            "warning",
            "none: plots would show boxes",
            "apt-get install fonts-noto-cjk, or pip install 'pangu-lab[fonts]' (85 MB)",
        )
    return Check("Chinese font", "ok", font)


def _ports() -> Iterator[Check]:
    for port, (user, fix) in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                yield Check(f"port {port}", "warning", f"taken, `{user}` wants it", fix)
            else:
                yield Check(f"port {port}", "ok", f"free for `{user}`")
