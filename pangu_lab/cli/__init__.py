"""``pangu-lab VERB``: the command line.

Each verb is a thin call of one public library function, which notebooks call too. Each module of this package holds a
group of verbs: ``register(verbs)`` adds their parsers, and handlers import what they need only when they run, so that
``pangu-lab --help`` is quick. To add a verb, write its parser and its handler in the module it belongs to.

Exit codes: 0 good; 2 wrong usage or input (one clear line, no traceback); 1 failed; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys

from pangu_lab import __version__
from pangu_lab.cli import (
    benching,
    bundles,
    converting,
    evaluation,
    launching,
    machine,
    planning,
    starting,
    text,
    training,
    writing,
)
from pangu_lab.cli.common import Parser
from pangu_lab.errors import InputError
from pangu_lab.terminal import complain

# Known environment problems: one line names them, a traceback would only hide them.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENOMEM}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, in the order of a model's life cycle."""
    parser = Parser(
        prog="pangu-lab",
        description=(
            "PanGu-α in MindSpore, from text to a served page. "
            "Begin with `pangu-lab demo`; `pangu-lab VERB --help` describes each verb."
        ),
    )
    parser.add_argument("--version", action="version", version=f"pangu-lab {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser, title="verbs")
    for group in (
        machine,
        starting,
        text,
        training,
        planning,
        launching,
        converting,
        writing,
        evaluation,
        bundles,
        benching,
    ):
        group.register(verbs)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show Chinese shows ? instead of a traceback
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(arguments)
    try:
        return args.handler(args)
    except InputError as error:
        complain(f"pangu-lab {args.verb}: {error}")
        return 2
    except KeyboardInterrupt:
        complain(f"pangu-lab {args.verb}: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output (`… | head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        complain(f"pangu-lab {args.verb}: {error.strerror}: {error.filename or 'while writing'}")
        return 1
