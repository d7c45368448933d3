"""The shortest command line that gives exactly the settings of a form."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pangu_lab.config import RunConfig
from pangu_lab.presets import PRESETS, changed_settings

Folder = Path | str


@dataclass(frozen=True)
class Target:
    """Where a launch runs, as ``pangu-lab launch`` is told it.

    Attributes:
        backend: "local", "msrun", "mpirun" or "ranktable".
        nproc: processes on each machine; 0 for as many as the layout has, or the hosts file says.
        hosts, rank_table: files; empty for this machine alone.
        node_rank: which of the machines this one is; None when it is found by its name.
        master_addr: of the first machine; empty when its name says it.
    """

    backend: str = "local"
    nproc: int = 0
    hosts: str = ""
    rank_table: str = ""
    node_rank: int | None = None
    master_addr: str = ""

    def words(self, layout: int) -> list[str]:
        """The options, for a layout of so many processes."""
        words = [] if self.backend in ("local", "ranktable") else ["--backend", self.backend]
        nproc = self.nproc or (layout if layout > 1 and not self.hosts else 0)
        words += ["--nproc", str(nproc)] if nproc and not self.rank_table else []
        words += ["--hosts", self.hosts] if self.hosts else []
        words += ["--rank-table", self.rank_table] if self.rank_table else []
        words += ["--master-addr", self.master_addr] if self.master_addr else []
        return words + (["--node-rank", str(self.node_rank)] if self.node_rank is not None else [])


HERE = Target()


def launch_words(config: RunConfig, run: Folder, restarts: int = 0, target: Target = HERE) -> list[str]:
    """``pangu-lab launch`` with the arguments that train ``config`` in ``run``; no shell has touched them."""
    words = ["pangu-lab", "launch", "--run", str(run), *target.words(config.parallel.world_size)]
    if restarts:
        words += ["--restarts", str(restarts)]
    words += ["--preset", config.preset if config.preset in PRESETS else "self_define"]
    changes = changed_settings(config)
    for key, option in (("data.path", "--data"), ("data.eval_path", "--eval-data")):
        if isinstance(value := changes.get(key), str) and value and not value.startswith("-"):
            words += [option, changes.pop(key)]
    for key, value in changes.items():
        words += ["--set", f"{key}={value_text(value)}"]
    return words


def value_text(value: Any) -> str:
    """A setting's value as ``--set`` reads it back: YAML on one line, Chinese as it is where that can be read back."""
    for readable in (True, False):
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=readable)
        text = text.removesuffix("\n").removesuffix("\n...")
        if text.isprintable() and _read(text) == value:
            return text
    return json.dumps(value)


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def command_text(words: list[str], width: int | None = 88) -> str:
    """Words as one would type them, a line an option where they are many."""
    line = shlex.join(words)
    if width is None or len(line) <= width:
        return line
    lines, current = [], shlex.join(words[:2])
    rest = words[2:]
    while rest:
        takes_value = len(rest) > 1 and not rest[1].startswith("--")
        part = shlex.join(rest[: 1 + takes_value])
        rest = rest[1 + takes_value :]
        if len(current) + len(part) + 3 > width:
            lines.append(current)
            current = f"  {part}"
        else:
            current += f" {part}"
    return " \\\n".join([*lines, current])
