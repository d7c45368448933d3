"""A text to a trained model in one step: ``start``.

    RUN/                         the run, as any other
    RUN/start/note.json          which text it is, and how much time was spent before training
    RUN/start/text/              train.jsonl and heldout.jsonl: no text stands in both
    RUN/start/tokenizer/         learned from the first of them
    RUN/start/train/, heldout/   the data sets
    RUN/start/settings.yaml      fitted to the text, the machine and the minutes

Each appears when it is complete; what an interrupted call has made is not made again, and training goes on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_lab.config import RunConfig
from pangu_lab.corpus import Inputs, Reading
from pangu_lab.data import prepare
from pangu_lab.errors import InputError
from pangu_lab.files import write_json_atomic, write_text_atomic
from pangu_lab.presets import load_yaml
from pangu_lab.progress import Progress, silent
from pangu_lab.reading import read_json
from pangu_lab.runs import read_curves
from pangu_lab.schema import Schema, Seconds
from pangu_lab.start.advice import Advice, Measure, advice_of, check, default_folder, names_of
from pangu_lab.start.splitting import PARTS, Look, look_at, split_text
from pangu_lab.tokenizer import load_tokenizer, train_vocabulary

if TYPE_CHECKING:
    from pangu_lab.train import TrainResult

FOLDER, NOTE, SETTINGS = "start", "note.json", "settings.yaml"  # the first in the run's folder
PROMPTS, PROMPT = (
    2,
    12,
)  # how many beginnings of held-out paragraphs are continued, and how many characters they have at most
ROWS = Reading("jsonl")
Say = Callable[[str], None]


class _Note(Schema):
    text: str
    minutes: Seconds
    spent: Seconds = 0.0


@dataclass(frozen=True)
class Started:
    """What ``start`` made.

    Attributes:
        model: what to name wherever a model is named: the run, or its best checkpoint where that is better than its last.
        samples: (prompt, continuation) of the last evaluation.
        commands: what to type next.
    """

    run: Path
    model: str
    result: TrainResult
    samples: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def start(
    inputs: Inputs,
    minutes: float,
    out: Path | str | None = None,
    *,
    how: Reading | None = None,
    changes: dict[str, Any] | None = None,
    measure: Measure | None = None,
    progress: Progress = silent,
    say: Say = lambda text: None,
) -> Started:
    """Train a model on a text in ``minutes``, everything included.

    Args:
        inputs: files, patterns, folders or archives.
        out: the run's folder; ``runs/NAME`` after the first input by default. What is there of an interrupted call is kept.
        how: how files become documents; by default a file of prose is one document.
        changes: settings by dotted key that are given; the others are fitted, see ``advise``.
        measure: see ``advise``.
        say: called with each line for a person.

    Raises:
        InputError: the text cannot be used, or ``out`` holds something else.
        TrainingFailed: see ``train``.
    """
    from pangu_lab.train import train

    check(minutes, changes or {})
    begun, how = time.monotonic(), how or Reading(documents="file")
    names = names_of(inputs)
    run = Path(out or default_folder(names))
    folder = run / FOLDER
    look = look_at(inputs, how, progress)
    note = _note(run, look, minutes)
    if (folder / SETTINGS).is_file():
        config = _again(folder, note, minutes, changes or {}, say)
    else:
        advice = advice_of(
            look, names, minutes, out=str(run), how=how, changes=changes, measure=measure, progress=progress
        )
        tell(advice, say)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / NOTE, note)
        config = _make_data(folder, advice, look, progress, say)
        spent = time.monotonic() - begun
        left = max(minutes - spent / 60.0, 0.5 * minutes)
        config = config.replace(**{"train.minutes": round(left, 4)})
        write_json_atomic(folder / NOTE, {**note, "spent": round(60.0 * (minutes - left), 1)})
        write_text_atomic(folder / SETTINGS, config.to_yaml())
    say(
        f"training: {config.model.num_parameters:,} parameters, {config.train.minutes or 0.0:.1f} minutes for it; the first step "
        "compiles"
    )
    return _told(run, train(config, run, progress=progress))


def tell(advice: Advice, say: Say) -> None:
    """The advice in lines for a person."""
    low, high = advice.bits
    config, most = advice.config, f", and at most {advice.config.train.steps:,} if they are made quicker than now"
    say(
        f"text: {advice.characters:,} characters, {advice.documents:,} document{'s' * (advice.documents > 1)}; "
        f"{advice.heldout:,} characters are held out, to measure on text that was not learned"
    )
    for reason in advice.reasons:
        say(reason)
    say(
        f"proposed: {advice.steps:,} steps of {config.data.batch_size} × {config.data.seq_length} tokens"
        f"{most if config.train.steps > advice.steps else ''}; expect {low:.1f} to {high:.1f} bits per character held out, a "
        f"perplexity of {advice.perplexity[0]:.0f} to {advice.perplexity[1]:.0f} a token"
    )


# ------------------------------------------------------------------------------------------------------ the folder


def _note(run: Path, look: Look, minutes: float) -> dict[str, Any]:
    """The note of a folder of the same text, or a new one; refuses a folder of anything else."""
    path = run / FOLDER / NOTE
    if path.is_file():
        note = read_json(path, "the note of `pangu-lab start`", _Note, "give another --out")
        if note["text"] != look.identity:
            raise InputError(
                f"{run} was made of another text, or of one that was read in another way: give another --out"
            )
        return note
    if run.exists() and (not run.is_dir() or {found.name for found in run.iterdir()} - {"logs", FOLDER}):
        raise InputError(f"{run} is there and was not made by `pangu-lab start`: give another --out")
    return {"text": look.identity, "minutes": minutes}


def _again(folder: Path, note: dict[str, Any], minutes: float, changes: dict[str, Any], say: Say) -> RunConfig:
    """The settings of an interrupted start, with the minutes that are given now."""
    config = load_yaml(folder / SETTINGS).replace(**_places(folder), **changes)
    say(f"{folder.parent}: goes on with what is there")
    if minutes == note["minutes"]:
        return config
    return config.replace(**{"train.minutes": max(0.0, minutes - note.get("spent", 0.0) / 60.0)})


def _make_data(folder: Path, advice: Advice, look: Look, progress: Progress, say: Say) -> RunConfig:
    """Text, vocabulary and data sets, as far as they are not there; the settings with their paths."""
    config = advice.config
    if not (folder / "text").is_dir():
        split = split_text(advice.inputs, folder / "text", advice.reading, look, progress)
        say(f"{split.folder}: {split.train:,} characters to learn from, {split.heldout:,} held out")
    if not (folder / "tokenizer").is_dir():
        train_vocabulary(
            folder / "text" / "train.jsonl",
            folder / "tokenizer",
            config.model.vocab_size,
            kind=advice.kind,
            progress=progress,
            how=ROWS,
        )
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for part in PARTS:
        if not (folder / part).is_dir():
            made = prepare(
                folder / "text" / f"{part}.jsonl",
                folder / part,
                tokenizer,
                record_length=config.data.seq_length + 1,
                how=ROWS,
                pad_last=True,
                progress=progress,
            )
            unknown = made.unknown_tokens / made.tokens
            say(f"{made.folder}: {made.tokens:,} tokens in {made.records:,} records, {unknown:.2%} unknown")
    prompts = config.train.sample_prompts or _beginnings(folder / "text" / "heldout.jsonl")
    return config.replace(
        **{"model.vocab_size": tokenizer.vocab_size, "train.sample_prompts": prompts}, **_places(folder)
    )


def _places(folder: Path) -> dict[str, str]:
    """The settings that say where the data sets are, which the folder can be moved with."""
    return {key: str(folder.absolute() / part) for key, part in zip(("data.path", "data.eval_path"), PARTS)}


def _beginnings(path: Path) -> tuple[str, ...]:
    """The first characters of a few held-out paragraphs, none of which is a heading."""
    found: list[str] = []
    with open(path, encoding="utf-8") as file:
        for row in file:
            lines = [line.strip() for line in json.loads(row)["text"].split("\n")]
            found += [line[:PROMPT] for line in lines if len(line) >= 2 * PROMPT] or [
                line[:PROMPT] for line in lines if line
            ]
            if len(found) > 50:
                break
    return tuple(dict.fromkeys(found[:: max(1, len(found) // PROMPTS)]))[:PROMPTS]


# --------------------------------------------------------------------------------------------------------- the end


def _told(run: Path, result: TrainResult) -> Started:
    best = result.best
    better = best is not None and result.eval_loss is not None and best.loss < result.eval_loss
    model = f"{run}@best" if better else str(run)
    samples = read_curves(run).samples
    shown = [item for item in samples if item["step"] == (best.step if better and best else result.step)] or samples
    shown = list({item["prompt"]: item for item in shown}.values())[-PROMPTS:]
    prompt = shown[0]["prompt"] if shown else "春天"
    commands = (
        shlex.join(["pangu-lab", "generate", "--from", model, "--prompt", prompt]),
        shlex.join(["pangu-lab", "evaluate", "perplexity", "--from", model, "--data", str(run / FOLDER / PARTS[1])]),
        shlex.join(["pangu-lab", "serve", "--from", model]),
    )
    return Started(run, model, result, tuple((item["prompt"], item["text"]) for item in shown), commands)
