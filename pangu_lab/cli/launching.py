"""Verbs about several devices: launch, ranktable."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from pangu_lab.cli.common import (
    add_init_from,
    add_minutes,
    add_settings,
    add_start_over,
    add_verb,
    finish,
    training_settings,
)
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.terminal import complain, progress_bar, say


def register(verbs: Any) -> None:
    _register_launch(verbs)
    _register_ranktable(verbs)
    translate = add_verb(
        verbs,
        "translate",
        run_translate,
        "the command here for a line of the reference implementation",
        "Paste a line such as 'bash scripts/run_distribute_train.sh DATASET hccl.json 8 fp32 2.6B 1 1 8 0 8'. "
        "Nothing is run.",
    )
    translate.add_argument("line", nargs="+", metavar="LINE", help="in quotation marks, or word by word after --")


def run_translate(args: argparse.Namespace) -> int:
    from pangu_lab.launch.reference import translated_line

    commands = translated_line(args.line[0] if len(args.line) == 1 else shlex.join(args.line))
    for command in commands:
        say(command)
    return finish(args, commands)


def _register_launch(verbs: Any) -> None:
    launch = add_verb(
        verbs,
        "launch",
        run_launch,
        "train with several processes, on one or many machines",
        "Every rank is watched: when one fails, it is named with the relevant lines of its log, and "
        "the others are stopped. Ctrl-C stops all of them with a checkpoint.",
    )
    launch.add_argument("--run", required=True, metavar="DIR", help="the run's folder, visible to all machines")
    launch.add_argument("--nproc", type=int, metavar="N", help="ranks per machine (default: from the settings)")
    launch.add_argument(
        "--backend",
        default=None,
        metavar="NAME",
        help="local, msrun, mpirun or ranktable (default local; ranktable with --rank-table)",
    )
    launch.add_argument("--hosts", metavar="FILE", help="one line 'NAME slots=N' per machine")
    launch.add_argument("--rank-table", metavar="FILE", help="an HCCL rank table (Ascend)")
    launch.add_argument("--master-addr", metavar="IP", help="rendezvous address of the ranks (default: the first host)")
    launch.add_argument(
        "--master-port",
        type=int,
        metavar="PORT",
        help="the rendezvous port (default: a free one; 8118 with several hosts)",
    )
    launch.add_argument(
        "--node-rank", type=int, metavar="K", help="this host's index, from 0 (default: found by its name)"
    )
    launch.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help=(
            "an environment variable for the ranks of every host, such as LD_LIBRARY_PATH; can be given many times "
            "(NCCL_*, HCCL_*, UCX_* and PANGU_LAB_* reach them always)"
        ),
    )
    launch.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="K",
        help="restart from the last good checkpoint, at most K times (default 0)",
    )
    launch.add_argument("--dry-run", action="store_true", help="print what would run on each host, but run nothing")
    launch.add_argument("--data", metavar="DIR", help="a data set made by `pangu-lab prepare`")
    launch.add_argument("--eval-data", metavar="DIR", help="a held-out data set")
    launch.add_argument("--steps", type=int, metavar="N", help="steps in all")
    add_minutes(launch)
    add_init_from(launch)
    add_start_over(launch)
    _add_watching(launch)
    add_settings(launch)


def _add_watching(launch: argparse.ArgumentParser) -> None:
    watch = launch.add_argument_group("watching", "seconds after which a rank counts as hung")
    watch.add_argument(
        "--heartbeat-timeout", type=float, default=30.0, metavar="S", help="without a heartbeat (default %(default)g)"
    )
    watch.add_argument(
        "--join-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="waiting for the other ranks at the start, HCCL's too (default %(default)g)",
    )
    watch.add_argument(
        "--compile-timeout",
        type=float,
        default=3600.0,
        metavar="S",
        help="compiling, until the first step is done (default %(default)g)",
    )
    watch.add_argument(
        "--step-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="without progress afterwards (default %(default)g)",
    )


def run_launch(args: argparse.Namespace) -> int:
    from pangu_lab.launch import prepare
    from pangu_lab.launch.plan import WORKER

    if args.restarts < 0 or (args.nproc is not None and args.nproc < 1):
        raise InputError("--nproc must be at least 1 and --restarts at least 0")
    run = Path(args.run)
    fallback = run / "launch.yaml"
    config = training_settings(
        args,
        run,
        fallback if fallback.is_file() else run / "config.yaml",
        train__steps=args.steps,
        train__minutes=args.minutes,
        train__max_minutes=args.max_minutes,
    )
    backend = args.backend or ("ranktable" if args.rank_table else "local")
    where = dict(
        hosts=args.hosts,
        rank_table=args.rank_table,
        master_addr=args.master_addr,
        master_port=args.master_port,
        node_rank=args.node_rank,
        variables=args.env,
        program=(*WORKER, "--start-over") if args.start_over else WORKER,
    )
    if args.dry_run:
        config, plan = prepare(config, run, args.nproc, backend, **where, join_seconds=args.join_timeout)
        for line in plan.lines():
            say(line)
        return finish(args, plan.to_dict())
    if not config.data.path:
        raise InputError("give --data DIR: a data set made by `pangu-lab prepare`")
    return _launched(args, config, run, backend, where)


def _launched(args: argparse.Namespace, config: RunConfig, run: Path, backend: str, where: dict[str, Any]) -> int:
    from pangu_lab.launch import LaunchFailed, Patience, launch
    from pangu_lab.runs.memory import memory_lines

    patience = Patience(
        args.heartbeat_timeout, join=args.join_timeout, compile=args.compile_timeout, step=args.step_timeout
    )
    try:
        with progress_bar("launch") as progress:
            result = launch(
                config,
                run,
                args.nproc,
                backend,
                **where,
                restarts=args.restarts,
                patience=patience,
                on_event=_tell,
                progress=progress,
            )
    except LaunchFailed as error:
        complain(f"pangu-lab launch: {error}")
        return finish(
            args, {"run": str(run), "rank": error.rank, "attempts": error.attempts, "lines": error.lines}, code=1
        )
    say(f"{result.reason} at step {result.step}: {result.world} ranks, {result.seconds:.0f} s, run {result.run}")
    for line in memory_lines(run):
        say(line)
    return finish(
        args,
        {
            "run": str(result.run),
            "world": result.world,
            "step": result.step,
            "reason": result.reason,
            "attempts": result.attempts,
            "seconds": result.seconds,
        },
    )


def _tell(event: dict[str, Any]) -> None:
    """Show a launch event above the bar."""
    kind = event["kind"]
    if kind == "started":
        say(f"started {len(event['ranks'])} of {event['world']} ranks here")
    elif kind == "rank" and event["state"] in ("joining", "compiling", "training"):
        say(f"rank {event['rank']}: {event['state']}")
    elif kind == "stopping":
        say("stopping: every rank finishes its step and saves; Ctrl-C again ends them at once")
    elif kind == "warning":
        complain(event["text"])
    elif kind == "restart":
        say(f"{event['what']}: attempt {event['attempt']} of {event['of']}")


# --------------------------------------------------------------------------------------------------- ranktable


def _register_ranktable(verbs: Any) -> None:
    ranktable = verbs.add_parser("ranktable", help="create, merge or check HCCL rank tables (Ascend)")
    kinds = ranktable.add_subparsers(dest="kind", metavar="VERB", required=True, parser_class=type(ranktable))
    create = add_verb(
        kinds,
        "create",
        create_table,
        "make the rank table of one server",
        "Run it on each server, then `pangu-lab ranktable merge` the files.",
    )
    create.add_argument("--server", required=True, metavar="IP", help="the server's address")
    create.add_argument(
        "--devices", metavar="LIST", help="such as 0-7 or 0,2,4,6 (default: those that --device-ips names, else 0-7)"
    )
    create.add_argument(
        "--device-ips",
        metavar="LIST",
        help="their addresses, such as 192.168.100.101,192.168.101.101,…; the text of a server's hccn.conf and "
        "the output of hccn_tool -i N -ip -g serve too (default: read from the driver's /etc/hccn.conf)",
    )
    create.add_argument("--host-nic-ip", default="reserve", metavar="IP", help="(default %(default)s)")
    create.add_argument("--out", required=True, metavar="FILE.json", help="must not exist yet")
    merge = add_verb(
        kinds,
        "merge",
        merge_tables,
        "join the rank tables of several servers into one",
        "Ranks are renumbered in the order in which the files are given.",
    )
    merge.add_argument("tables", nargs="+", metavar="FILE.json")
    merge.add_argument("--out", required=True, metavar="FILE.json", help="must not exist yet")
    check = add_verb(kinds, "check", check_table, "check a rank table", "Names the first mistake, or lists the ranks.")
    check.add_argument("table", metavar="FILE.json")


def create_table(args: argparse.Namespace) -> int:
    from pangu_lab.launch import server_table, write_rank_table

    table = server_table(args.server, args.devices or "", args.device_ips or "", args.host_nic_ip)
    return _written(args, table, write_rank_table)


def merge_tables(args: argparse.Namespace) -> int:
    from pangu_lab.launch import merge_rank_tables, read_rank_table, write_rank_table

    return _written(args, merge_rank_tables([read_rank_table(path) for path in args.tables]), write_rank_table)


def _written(args: argparse.Namespace, table: Any, write: Any) -> int:
    write(table, args.out)
    say(f"{args.out}: {table.world} ranks on {len(table.servers)} server{'s'[: len(table.servers) != 1]}")
    say(f"next: pangu-lab launch --rank-table {shlex.quote(args.out)} --run DIR --preset NAME --data DIR --dry-run")
    return finish(args, table.to_json())


def check_table(args: argparse.Namespace) -> int:
    from pangu_lab.launch import read_rank_table

    table = read_rank_table(args.table)
    for server in table.servers:
        ranks = ", ".join(f"{device.rank_id} (device {device.device_id})" for device in server.devices)
        say(f"{server.server_id}: ranks {ranks}")
    say(f"good: {table.world} ranks on {len(table.servers)} server{'s'[: len(table.servers) != 1]}")
    return finish(args, table.to_json())
