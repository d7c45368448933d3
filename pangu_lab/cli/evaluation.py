"""The verb that measures a model: evaluate."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

from pangu_lab.cli.common import add_verb, finish
from pangu_lab.cli.processes import add_processes, opened, places
from pangu_lab.errors import InputError
from pangu_lab.terminal import progress_bar, say, table

DETAILS = (
    "TASK is a published task such as c3, read from your own files in their published form; 'perplexity' of a "
    "prepared data set; 'verse', poems that the model writes to the titles of --data; or 'list', which shows every task with its metric, template and file format."
)


# what `evaluate` measures beside the published tasks, as `evaluate list` shows it
OTHERS = (
    ("perplexity", "perplexity, bits per character", "", "a data set made by `pangu-lab prepare`"),
    ("verse", "form, rhyme, tones, copies", "《{title}》\\n", "heldout.jsonl of `pangu-lab corpus verse`"),
)
VERSE_OPTIONS = ("train", "temperature", "top_p", "seed")


def register(verbs: Any) -> None:
    parser = add_verb(verbs, "evaluate", run_evaluate, "measure a model on a published task", DETAILS)
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "--from", dest="source", metavar="DIR", help="a run, a checkpoint, a converted release or a bundle"
    )
    parser.add_argument("--server", metavar="URL", help="a server instead: the same numbers through its API")
    parser.add_argument(
        "--baselines-only",
        action="store_true",
        help="no model: count the questions and show what trivial answers would score",
    )
    parser.add_argument("--data", nargs="+", metavar="PATH", help="files of the task, or the folder they are in")
    parser.add_argument("--split", metavar="PART", help="dev, test, train …: which files of a folder")
    parser.add_argument("--half", metavar="d|m", help="of c3: dialogues or other texts (default: both)")
    parser.add_argument("--scoring", metavar="WAY", help="of c3: corrected (default), or reference for comparison")
    parser.add_argument(
        "--template", metavar="TEXT", help="instead of the paper's; \\n is a line break, {|} marks where scoring begins"
    )
    parser.add_argument(
        "--negatives", type=int, metavar="N", help="of tnews and iflytek: wrong labels to offer (default 3; 0: all)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N questions only; of verse: N poems (default 200)"
    )
    parser.add_argument("--train", metavar="FILE.jsonl", help="of verse: the training poems, to find copies of them")
    parser.add_argument("--temperature", type=float, metavar="T", help="of verse (default 1)")
    parser.add_argument("--top-p", type=float, metavar="P", help="of verse (default 0.9)")
    parser.add_argument("--seed", type=int, metavar="N", help="of verse: draws titles and poems (default 1)")
    parser.add_argument("--tokenizer", metavar="NAME", help="instead of the one kept with the model")
    parser.add_argument(
        "--out",
        metavar="FILE.json",
        help="store every question's outcome; an interrupted evaluation resumes from there",
    )
    add_processes(parser)


def run_evaluate(args: argparse.Namespace) -> int:
    from pangu_lab.evaluate import evaluate, make_task

    if args.task == "list":
        return _list(args)
    if args.data is None:
        raise InputError("give --data: the task's files or their folder")
    if (args.source is not None) + (args.server is not None) + args.baselines_only != 1:
        raise InputError("give one of --from DIR, --server URL and --baselines-only")
    where = places(args)
    if where is not None and (args.source is None or args.task == "perplexity"):
        raise InputError(
            "several processes (--nproc, --hosts, --rank-table) are for tasks with --from DIR; for perplexity "
            "leave them out"
        )
    if args.task == "perplexity":
        return _perplexity(args)
    if args.task == "verse":
        return _verse(args)
    for name in VERSE_OPTIONS:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} belongs to the task verse")
    template = args.template.replace("\\n", "\n") if args.template is not None else None
    task = make_task(args.task, scoring=args.scoring, template=template, negatives=args.negatives)
    source = args.server if args.server is not None else args.source
    if args.server is not None and not args.server.startswith(("http://", "https://")):
        raise InputError(f"--server {args.server}: an address begins with http:// or https://")
    with contextlib.ExitStack() as held:
        if where is not None:
            source = held.enter_context(opened(args, args.source, args.tokenizer))
            if source is None:
                return finish(args, {})
        progress = held.enter_context(progress_bar(f"evaluate {args.task}"))
        held.enter_context(_sigterm_interrupts())
        result = evaluate(
            task,
            source,
            args.data,
            split=args.split,
            half=args.half,
            limit=args.limit,
            tokenizer=None if where is not None else args.tokenizer,
            out=args.out,
            progress=progress,
        )
    _show(result, task.title)
    return finish(args, dataclasses.asdict(result))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does: on a Ctrl-C during compilation, MindSpore sends the process SIGTERM."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _list(args: argparse.Namespace) -> int:
    from pangu_lab.evaluate import TASKS

    rows = [
        (name, task.metric, task.template.replace("\n", "\\n"), task.file_format) for name, task in TASKS.items()
    ] + list(OTHERS)
    table(("task", "metric", "template", "files"), rows)
    return finish(args, [dict(zip(("task", "metric", "template", "files"), row)) for row in rows])


def _perplexity(args: argparse.Namespace) -> int:
    from pangu_lab.evaluate import perplexity

    if args.source is None or len(args.data) != 1:
        raise InputError("perplexity needs --from DIR and one data set made by `pangu-lab prepare`")
    with progress_bar("evaluate perplexity") as progress:
        result = perplexity(args.source, args.data[0], max_records=args.limit, progress=progress)
    bits = "" if result.bits_per_character is None else f", {result.bits_per_character:.3f} bits per character"
    say(
        f"perplexity {result.perplexity:.2f} (loss {result.loss:.4f}{bits}) over {result.tokens:,} tokens in "
        f"{result.records:,} of {result.of_records:,} records"
    )
    return finish(args, dataclasses.asdict(result))


def _verse(args: argparse.Namespace) -> int:
    from pangu_lab.evaluate.verse import SAMPLING, evaluate_verse

    if args.server is not None or len(args.data) != 1:
        raise InputError("verse needs --from DIR, and in --data the heldout.jsonl of `pangu-lab corpus verse`")
    given = {key: getattr(args, key) for key in VERSE_OPTIONS[1:] if getattr(args, key) is not None}
    sampling = dataclasses.replace(SAMPLING, **given)
    limit = 200 if args.limit is None else args.limit
    with contextlib.ExitStack() as held:
        model = args.source if args.source is None else held.enter_context(opened(args, args.source, args.tokenizer))
        if model is None and args.dry_run:
            return finish(args, {})
        progress = held.enter_context(progress_bar("evaluate verse"))
        held.enter_context(_sigterm_interrupts())
        result = evaluate_verse(
            model, args.data[0], args.train, limit=limit, sampling=sampling, out=args.out, progress=progress
        )
    _show_verse(result)
    return finish(args, result.to_dict())


def _show_verse(result: Any) -> None:
    """The measures side by side, then a few poems, each with the training poem nearest to it."""
    names = {
        "n": "poems",
        "form": "right form",
        "rhyme": "rhyme",
        "loose_rhyme": "loose rhyme",
        "pattern": "tonal pattern",
        "tones": "tones that fit",
        "copied": "copied 7-spans",
        "repeated": "repeated poems",
    }
    rows = []
    for key, name in names.items():
        values = [getattr(column, key) for column in result.columns.values()]
        rows.append(
            (name, *(str(value) if key == "n" else "–" if value is None else f"{value:.1%}" for value in values))
        )
    table(("", *result.columns), rows)
    for poem in result.poems:
        say(f"\n《{poem.title}》\n{poem.text.strip()}")
        if poem.nearest is not None:
            near = poem.nearest
            say(
                f"nearest: 《{near.title}》 {near.text.replace(chr(10), '')}  (both have {near.span}; Jaccard {near.jaccard:.2f})"
            )


def _show(result: Any, title: str) -> None:
    """The score with its interval, then the baselines to compare it with."""
    percent = result.metric != "perplexity"

    def text(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:.2f}"

    say(f"{title}: n {result.n}")
    if result.value is not None:
        low, high = result.interval
        say(f"{result.metric.replace('_', ' ')} {text(result.value)}  (95 % interval {text(low)} to {text(high)})")
    for name, value in result.more.items():
        say(f"{name.replace('_', ' ')} " + (f"{value:.2f}" if name == "perplexity" else f"{value:.2%}"))
    for name, value in result.baselines.items():
        say(f"baseline {name}: {text(value)}")
    if result.cut:
        say(f"{result.cut} texts were longer than the model's window and shortened")
