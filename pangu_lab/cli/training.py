"""Verbs about training: train, runs."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_lab.cli.common import (
    add_init_from,
    add_minutes,
    add_settings,
    add_start_over,
    add_verb,
    finish,
    training_settings,
)
from pangu_lab.errors import InputError
from pangu_lab.terminal import complain, duration, one_line, progress_bar, say, table

if TYPE_CHECKING:
    from pangu_lab.checkpoint.best import Best
    from pangu_lab.runs import RunSummary

SECONDS = 1.0  # how often --follow polls
DIFFERENT = {
    "bits": "their vocabularies differ: losses and perplexities do not compare, bits per character do",
    "none": "their vocabularies differ: losses and perplexities do not compare, and a run does not know its bits per "
    "character: evaluate both with `pangu-lab evaluate perplexity` on a data set prepared for each",
}


def register(verbs: Any) -> None:
    train = add_verb(
        verbs,
        "train",
        run_train,
        "train a model, or resume a run",
        "An existing run resumes from its last good checkpoint. Ctrl-C finishes the step, saves and exits cleanly.",
    )
    train.add_argument("--run", required=True, metavar="DIR", help="the run's folder, such as runs/first")
    train.add_argument("--data", metavar="DIR", help="a data set made by `pangu-lab prepare`")
    train.add_argument("--eval-data", metavar="DIR", help="a held-out data set, for perplexity during training")
    train.add_argument("--steps", type=int, metavar="N", help="total number of steps")
    add_minutes(train)
    add_init_from(train)
    train.add_argument("--new", action="store_true", help="refuse to resume an existing run")
    add_start_over(train)
    add_settings(train)
    runs = add_verb(verbs, "runs", show_runs, "list runs: what they are doing, their losses and speed")
    runs.add_argument(
        "folder",
        nargs="?",
        default="runs",
        metavar="DIR",
        help="the folder with the runs, or one run (default %(default)s)",
    )
    runs.add_argument(
        "--stop", metavar="NAME", help="ask this run (its name, or its folder) to finish its step, save and end"
    )
    runs.add_argument(
        "--samples",
        action="store_true",
        help="print what one run (its folder, or its name in runs) wrote at its evaluations (train.sample_prompts)",
    )
    runs.add_argument(
        "--ranks",
        action="store_true",
        help="list the ranks of one run, on whatever hosts: state, step, and when each was last heard of",
    )
    runs.add_argument(
        "--compare",
        nargs="+",
        metavar="NAME",
        help="compare these runs: curves, losses at the same steps, settings that differ",
    )
    runs.add_argument(
        "--tensorboard", metavar="OUT", help="write the scalars of every run (or of those in --compare) for TensorBoard"
    )
    runs.add_argument("--swanlab", metavar="OUT", help="the same for SwanLab, stored in OUT; `swanlab sync` uploads it")
    runs.add_argument(
        "--follow", action="store_true", help="keep writing what the runs do, including new runs, until Ctrl-C"
    )


def run_train(args: argparse.Namespace) -> int:
    run = Path(args.run)
    config = training_settings(
        args,
        run,
        run / "config.yaml",
        train__steps=args.steps,
        train__minutes=args.minutes,
        train__max_minutes=args.max_minutes,
    )
    if not config.data.path:
        raise InputError("give --data DIR: a data set made by `pangu-lab prepare`")
    from pangu_lab.runs.memory import memory_lines
    from pangu_lab.train import TrainingFailed, train

    try:
        with progress_bar("train") as progress:
            progress(0, None, "compiling")
            resume = False if args.new else "start-over" if args.start_over else "auto"
            result = train(config, run, resume=resume, progress=progress)
    except TrainingFailed as error:
        complain(f"pangu-lab train: {error}")
        return 1
    for note in result.notes:
        say(note)
    say(ending(result))
    say(f"checkpoint: {result.checkpoint}")
    if result.reason == "time budget":
        for line in still_high(config, result.step):
            say(line)
    if result.best is not None and result.best.step != result.step:
        say(best_line(result.best, f"{args.run}@best"))
    for line in memory_lines(run):
        say(line)
    return finish(args, result)


def still_high(config: Any, step: int) -> list[str]:
    """That the time ended before the schedule did, where it did."""
    from pangu_lab.train import learning_rate

    rate, settings = learning_rate(config.train, step), config.train
    if settings.minutes is not None or rate <= settings.end_lr + 0.05 * (settings.start_lr - settings.end_lr):
        return []
    return [
        f"the time ended at step {step} of {settings.steps}, with the learning rate still at {rate:.2g} of "
        f"{settings.start_lr:.2g}: the same command goes on; --minutes instead of --max-minutes lets the rate reach its end "
        "with the time"
    ]


def ending(result: Any) -> str:
    """How a training ended, in a line; one that had no step left to make has no loss."""
    loss = [] if math.isnan(result.loss) else [f"loss {result.loss:.3f}"]
    return f"{result.reason} at step {result.step}: " + ", ".join(loss + _held_out(result))


def best_line(best: Best, name: str) -> str:
    """Which step had the lowest held-out loss, and how to name its checkpoint."""
    return f"best: held-out loss {best.loss:.3f}, perplexity {math.exp(best.loss):.2f} at step {best.step}, kept: --from {name}"


def _held_out(result: Any) -> list[str]:
    if result.eval_perplexity is None:
        return []
    bits = (
        "" if result.eval_bits_per_character is None else f", {result.eval_bits_per_character:.3f} bits per character"
    )
    part, whole = result.eval_records, result.eval_of_records
    on = f"all {whole:,} records" if part == whole else f"{part:,} of {whole:,} records (train.eval_batches)"
    when = "" if result.eval_step == result.step else f", measured at step {result.eval_step}"
    return [f"held-out perplexity {result.eval_perplexity:.2f}{bits} on {on}{when}"]


def show_runs(args: argparse.Namespace) -> int:
    from pangu_lab.runs import list_runs, request_stop
    from pangu_lab.runs.status import summarise

    if args.stop:
        request_stop(_run_named(args, args.stop))
        say(f"asked {args.stop} to stop after the step it is in")
        return finish(args, {"run": args.stop, "asked": "stop"})
    if args.samples:
        return _show_samples(args)
    if args.ranks:
        return _show_ranks(args)
    if args.compare:
        from pangu_lab.runs.comparison import compare_runs

        comparison = compare_runs([_run_named(args, name) for name in args.compare])
        _show_comparison(comparison)
        return finish(args, {"comparison": comparison, **_boards(args)})
    if args.tensorboard or args.swanlab or args.follow:
        return finish(args, _boards(args))
    found = [summarise(args.folder)] if _is_run(Path(args.folder)) else list_runs(args.folder)
    if not found:
        say(f"no runs in {args.folder}: `pangu-lab train --run {args.folder}/first …` starts one")
    else:
        _run_table(
            found,
            {
                "heard of": [f"{duration(time.time() - run.heartbeat)} ago" for run in found],
                "why it ended": [run.reason or None for run in found],
            },
        )
    for run in found:
        if run.damaged_events:
            say(f"{run.name}: {run.damaged_events} damaged lines of its events were skipped")
    return finish(args, found)


def _run_table(runs: Sequence[RunSummary], more: dict[str, Sequence[Any]]) -> None:
    """Runs, one a line; a column that holds nothing is left out."""
    columns = {
        "run": [run.name for run in runs],
        "state": [run.state for run in runs],
        "step": [run.step for run in runs],
        "of": [run.steps for run in runs],
        "time left": [_time(run.seconds_left) for run in runs],
        "epochs": [run.epochs for run in runs],
        "tokens/\nparameter": [run.tokens_per_parameter for run in runs],
        "loss": [run.loss for run in runs],
        "perplexity": [run.eval_perplexity for run in runs],
        "bits/char": [run.eval_bits_per_character for run in runs],
        "tokens/s": [run.tokens_per_second for run in runs],
        **more,
    }
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    table(list(columns), zip(*columns.values()))


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _show_samples(args: argparse.Namespace) -> int:
    from pangu_lab.runs import read_curves

    folder = _one_run(args, "--samples")
    samples = read_curves(folder).samples
    if not samples:
        say(
            f"{folder}: no samples: a run writes them with --set train.sample_prompts='[\"春天来了，\"]' and held-out data"
        )
    for sample in samples:
        say(f"step {sample['step']}: {one_line(sample['prompt'])} ▸ {one_line(sample['text'])}")
    return finish(args, [{key: sample[key] for key in ("step", "prompt", "text")} for sample in samples])


def _show_ranks(args: argparse.Namespace) -> int:
    from pangu_lab.runs import read_ranks

    folder = _one_run(args, "--ranks")
    found = read_ranks(folder)
    if not found:
        say(f"{folder}: no heartbeats of ranks: only a launch has them")
    else:
        table(
            ["rank", "host", "pid", "state", "step", "heard of", "why it ended"],
            [
                [one.rank, one.host, one.pid, one.state, one.step, f"{duration(one.age)} ago", one.note or None]
                for one in found
            ],
        )
    return finish(args, found)


def _one_run(args: argparse.Namespace, option: str) -> Path:
    """The run that DIR is, or that is named so in ``runs``; its ranks may not have begun to train."""
    for folder in (Path(args.folder), Path("runs") / args.folder):
        if _is_run(folder) or option == "--ranks" and (folder / "launch.json").exists():
            return folder
    raise InputError(f"{args.folder}: no run here: name one, such as `pangu-lab runs runs/first {option}`")


def _boards(args: argparse.Namespace) -> dict[str, Any]:
    """Replay runs for TensorBoard or SwanLab, once or until Ctrl-C."""
    from pangu_lab.runs import boards

    if args.tensorboard and args.swanlab:
        raise InputError("give --tensorboard or --swanlab: one board at a time")
    out = args.tensorboard or args.swanlab
    if not out:
        if args.follow:
            raise InputError("--follow goes with --tensorboard OUT or --swanlab OUT")
        return {}
    runs = _runs_of(args)
    if not runs and not args.follow:
        raise InputError(f"no runs in {args.folder}: there is nothing to write")
    if args.follow:
        return _follow(args, out)
    export = boards.export_tensorboard if args.tensorboard else boards.export_swanlab
    written = [export(folder, out) for folder in runs]
    say(
        f"wrote {len(runs)} runs: "
        + (f"tensorboard --logdir {out}" if args.tensorboard else f"swanlab sync {out}/run-…")
    )
    return {"tensorboard" if args.tensorboard else "swanlab": written}


def _is_run(folder: Path) -> bool:
    from pangu_lab.runs.status import STATUS

    return (folder / STATUS).exists()


def _run_named(args: argparse.Namespace, name: str) -> Path:
    """``first`` in DIR, or ``runs/first`` as it stands."""
    inside = Path(args.folder) / name
    return Path(name) if not _is_run(inside) and _is_run(Path(name)) else inside


def _runs_of(args: argparse.Namespace) -> list[Path]:
    """Those that --compare names, the one that DIR is, or all in DIR."""
    from pangu_lab.runs import list_runs

    folder = Path(args.folder)
    if args.compare:
        return [_run_named(args, name) for name in args.compare]
    return [folder] if _is_run(folder) else [run.folder for run in list_runs(folder)]


def _follow(args: argparse.Namespace, out: str) -> dict[str, Any]:
    from pangu_lab.runs import boards

    if args.swanlab and len(_runs_of(args)) != 1:
        raise InputError(
            "SwanLab takes one run a process: name it, such as `pangu-lab runs runs/first --swanlab OUT --follow`"
        )

    def open_board(folder: Path) -> boards.Board:
        say(f"{folder}: followed")
        return boards.live_tensorboard(folder, out) if args.tensorboard else boards.SwanLab(folder, out)

    def ticks() -> Iterator[None]:
        while True:
            yield
            time.sleep(SECONDS)

    only = _runs_of(args)
    runs = (lambda: only) if args.swanlab else (lambda: _runs_of(args))
    say("Ctrl-C ends it" + (f"; tensorboard --logdir {out}" if args.tensorboard else ""))
    with contextlib.suppress(KeyboardInterrupt):
        boards.follow(runs, open_board, ticks())
    return {"followed": out}


def _show_comparison(comparison: Any) -> None:
    runs = comparison.runs
    names = [run.name for run in runs]
    unit = "bits per character" if comparison.unit == "bits" else "training loss"
    _run_table(runs, {})
    table(("run", "from the first step to the last"), zip(names, comparison.curves), title=f"{unit}, smoothed")
    table(
        ("step", *names),
        [(step, *losses) for step, losses in comparison.losses.items()],
        title=f"{unit}, smoothed" + (" (training)" if comparison.unit == "bits" else ""),
    )
    if comparison.unit != "loss":
        say(DIFFERENT[comparison.unit])
    if comparison.settings:
        table(
            ("setting", *names),
            [(key, *map(str, values)) for key, values in comparison.settings.items()],
            title="settings that differ",
        )
    else:
        say("their settings are the same")
