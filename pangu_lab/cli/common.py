"""What the verbs share: a parser with one-line errors, the settings options, results as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pangu_lab.config import RunConfig, apply_overrides, parse_overrides
from pangu_lab.errors import InputError, nearest
from pangu_lab.presets import PRESETS, load_yaml, preset
from pangu_lab.reading import read_yaml
from pangu_lab.terminal import complain, say, say_json

Handler = Callable[[argparse.Namespace], int]


class _Help(argparse.HelpFormatter):
    """Wider columns, with room for the longest verb, which argparse measures without its indentation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns - 2))
        self._action_max_length = 14


class Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is reported in one line, with the closest valid word and where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_Help, **kwargs)

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument VERB: invalid choice: "):
            wrong = message.partition("'")[2].partition("'")[0]
            message = f"unknown verb '{wrong}'" + nearest(wrong, self._verbs())
        elif message.startswith("unrecognized arguments: "):
            wrong = message.partition(": ")[2].split()[0]
            if wrong.startswith("-"):
                message = f"unknown argument '{wrong}'" + nearest(wrong.partition("=")[0], self._option_strings())
            else:
                guess = f" (did you mean '--preset {wrong}'?)" if wrong in PRESETS else ""
                message = f"'{wrong}' belongs to no option{guess}"
        complain(f"{self.prog}: {message} (see `{self.prog} --help`)")
        self.exit(2)

    def parse_args(self, args=None, namespace=None):
        """As argparse, but arguments a verb does not know are reported by the verb's own parser."""
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(values, "parser", self).error("unrecognized arguments: " + " ".join(rest))
        return values

    def _verbs(self) -> list[str]:
        return [
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name in action.choices
        ]

    def _option_strings(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def add_verb(verbs: Any, name: str, handler: Handler, summary: str, details: str = "") -> argparse.ArgumentParser:
    """A parser for one verb, with ``--json``, which every verb has."""
    parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}")
    parser.set_defaults(handler=handler, parser=parser)
    parser.add_argument("--json", action="store_true", help="print the results as one line of JSON at the end")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """``--preset``, ``--config`` and ``--set``, for the verbs that need a RunConfig."""
    group = parser.add_argument_group("settings")
    group.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    group.add_argument("--config", metavar="FILE.yaml", help="settings from a file; they override the preset")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; can be given many times",
    )


def settings(args: argparse.Namespace, fallback: Path | None = None, **values: Any) -> RunConfig:
    """The effective settings: preset, then file, then ``--set``, then the verb's own options.

    Args:
        fallback: a configuration file to use when neither --preset nor --config is given.
        values: dotted keys (with ``__`` for the dot) of the verb's own options; None means not given.
    """
    if args.config:
        config = load_yaml(args.config, preset(args.preset) if args.preset else None)
    elif args.preset:
        config = preset(args.preset)
    elif fallback is not None and fallback.is_file():
        config = load_yaml(fallback)
    elif getattr(args, "init_from", None):
        from pangu_lab.checkpoint.best import named

        config = _network_of(named(args.init_from))
    else:
        raise InputError(f"give --preset NAME ({', '.join(PRESETS)}) or --config FILE.yaml")
    own = {key.replace("__", "."): value for key, value in values.items() if value is not None}
    return apply_overrides(config, {**parse_overrides(args.set), **own})


def given_settings(args: argparse.Namespace) -> list[str]:
    """The options for settings as they were given."""
    words = [
        word
        for option in ("preset", "config")
        if (value := getattr(args, option, None))
        for word in (f"--{option}", value)
    ]
    return words + [word for item in args.set for word in ("--set", item)]


