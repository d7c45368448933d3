"""The options of commands that open a model over several processes, and the opening."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.terminal import say


def add_processes(parser: argparse.ArgumentParser) -> None:
    """``--nproc`` and its company."""
    several = parser.add_argument_group(
        "over several processes",
        (
            "They share weights and work (tensor parallelism; with --pipeline layers too); texts and scores are those of one "
            "process. With --hosts or "
            "--rank-table this command runs on the first host; `pangu-lab serve --agent` on each of the others, or mpirun "
            "starts all. PANGU_LAB_CLUSTER_KEY holds a secret that all of them share."
        ),
    )
    several.add_argument("--nproc", type=int, metavar="N", help="processes on this machine, or on each of --hosts")
    add_pipeline(several)
    several.add_argument(
        "--backend", metavar="NAME", help="local, mpirun or ranktable (default local; ranktable with --rank-table)"
    )
    several.add_argument("--hosts", metavar="FILE", help="one line 'NAME slots=N' per machine")
    several.add_argument("--rank-table", metavar="FILE", help="an HCCL rank table (Ascend)")
    several.add_argument(
        "--master-addr", metavar="IP", help="where the processes reach this one (default: the first host)"
    )
    several.add_argument("--master-port", type=int, metavar="PORT", help="(default: a free one; 8119 with agents)")
    several.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an environment variable for processes that mpirun starts",
    )
    several.add_argument("--log-dir", metavar="DIR", help="what the processes print goes into files there")
    several.add_argument("--dry-run", action="store_true", help="print what would run on each host, but run nothing")


def add_pipeline(group: Any) -> None:
    """``--pipeline``, the same for all commands over several processes."""
    group.add_argument(
        "--pipeline",
        type=int,
        metavar="S",
        help="the processes form S stages, each with a part of the layers; "
        "a number that divides theirs, tensor parallelism is the rest (default 1, or as the bundle has it)",
    )


def places(args: argparse.Namespace) -> Any:
    """The ``Places`` that the options name; None for one process.

    Raises:
        InputError: they do not go together.
    """
    from pangu_lab.cluster.places import find_places

    named = (args.backend, args.hosts, args.rank_table, args.master_addr, args.master_port)
    if args.nproc in (None, 1) and not any(named):
        if args.dry_run or args.log_dir or args.env or args.pipeline not in (None, 1):
            raise InputError(
                "--pipeline, --dry-run, --log-dir and --env are for several processes: give --nproc N, --hosts or "
                "--rank-table"
            )
        return None
    return find_places(
        args.nproc,
        args.backend,
        args.hosts,
        args.rank_table,
        args.master_addr,
        args.master_port,
        args.env,
        args.pipeline,
    )


@contextlib.contextmanager
def opened(args: argparse.Namespace, source: Any, tokenizer: Any, dtype: str | None = None) -> Iterator[Any]:
    """The model over the processes that the options name, which end with the block; None after ``--dry-run``."""
    from pangu_lab.lm import PanguLM

    where = places(args)
    if where is None:
        yield PanguLM.load(source, tokenizer, dtype=dtype)
        return
    if args.dry_run:
        for line in where.lines(source, tokenizer):
            say(line)
        yield None
        return
    from pangu_lab.generate.runner import NetworkLost

    with _ended_as_by_ctrl_c():
        model = PanguLM.load(source, tokenizer, dtype=dtype, processes=where, log_dir=args.log_dir)
        try:
            yield model
        except NetworkLost as error:
            raise InputError(f"{error}; --log-dir keeps what the processes print") from None
        finally:
            model.close()


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """`kill`, or a terminal that closes, ends the processes of the block too: MindSpore's scheduler would wait for them."""
    usual = {name: signal.getsignal(name) for name in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))}
    changed = {name: was for name, was in usual.items() if was == signal.SIG_DFL}  # not what nohup ignores
    if threading.current_thread() is not threading.main_thread():
        changed = {}
    for name in changed:
        signal.signal(name, signal.default_int_handler)
    try:
        yield
    finally:
        for name, was in changed.items():
            signal.signal(name, was)
