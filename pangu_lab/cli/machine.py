"""Verbs about this machine: doctor, and demo, which runs everything once."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pangu_lab.cli.common import add_verb, finish
from pangu_lab.terminal import progress_bar, say


def register(verbs: Any) -> None:
    demo = add_verb(
        verbs,
        "demo",
        run_demo,
        "run every stage of a small model on this machine, in a few minutes",
        "Prepares the shipped text, trains, generates, exports and checks the bundle.",
    )
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="the output folder (default %(default)s)")
    add_verb(
        verbs,
        "doctor",
        doctor,
        "check this machine and say what to fix",
        "Exits with 1 when something required is missing.",
    )


def run_demo(args: argparse.Namespace) -> int:
    from pangu_lab import demo

    with progress_bar("demo") as progress:
        result = demo.run_demo(args.out, progress=progress, say=say)
    return finish(args, result)


def doctor(args: argparse.Namespace) -> int:
    from pangu_lab.doctor import checks

    found = checks()
    marks = {"ok": "ok", "warning": "!", "bad": "BAD"}
    for check in found:
        fix = f"  →  {check.fix}" if check.fix else ""
        say(f"{marks[check.state]:>3}  {check.name:<18} {check.value}{fix}")
    bad = [check.name for check in found if check.state == "bad"]
    say(f"\n{', '.join(bad)}: fix this first" if bad else "\nThis machine is ready: pangu-lab demo")
    return finish(args, [dataclasses.asdict(check) for check in found], code=1 if bad else 0)
