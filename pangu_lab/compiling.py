"""The C libraries: their sources, and where each is found, built with the package or at first use.

``setup.py`` compiles them all into ``built/`` if there is a compiler; a missing one is compiled at first use
into the user's cache folder. The name of a library holds the sha256 of its sources, so an old one is never
loaded for a new source; and one that another user could have written, or put there, is never loaded at all. Without
a compiler there is no library, and the caller uses another implementation; ``PANGU_LAB_NATIVE=0`` asks for that.
``PANGU_LAB_CFLAGS`` adds compiler options, as ``make test-native`` does to have every memory access checked.

The build imports this module before anything is installed: it uses only the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pangu_lab.cache import cache_folder

PACKAGE = Path(__file__).parent
BUILT = "built"  # the package's folder of prebuilt libraries
PRIVATE = "native"  # the cache's folder of libraries: it alone must be closed to others, whatever lies beside it
KERNELS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    "-fopenmp-simd",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)
log = logging.getLogger(__name__)
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Library:
    """A shared library: its C files, from the package's folder on, and the compiler's options."""

    name: str
    units: tuple[str, ...]
    flags: tuple[str, ...]

    def paths(self) -> list[Path]:
        """The C files."""
        return [PACKAGE / unit for unit in self.units]

    def options(self) -> list[str]:
        """``flags``, and those that the user adds."""
        return [*self.flags, *shlex.split(os.environ.get("PANGU_LAB_CFLAGS", ""))]

    def file_name(self) -> str:
        """Differs with the sources, with any header beside them, the options and the kind of processor."""
        headers = {header for path in self.paths() for header in path.parent.glob("*.h")}
        content = [path.read_bytes() for path in [*self.paths(), *sorted(headers)]]
        content += [" ".join(self.options()).encode(), platform.machine().encode()]
        tag = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
        return f"{self.name}-{tag}.so"


LIBRARIES = {
    library.name: library
    for library in (
        # No fused or reordered arithmetic: equality with jieba rests on plain IEEE sums.
        Library(
            "segment",
            ("tokenizer/segment.c", "tokenizer/wordids.c"),
            ("-O2", "-std=c99", "-fPIC", "-shared", "-ffp-contract=off", "-fno-fast-math"),
        ),
        Library(
            "kernels",
            tuple(
                f"ops/native/{unit}.c"
                for unit in (
                    "thread_pool",
                    "scratch",
                    "gemm",
                    "gemv",
                    "softmax",
                    "layernorm",
                    "activations",  # what all of them are made of
                    "network",
                    "block",
                    "projection",
                    "cached_attention",  # prompts and decode steps
                    "linear",
                    "attention",
                    "dropout",
                    "head_loss",
                    "embedding",
                    "optimizer",
                )
            ),
            KERNELS,
        ),  # training
    )
}


def wanted() -> bool:
    """Whether the user lets C code do the work."""
    return os.environ.get("PANGU_LAB_NATIVE", "1") != "0"


def compiled(name: str) -> Path | None:
    """The library of ``LIBRARIES``, compiled if it is not there yet; None, with the reason logged, where it cannot be had."""
    library = LIBRARIES[name]
    file_name = library.file_name()
    built, cached = PACKAGE / BUILT / file_name, cache_folder() / PRIVATE / file_name
    if built.exists():
        return built
    for path in (cached.parent, cached):
        if path.exists() and not is_private(path):
            log.warning(
                "%s: another user owns it or may write it, so no compiled code is taken from there: delete it, "
                "or name another folder in PANGU_LAB_CACHE",
                path,
            )
            return None
    return cached if cached.exists() else build(library, cached.parent)


def is_private(path: Path) -> bool:
    """Whether nobody but this user may write a file or a folder, who therefore made all that is in it."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def loaded(name: str, opened: Callable[[Path], Opened], without: str) -> Opened | None:
    """What ``opened`` makes of the library's path; None where the user does not want it or it cannot be had.

    Args:
        without: what goes on then and how, for the log.
    """
    if not wanted():
        return None
    try:
        path = compiled(name)
        found = opened(path) if path else None
    except (OSError, RuntimeError) as error:  # no home folder; another machine's library …
        log.info("the C library %s cannot be used: %s", name, error)
        found = None
    if found is None:
        reason = "cannot be had" if compiler() else "need a compiler (apt-get install gcc)"
        log.warning("%s: the C kernels %s; PANGU_LAB_NATIVE=0 says that you know", without, reason)
    return found


def all_built() -> bool:
    """Whether every library was built with the package, from the sources and options of now."""
    return all((PACKAGE / BUILT / library.file_name()).exists() for library in LIBRARIES.values())


def compiler() -> str | None:
    """The path of a C compiler."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def build(library: Library, folder: Path) -> Path | None:
    """Compile into this folder, made if need be; None, with the reason logged, where that cannot be done."""
    program = compiler()
    if program is None:
        log.info("no C compiler found: the portable code does what %s would", library.name)
        return None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / library.file_name()
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(descriptor)
    environment = dict(os.environ)
    environment.pop("LD_PRELOAD", None)  # a sanitizer's library is for the program: it makes compiling twice as long
    try:
        subprocess.run(
            [program, *library.options(), "-o", temporary, *map(str, library.paths()), "-lm"],
            check=True,
            capture_output=True,
            timeout=300,
            env=environment,
        )
        os.chmod(temporary, 0o755)  # the linker makes the file anew, and a umask of 002 would let the group write it
        os.replace(temporary, path)
        return path
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s does not compile (%s): the portable code does its work", library.name, error)
        return None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def thread_count() -> int:
    """As many as OMP_NUM_THREADS says, which whoever starts several ranks sets; else one for each processor.

    MindSpore's data library sets that variable to 1 where Python does not see it: a process that is started without an
    environment said outright inherits it (``env=dict(os.environ)`` does not).
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(asked)) if asked.isdecimal() else processors
