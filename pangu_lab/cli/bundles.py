"""Verbs about the bundle: export, serve."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from typing import Any

from pangu_lab.cli.common import add_verb, finish
from pangu_lab.terminal import progress_bar, say

PASSWORD = "PANGU_LAB_PASSWORD"  # not an option: everybody on the machine can read those


def register(verbs: Any) -> None:
    export = add_verb(verbs, "export", run_export, "write a bundle that runs without model code",
                      "MindIR graphs, tokenizer, description, checksums; a bundle may be moved and copied.")
    export.add_argument("--from", dest="source", required=True, metavar="DIR", help="a run or a checkpoint")
    export.add_argument("--out", required=True, metavar="DIR", help="the bundle's folder; must not exist yet")
    export.add_argument("--places", type=int, metavar="N",
                        help="positions of key-value cache over all sequences (default: one whole sequence, at "
                             "least 1024)")
    serve = add_verb(verbs, "serve", run_serve, "a page that streams continuations of a bundle",
                     f"Ctrl-C ends it. The environment variable {PASSWORD} holds the password, when there is one "
                     "(user name: pangu).")
    serve.add_argument("--bundle", required=True, metavar="DIR", help="made by `pangu-lab export`")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                       help="others than this machine's own need a password (default %(default)s)")
    serve.add_argument("--port", type=int, default=7860, metavar="N",
                       help="0 takes a free one (default %(default)s)")
    serve.add_argument("--open", action="store_true", help="open the page in a browser")
    serve.add_argument("--insecure", action="store_true", help="serve on any address without a password")


def run_export(args: argparse.Namespace) -> int:
    from pangu_lab.export import export_run

    with progress_bar("export") as progress:
        bundle = export_run(args.source, args.out, places=args.places, progress=progress)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    say(f"{bundle}: {size / 2**20:.1f} MiB")
    return finish(args, {"bundle": bundle, "bytes": size})


def run_serve(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, which both are good ends."""
    from pangu_lab.serve import serve_page

    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(f"loading {args.bundle}")
        with serve_page(args.bundle, args.host, args.port, open_browser=args.open, insecure=args.insecure,
                        password=os.environ.get(PASSWORD)) as page:
            say(f"ready: {page.url} (Ctrl-C ends it)")
            code = finish(args, {"url": page.url, "pid": os.getpid()})
            while not ended.wait(0.5):  # a signal may wake another thread, and would then not end a long wait
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    say("ended")
    return code
