"""Verbs about the bundle: export."""

from __future__ import annotations

import argparse
from typing import Any

from pangu_lab.cli.common import add_verb, finish
from pangu_lab.terminal import progress_bar, say


def register(verbs: Any) -> None:
    export = add_verb(verbs, "export", run_export, "write a bundle that runs without model code",
                      "MindIR graphs, tokenizer, description, checksums; a bundle may be moved and copied.")
    export.add_argument("--from", dest="source", required=True, metavar="DIR", help="a run or a checkpoint")
    export.add_argument("--out", required=True, metavar="DIR", help="the bundle's folder; must not exist yet")
    export.add_argument("--places", type=int, metavar="N",
                        help="positions of key-value cache over all sequences (default: one whole sequence, at "
                             "least 1024)")


def run_export(args: argparse.Namespace) -> int:
    from pangu_lab.export import export_run

    with progress_bar("export") as progress:
        bundle = export_run(args.source, args.out, places=args.places, progress=progress)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    say(f"{bundle}: {size / 2**20:.1f} MiB")
    return finish(args, {"bundle": bundle, "bytes": size})
