"""The verb that generates text with a trained model: generate."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from pangu_lab.cli.common import add_dtype, add_verb, check_signature, escaped_text, finish, text_argument
from pangu_lab.cli.processes import add_processes, opened
from pangu_lab.config import RunConfig, SamplingConfig, apply_overrides, parse_overrides
from pangu_lab.corpus.encoding import EURO, find_encoding
from pangu_lab.errors import InputError
from pangu_lab.terminal import complain, say, write


def register(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "generate",
        run_generate,
        "continue a prompt",
        "One text streams as it is generated; several (sampling.num_return_sequences) come at the end.",
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR",
        help="a run, a checkpoint, a converted release or a bundle",
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="instead of the one stored there: 'pangu', or a folder")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        type=text_argument,
        help="what to continue; can be given many times (default: standard input, in UTF-8 or GBK)",
    )
    parser.add_argument(
        "--verify", metavar="KEY", help="refuse a bundle that was not signed with the key in the file KEY"
    )
    add_dtype(parser)
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="read the whole text again for every token (the reference's use_past=false): the same text, slowly",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum number of new tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens; 0: among all")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that together hold P")
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        type=escaped_text,
        help="end before this text; \\n is a line end, \\\\ a backslash",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument(
        "--verse",
        metavar="LINESxLENGTH",
        help="hold the text to this form of verse: 4x5, 4x7, 8x5 or 8x7; the prompt is its title",
    )
    parser.add_argument("--rhyme", action="store_true", help="with --verse: the even lines rhyme")
    parser.add_argument("--acrostic", metavar="TEXT", help="with --verse: the first characters of its lines")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="sampling.KEY=VALUE",
        help="any other sampling setting, such as sampling.min_p=0.05",
    )
    add_processes(parser)


def sampling(args: argparse.Namespace, base: SamplingConfig) -> SamplingConfig:
    """``base`` with the command line's sampling options applied."""
    own = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed")
    given = {f"sampling.{key}": getattr(args, key) for key in own if getattr(args, key) is not None}
    if given.get("sampling.top_k") == 0:  # off, as in the API
        given["sampling.top_k"] = None
    overrides = {**parse_overrides(args.set), **given}
    for key in overrides:
        if key.split(".")[0] in ("model", "tokenizer", "data", "train", "parallel"):
            raise InputError(f"--set {key}: a trained model only takes sampling.* settings")
    return apply_overrides(dataclasses.replace(RunConfig(), sampling=base), overrides).sampling


def prompts(args: argparse.Namespace) -> list[str]:
    """The --prompt options, or else all of standard input as one prompt."""
    if args.prompt:
        return args.prompt
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("give --prompt TEXT, or the text on standard input")
    text = _decoded(sys.stdin.buffer.read()) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    return [text.rstrip("\n")]


def _decoded(content: bytes) -> str:
    """A prompt as a file or a program of any system gives it: UTF-8, UTF-16 or GBK, with or without a mark."""
    found = find_encoding([content])
    if found.bad is not None:
        raise InputError(f"the text on standard input is {found.complaint.partition(':')[0]}: save it as UTF-8")
    text = content.decode(found.encoding, EURO)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def run_generate(args: argparse.Namespace) -> int:
    sampling(args, SamplingConfig())  # report a wrong setting before anything is loaded
    texts, held_to = prompts(args), _verse(args)
    if held_to is not None:  # a poem begins on a line of its own, below its title
        texts = [text if text.endswith("\n") else text + "\n" for text in texts]
    check_signature(args.source, args.verify)
    with opened(args, args.source, args.tokenizer, args.dtype) as model:
        return finish(args, []) if model is None else _write_all(args, model.engine, texts, held_to)


def _write_all(args: argparse.Namespace, engine: Any, texts: list[str], held_to: Any) -> int:
    if args.no_cache:
        from pangu_lab.generate.uncached import UncachedRunner

        engine.runner = UncachedRunner(engine.runner)
    chosen = sampling(args, engine.sampling)
    if held_to is not None and args.max_new_tokens is None:  # the form says how long it is
        chosen = dataclasses.replace(chosen, max_new_tokens=max(chosen.max_new_tokens, held_to.tokens))
    one_text = chosen.num_beams == 1 and chosen.num_return_sequences == 1
    results = [(_stream if one_text else _several)(engine, text, chosen, held_to) for text in texts]
    return finish(args, [{"prompt": text, **dataclasses.asdict(result)} for text, result in zip(texts, results)])


def _verse(args: argparse.Namespace) -> Any:
    """The constraint that the options name; None without --verse."""
    from pangu_lab.generate.constraint import Verse

    if args.verse is None:
        if args.rhyme or args.acrostic:
            raise InputError(f"--{'rhyme' if args.rhyme else 'acrostic'} needs --verse, such as --verse 4x7")
        return None
    lines, _, length = args.verse.partition("x")
    if not (lines.isdecimal() and length.isdecimal()):
        raise InputError(f"--verse {args.verse}: give lines x characters, such as 4x7")
    return Verse(int(lines), int(length), args.rhyme, args.acrostic or "")


def _stream(engine: Any, prompt: str, chosen: SamplingConfig, held_to: Any) -> Any:
    """Print the prompt and its continuation while it is generated."""
    from pangu_lab.generate import stream

    pieces = stream(engine, prompt, chosen, held_to)
    write(prompt)
    try:
        for piece in pieces:
            write(piece)
    finally:  # what is said of an end before the end is a line of its own
        say()
    _warn(pieces.completion)
    return pieces.completion


def _several(engine: Any, prompt: str, chosen: SamplingConfig, held_to: Any) -> Any:
    from pangu_lab.generate import generate

    done = generate(engine, prompt, dataclasses.replace(chosen, echo=False), constraint=held_to)
    for number, completion in enumerate(done.all, 1):
        say(f"{number}. {prompt}{completion.text}")
    _warn(done)
    return done


def _warn(completion: Any) -> None:
    for warning in completion.warnings:
        complain(f"pangu-lab generate: {warning}")
