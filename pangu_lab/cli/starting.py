"""Verbs about one's own text, from a file to a model: start, and advise, which says before what to expect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pangu_lab.cli.common import add_verb, finish, given_settings
from pangu_lab.cli.text import add_reading, reading
from pangu_lab.cli.training import best_line, ending
from pangu_lab.config import parse_overrides
from pangu_lab.errors import InputError
from pangu_lab.reading import read_yaml
from pangu_lab.terminal import complain, one_line, progress_bar, say

GOES_ON = {
    "signal": "stopped: the same command goes on",
    "stop file": "stopped: the same command goes on",
    "time budget": "the minutes were over before the learning rate was at its end: the same command with more goes on",
}


def register(verbs: Any) -> None:
    start = add_verb(
        verbs,
        "start",
        run_start,
        "train a model on your own text, in one step",
        "Holds out a part, learns a vocabulary, packs, and trains a model that is fitted to the text, this machine "
        "and the minutes. The same command goes on with what was interrupted.",
    )
    _add_text(start)
    advise = add_verb(
        verbs,
        "advise",
        run_advise,
        "look at a text and this machine, and propose what to train",
        "Times a few real steps, and says what loss to expect. Writes nothing but --yaml.",
    )
    _add_text(advise)
    advise.add_argument(
        "--yaml", metavar="FILE", help="write the proposed settings to this file, for `pangu-lab start --config`"
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text",
        nargs="*",
        metavar="FILE",
        help="the text: files, patterns, folders or archives, as `pangu-lab prepare` takes them",
    )
    parser.add_argument("--input", nargs="+", default=[], metavar="GLOB", help="the same")
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        metavar="M",
        help="for everything, from the text to the end of training (default %(default)g)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="the run's folder, with all that is made (default runs/NAME of the text)"
    )
    add_reading(parser, "file")
    group = parser.add_argument_group("settings")
    group.add_argument("--config", metavar="FILE.yaml", help="settings from a file; what it does not say is fitted")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; can be given many times",
    )


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of ``advise`` and ``start``."""
    inputs = [*args.text, *args.input]
    if not inputs:
        raise InputError(f"name a text, such as `pangu-lab {args.verb} novel.txt --minutes 30`")
    return {
        "inputs": inputs,
        "minutes": args.minutes,
        "out": args.out,
        "how": reading(args, "file"),
        "changes": _changes(args),
    }


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given, by dotted key."""
    from pangu_lab.start.advice import BASE

    values = read_yaml(args.config) if args.config else {}
    if not isinstance(values, dict) or values.pop("preset", BASE) != BASE:
        raise InputError(
            f"{args.config}: must hold sections such as 'model:', and no preset but {BASE}, whose recipe is fitted; "
            "`pangu-lab train` trains the others"
        )
    return {
        f"{section}.{key}": value
        for section, content in values.items()
        if isinstance(content, dict)
        for key, value in content.items()
    } | parse_overrides(args.set)


def run_advise(args: argparse.Namespace) -> int:
    from pangu_lab.files import write_text_atomic
    from pangu_lab.start import advise, tell

    if args.yaml and Path(args.yaml).exists():
        raise InputError(f"{args.yaml} is there already: give another name for --yaml")
    with progress_bar("advise") as progress:
        advice = advise(**_given(args), progress=progress)
    tell(advice, say)
    if args.yaml:
        write_text_atomic(args.yaml, advice.yaml())
        say(f"settings: {args.yaml}")
    else:
        say(
            "settings (--yaml FILE writes them):\n"
            + "".join(f"  {line}\n" for line in advice.yaml().splitlines()).rstrip()
        )
    command = advice.command(*(["--config", args.yaml] if args.yaml else given_settings(args)))
    say(f"next: {command}")
    return finish(args, {**advice.to_dict(), "command": command})


def run_start(args: argparse.Namespace) -> int:
    from pangu_lab.start import start
    from pangu_lab.train import TrainingFailed

    given = _given(args)
    try:
        with progress_bar("start") as progress:
            started = start(**given, progress=progress, say=say)
    except TrainingFailed as error:
        complain(f"pangu-lab start: {error}")
        return 1
    result = started.result
    for note in result.notes:
        say(note)
    for prompt, text in started.samples:
        say(f"sample: {one_line(prompt)} ▸ {one_line(text)}")
    say(ending(result))
    if started.model.endswith("@best"):
        say(best_line(result.best, started.model))
    if result.reason in GOES_ON:
        say(GOES_ON[result.reason])
    say("next:\n" + "\n".join(f"  {command}" for command in started.commands))
    return finish(
        args,
        {
            "run": str(started.run),
            "model": started.model,
            "result": result,
            "samples": started.samples,
            "commands": started.commands,
        },
    )