def training_settings(args: argparse.Namespace, run: Path, fallback: Path, **values: Any) -> RunConfig:
    """``settings`` of a verb that trains; the size of the vocabulary is the data set's where it is not set.

    A run that is there keeps its own, and weights to start from (--init-from) keep theirs.
    """
    config = settings(
        args,
        fallback=fallback,
        data__path=args.data,
        data__eval_path=args.eval_data,
        train__init_from=init_from(args),
        **values,
    )
    from pangu_lab.data import vocabulary_of

    from_preset = args.preset and "model.vocab_size" not in parse_overrides(args.set)
    if (
        not from_preset
        or config.train.init_from
        or args.config
        and "vocab_size" in (read_yaml(args.config).get("model") or {})
    ):
        return config
    there = run / "config.yaml"
    size = load_yaml(there).model.vocab_size if there.is_file() else vocabulary_of(config.data.path)
    if size is not None:
        size = -(-size // config.parallel.tensor) * config.parallel.tensor  # which divides it
    if size in (None, config.model.vocab_size):
        return config
    say(
        f"model.vocab_size={size}, as {there if there.is_file() else config.data.path} has it; preset {args.preset}: "
        f"{config.model.vocab_size}"
    )
    return config.replace(**{"model.vocab_size": size})


def _network_of(folder: Path) -> RunConfig:
    """The network of the weights in ``folder``, with all other settings from its preset."""
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: not a run or a checkpoint; convert released files first with `pangu-lab convert`")
    theirs = load_yaml(folder / "config.yaml")
    base = preset(theirs.preset if theirs.preset in PRESETS else "self_define")
    return dataclasses.replace(
        base, model=theirs.model, data=dataclasses.replace(base.data, seq_length=theirs.data.seq_length)
    )


def add_init_from(parser: argparse.ArgumentParser) -> None:
    """``--init-from``, for the verbs that train."""
    parser.add_argument(
        "--init-from",
        metavar="DIR",
        help="start from the weights of a run, a checkpoint or a "
        "converted release; schedule and optimizer start fresh (incremental training)",
    )


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """``--minutes`` and ``--max-minutes``, for the verbs that train."""
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="the whole time of the run: its steps are fitted to it, so "
        "that the learning rate reaches its end when the minutes do",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        metavar="M",
        help="a time budget of this call; ends with a checkpoint, and the same command goes on",
    )


def add_start_over(parser: argparse.ArgumentParser) -> None:
    """``--start-over``, for the verbs that train."""
    parser.add_argument(
        "--start-over",
        action="store_true",
        help="start again at step 0 when every checkpoint of the "
        "run is damaged; damaged ones are kept under the name step-….damaged",
    )


def init_from(args: argparse.Namespace) -> str | None:
    """The setting behind the option: an absolute path, so that it means the same on every rank."""
    return str(Path(args.init_from).resolve()) if args.init_from else None


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """``--dtype`` of a command that generates, and ``--int8``, the same as a word."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "int8"),
        metavar="TYPE",
        help=(
            "of the weights in memory: float32, float16, bfloat16, or int8 with a scale per output; each token then reads a half "
            "or a quarter (needs a C compiler; default: float16 where they are stored so, else float32)"
        ),
    )
    either.add_argument("--int8", action="store_const", dest="dtype", const="int8", help="--dtype int8")


def text_argument(value: str) -> str:
    """The type of an option that holds text: refuses bytes that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text: set the terminal to UTF-8") from None
    return value


def escaped_text(value: str) -> str:
    """A text in which ``\\n``, ``\\t`` and ``\\\\`` stand for a line end, a tab and a backslash."""
    known = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda match: known[match[0]], text_argument(value))


def check_signature(source: str, key: str | None) -> None:
    """What ``--verify KEY`` asks for; nothing where it was not given."""
    if key is not None:
        from pangu_lab.export import read_key, verify_signature
        from pangu_lab.loading import find

        verify_signature(find(source), read_key(key))


def finish(args: argparse.Namespace, values: Any, code: int = 0) -> int:
    """Print ``values`` as the last line when --json was given; returns the exit code."""
    if args.json:
        say_json(values)
    return code
