"""The page as a tile in JupyterLab's launcher, through jupyter-server-proxy (the extra ``proxy``).

jupyter-server-proxy finds ``page`` by its entry point, starts the command on the first click and passes the port through
JupyterLab's own address and password. Which bundle is served: the one that the environment variable PANGU_LAB_BUNDLE
names, else the newest one below the folder that JupyterLab was started in.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.export.description import DESCRIPTION

BUNDLE = "PANGU_LAB_BUNDLE"
NAME = "pangu-page"
DEPTHS = ("*", "*/*", "*/*/*")


def page() -> dict[str, Any]:
    """The entry point of jupyter-server-proxy; reading it starts and loads nothing."""
    return {
        "command": command,
        "timeout": 120,
        "absolute_url": False,
        "new_browser_tab": True,
        "launcher_entry": {"enabled": True, "title": "PanGu-α", "path_info": f"{NAME}/"},
    }


def command(port: int, base_url: str = "/") -> list[str]:
    """The server's command line for the ``port`` that the proxy chose.

    Raises:
        InputError: there is no bundle to serve.
    """
    root = f"{base_url.rstrip('/')}/{NAME}"
    return [
        sys.executable,
        "-m",
        "pangu_lab.cli",
        "serve",
        "--bundle",
        str(find_bundle()),
        "--port",
        str(port),
        "--root-path",
        root,
    ]


def find_bundle(folder: Path | str = ".") -> Path:
    """The bundle of PANGU_LAB_BUNDLE, or the newest up to three folders below ``folder``.

    Raises:
        InputError: there is none.
    """
    if named := os.environ.get(BUNDLE):
        return Path(named)
    found = [path for depth in DEPTHS for path in Path(folder).glob(f"{depth}/{DESCRIPTION}")]
    if not found:
        raise InputError(
            f"no bundle below {Path(folder).resolve()}: make one with `pangu-lab export`, or name one in {BUNDLE}"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent
