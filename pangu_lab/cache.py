"""Where what can be made anew is kept: compiled libraries and graphs. Only the standard library: the build imports this."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder for reproducible files: ``$PANGU_LAB_CACHE``, or pangu-lab in the user's cache folder.

    A user without a home (some containers) has one of her own in the folder for temporary files.
    """
    if own := os.environ.get("PANGU_LAB_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pangu-lab"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"pangu-lab-{os.getuid()}"
