"""Verbs that measure: bench serve."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pangu_lab.cli.bundles import PASSWORD
from pangu_lab.cli.common import add_verb, finish
from pangu_lab.errors import InputError
from pangu_lab.terminal import progress_bar, say, table


def register(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="measure a running server")
    kinds = bench.add_subparsers(
        dest="kind_of_work", metavar="VERB", required=True, title="verbs", parser_class=type(bench)
    )
    serve = add_verb(
        kinds,
        "serve",
        bench_serve,
        "load a server with concurrent streams and check every text",
        "Each answer must equal the text that the same request gets alone. The environment variable "
        f"{PASSWORD} holds the server's password, if it has one. Exit code 1 when an answer is lost "
        "or mixed up.",
    )
    serve.add_argument("--url", default="http://127.0.0.1:7860", metavar="URL", help="default %(default)s")
    serve.add_argument("--streams", default="1,8", metavar="N,N", help="concurrent streams, one run each (default 1,8)")
    serve.add_argument("--seconds", type=float, default=20.0, metavar="S", help="per run (default %(default)s)")
    serve.add_argument("--new-tokens", type=int, default=64, metavar="N", help="per request (default %(default)s)")
    serve.add_argument("--pid", type=int, metavar="N", help="the server's process id, to watch its memory")


def bench_serve(args: argparse.Namespace) -> int:
    from pangu_lab.serve.load import drive

    counts = args.streams.split(",")
    if not all(count.strip().isdecimal() for count in counts):
        raise InputError(f"--streams {args.streams}: give whole numbers such as 1,8")
    with progress_bar("bench serve") as progress:
        loads = drive(
            args.url,
            [int(count) for count in counts],
            args.seconds,
            args.new_tokens,
            api_key=os.environ.get(PASSWORD),
            pid=args.pid,
            progress=progress,
        )
    found = [load.summary() for load in loads]
    table(
        ("streams", "requests", "tokens/s", "first token p50 / p99", "between p50 / p99", "lost", "mixed up"),
        [
            (
                str(one["streams"]),
                str(one["requests"]),
                f"{one['tokens_per_second']:.1f}",
                f"{one['first_token_p50']} / {one['first_token_p99']} s",
                f"{one['between_tokens_p50']} / {one['between_tokens_p99']} s",
                str(one["lost"]),
                str(one["mixed_up"]),
            )
            for one in found
        ],
    )
    for problem in (problem for load in loads for problem in load.problems):
        say(problem)
    return finish(args, found, 1 if any(load.lost or load.mixed_up for load in loads) else 0)
