"""C sources as a shared library, compiled at the first use into the user's cache folder.

A library is kept under the sha256 of what it was made from, so an old one is never loaded for a new source, and one that
belongs to somebody else is never loaded at all. Without a compiler there is no library, and whoever asks does the work
in another way; ``PANGU_LAB_NATIVE=0`` asks for that. ``PANGU_LAB_CFLAGS`` adds options of the compiler, as
``make test-native`` does to have every access to memory checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from pangu_lab.files import cache_folder

log = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether the user lets C code do the work."""
    return os.environ.get("PANGU_LAB_NATIVE", "1") != "0"


def compiled(name: str, sources: Sequence[Path], flags: Sequence[str], libraries: Sequence[str] = ()) -> Optional[Path]:
    """The library, compiled if it is not there yet; None, with the reason logged, where it cannot be had.

    Args:
        name: of the file, before the tag.
        sources: what is compiled, and the headers, which are only looked at.
    """
    flags = [*flags, *shlex.split(os.environ.get("PANGU_LAB_CFLAGS", ""))]
    content = b"\0".join([*(source.read_bytes() for source in sources), " ".join([*flags, *libraries]).encode()])
    tag = hashlib.sha256(content + platform.machine().encode()).hexdigest()[:16]
    folder = cache_folder()
    path = folder / f"{name}-{tag}.so"
    if path.exists() and path.stat().st_uid == os.getuid():  # never code that somebody else put there
        return path
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        log.info("no C compiler found: the portable code does what %s would", name)
        return None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(descriptor)
    try:
        units = [str(source) for source in sources if source.suffix == ".c"]
        subprocess.run([compiler, *flags, "-o", temporary, *units, *libraries], check=True, capture_output=True,
                       timeout=120)
        os.replace(temporary, path)
        return path
    except subprocess.SubprocessError as error:
        log.info("%s does not compile (%s): the portable code does its work", name, error)
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
