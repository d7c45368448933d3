"""Verbs about training: train, runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from pangu_lab.cli.common import add_init_from, add_settings, add_verb, finish, init_from, settings
from pangu_lab.errors import InputError
from pangu_lab.terminal import complain, duration, progress_bar, say, table


def register(verbs: Any) -> None:
    train = add_verb(verbs, "train", run_train, "train a model, or go on with a run",
                     "A run that exists goes on where its last good checkpoint stands. Ctrl-C finishes the step, "
                     "saves and ends well.")
    train.add_argument("--run", required=True, metavar="DIR", help="the run's folder, such as runs/first")
    train.add_argument("--data", metavar="DIR", help="a data set made by `pangu-lab prepare`")
    train.add_argument("--eval-data", metavar="DIR", help="a held-out data set, for perplexity during training")
    train.add_argument("--steps", type=int, metavar="N", help="steps in all")
    train.add_argument("--max-minutes", type=float, metavar="M", help="a time budget; ends with a checkpoint")
    add_init_from(train)
    train.add_argument("--new", action="store_true", help="refuse to go on with a run that exists")
    add_settings(train)
    runs = add_verb(verbs, "runs", show_runs, "list runs: what they are doing, their losses and speed")
    runs.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="their place (default %(default)s)")
    runs.add_argument("--stop", metavar="NAME", help="ask this run to finish its step, save and end")
    runs.add_argument("--compare", nargs="+", metavar="NAME",
                      help="put these runs side by side: curves, losses at the same steps, settings that differ")
    runs.add_argument("--tensorboard", metavar="OUT",
                      help="write the scalars of every run (or of those of --compare) for TensorBoard")


def run_train(args: argparse.Namespace) -> int:
    run = Path(args.run)
    config = settings(args, fallback=run / "config.yaml", data__path=args.data, data__eval_path=args.eval_data,
                      train__steps=args.steps, train__max_minutes=args.max_minutes, train__init_from=init_from(args))
    if not config.data.path:
        raise InputError("give --data DIR: a data set made by `pangu-lab prepare`")
    from pangu_lab.train.loop import TrainingFailed, train
    from pangu_lab.train.memory import memory_lines

    try:
        with progress_bar("train") as progress:
            progress(0, None, "compiling")
            result = train(config, run, resume=False if args.new else "auto", progress=progress)
    except TrainingFailed as error:
        complain(f"pangu-lab train: {error}")
        return 1
    for note in result.notes:
        say(note)
    perplexity = "" if result.eval_perplexity is None else f", held-out perplexity {result.eval_perplexity:.2f}"
    say(f"{result.reason} at step {result.step}: loss {result.loss:.3f}{perplexity}")
    say(f"checkpoint: {result.checkpoint}")
    for line in memory_lines(run):
        say(line)
    return finish(args, result)


def show_runs(args: argparse.Namespace) -> int:
    from pangu_lab.train import list_runs, request_stop

    if args.stop:
        request_stop(Path(args.folder) / args.stop)
        say(f"asked {args.stop} to stop after the step it is in")
        return finish(args, {"run": args.stop, "asked": "stop"})
    if args.tensorboard or args.compare:
        return _compare_or_export(args)
    found = list_runs(args.folder)
    if not found:
        say(f"no runs in {args.folder}: `pangu-lab train --run {args.folder}/first …` makes one")
    else:
        table(("run", "state", "step", "of", "loss", "perplexity", "tokens/s", "heard of", "why it ended"),
              [(run.name, run.state, run.step, run.steps, run.loss, run.eval_perplexity, run.tokens_per_second,
                f"{duration(time.time() - run.heartbeat)} ago", run.reason) for run in found])
    return finish(args, found)


def _compare_or_export(args: argparse.Namespace) -> int:
    from pangu_lab.train import list_runs
    from pangu_lab.train.comparison import compare_runs, export_tensorboard

    folders = [Path(args.folder) / name for name in args.compare or ()] or [run.folder for run in list_runs(args.folder)]
    result: dict[str, Any] = {}
    if args.compare:
        comparison = result["comparison"] = compare_runs(folders)
        _show_comparison(comparison)
    if args.tensorboard:
        if not folders:
            raise InputError(f"no runs in {args.folder}: there is nothing to write")
        result["tensorboard"] = [export_tensorboard(folder, args.tensorboard) for folder in folders]
        say(f"wrote {len(folders)} runs: tensorboard --logdir {args.tensorboard}")
    return finish(args, result)


def _show_comparison(comparison: Any) -> None:
    runs = comparison.runs
    names = [run.name for run in runs]
    table(("run", "state", "step", "loss", "perplexity", "tokens/s", "loss, smoothed, from the first step to the last"),
          [(run.name, run.state, run.step, run.loss, run.eval_perplexity, run.tokens_per_second, curve)
           for run, curve in zip(runs, comparison.curves)])
    table(("step", *names), [(step, *losses) for step, losses in comparison.losses.items()],
          title="training loss, smoothed")
    if comparison.settings:
        table(("setting", *names), [(key, *map(str, values)) for key, values in comparison.settings.items()],
              title="settings that differ")
    else:
        say("their settings are the same")
