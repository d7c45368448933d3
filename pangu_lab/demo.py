"""The whole workflow once through: what ``make demo`` and ``pangu-lab demo`` run.

Every stage calls the same function as the matching verb of the command line, so this is also the shortest
description of how to use the library: vocabulary, data, training, curve, generation, export, and the check that the
exported bundle continues a prompt with exactly the same tokens as the Python model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.checkpoint import list_checkpoints
from pangu_lab.config import RunConfig, SamplingConfig
from pangu_lab.data import open_dataset, prepare, sample_files
from pangu_lab.errors import InputError
from pangu_lab.export import export_run
from pangu_lab.generate import generate
from pangu_lab.launch import launch
from pangu_lab.lm import PanguLM
from pangu_lab.presets import preset
from pangu_lab.progress import Progress, silent
from pangu_lab.runs import read_curves
from pangu_lab.runs.curves import plot_curves, text_curve
from pangu_lab.tokenizer import load_tokenizer, train_vocabulary

PROMPTS = ("春天来了，", "问：怎样才能学好数学？\n答：", "亲爱的妈妈：\n")


@dataclass(frozen=True)
class DemoResult:
    """The demonstration's measurements. Perplexities are of the held-out part of the sample, before and after."""

    run: Path
    bundle: Path
    curve: Path
    perplexity_before: float
    perplexity_after: float
    continuations: tuple[str, ...]
    bundle_equals_python: bool
    seconds: float


def run_demo(
    folder: Path | str,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
    config: RunConfig | None = None,
) -> DemoResult:
    """Prepare the sample, train, generate, export, check.

    Args:
        folder: the output folder; the results of an earlier demonstration in it are replaced.
        say: called with each line of output.
        config: settings other than the preset ``tiny``.

    Raises:
        InputError: ``folder`` holds something that the demonstration did not make.
    """
    started = time.monotonic()
    folder = _fresh(Path(folder))
    config = _prepare(config or preset("tiny"), folder, progress, say)
    result = _train(config, folder, progress, say)
    curve, before = _curve(result.run, folder, say)
    continuations = _write(result.run, say)
    equal = _export(result.run, folder, say, progress)
    seconds = time.monotonic() - started
    say(
        f"\nDone in {seconds / 60:.1f} minutes. Held-out perplexity {before:.0f} → {result.eval_perplexity:.0f}. Next:\n"
        f"  make lab                                        the notebooks\n"
        f"  .venv/bin/pangu-lab serve --bundle {folder / 'bundle'}     a page to write with, on 127.0.0.1\n"
        f"  .venv/bin/pangu-lab generate --from {result.run} --prompt 春天    the same in the terminal"
    )
    return DemoResult(
        result.run, folder / "bundle", curve, before, result.eval_perplexity, continuations, equal, round(seconds, 1)
    )


def sample_run(folder: Path | str, config: RunConfig | None = None, progress: Progress = silent) -> Path:
    """A run trained on the shipped sample, for callers that need any model: made at the first call, reused later.

    Args:
        folder: its place; ``folder/run`` is the run.
        config: settings other than the preset ``tiny``; ignored if the run already exists.

    Raises:
        InputError: ``folder`` holds something else.
    """
    run = Path(folder) / "run"
    if not list_checkpoints(run / "checkpoints"):
        whole = Path(folder).resolve()  # the run's settings name the data: they must hold from everywhere
        config = _prepare(config or preset("tiny"), _fresh(whole), progress, lambda text: None)
        launch(config, run, 1, progress=progress)
    return run


def sample_data(folder: Path | str, config: RunConfig | None = None, progress: Progress = silent) -> RunConfig:
    """The shipped sample ready for training: ``config`` with the paths of a vocabulary and of two data sets in it.

    Args:
        folder: the data's folder; made at the first call, reused later. A relative path stays one in the settings.
        config: gives vocabulary and sequence length; the preset ``tiny`` by default.

    Raises:
        InputError: ``folder`` holds something else, or data of another vocabulary or sequence length.
    """
    folder, config = Path(folder), config or preset("tiny")
    if not (folder / "data" / "heldout").is_dir():
        return _prepare(config, _fresh(folder), progress, lambda text: None)
    there = open_dataset(folder / "data" / "train")
    for key, is_there, wanted in (
        ("model.vocab_size", there.vocab_size, config.model.vocab_size),
        ("data.seq_length", there.seq_length, config.data.seq_length),
    ):
        if is_there != wanted:
            raise InputError(f"{folder} holds data for {key}={is_there}, not {wanted}: choose another folder")
    return _with_data(config, folder)


def _fresh(folder: Path) -> Path:
    """An empty folder for the demonstration; only an earlier demonstration is ever removed."""
    marker = folder / ".pangu-lab-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise InputError(f"{folder} is not empty and was not made by the demonstration: give another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return folder


def _prepare(config: RunConfig, folder: Path, progress: Progress, say) -> RunConfig:
    say("1 · Text to tokens: a vocabulary learned from the sample, and packed records in MindRecord")
    train_vocabulary(sample_files("train"), folder / "tokenizer", config.model.vocab_size, progress=progress)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    for part in ("train", "heldout"):
        made = prepare(
            sample_files(part),
            folder / "data" / part,
            tokenizer,
            record_length=config.data.seq_length + 1,
            documents="block",
            progress=progress,
        )
        say(
            f"    {part}: {made.documents} documents, {made.characters:,} characters → {made.tokens:,} tokens in "
            f"{made.records} records ({made.leftover_tokens} tokens left over)"
        )
    return _with_data(config, folder)


def _with_data(config: RunConfig, folder: Path) -> RunConfig:
    return config.replace(
        **{
            "data.path": str(folder / "data" / "train"),
            "data.eval_path": str(folder / "data" / "heldout"),
            "tokenizer.path": str(folder / "tokenizer"),
        }
    )


def _train(config: RunConfig, folder: Path, progress: Progress, say):
    from pangu_lab.train import train  # brings MindSpore

    say(f"2 · Training: {config.model.num_parameters:,} parameters, {config.train.steps} steps (the first compiles)")
    return train(config, folder / "run", progress=progress)


def _curve(run: Path, folder: Path, say) -> tuple[Path, float]:
    say("3 · The loss\n" + text_curve(run))
    picture = plot_curves([run], folder / "curve.png")
    say(f"    as a picture: {picture}")
    evaluations = read_curves(run).evals
    before, after = evaluations[0]["perplexity"], evaluations[-1]["perplexity"]
    say(f"    held-out perplexity: {before:.1f} before training, {after:.1f} after")
    return picture, before


def _write(run: Path, say) -> tuple[str, ...]:
    say("4 · Writing")
    engine = PanguLM.load(run).engine
    texts = []
    for seed, prompt in enumerate(PROMPTS):
        done = generate(engine, prompt, SamplingConfig(max_new_tokens=60, temperature=0.8, top_p=0.9, seed=seed))
        texts.append(done.text)
        say(f"    {prompt.strip()!s} ▸ {done.text.strip()}".replace("\n", "\n      "))
    return tuple(texts)


def _export(run: Path, folder: Path, say, progress: Progress) -> bool:
    say("5 · Export: a bundle in MindIR, which needs no model code")
    bundle = export_run(run, folder / "bundle", progress=progress)
    greedy = SamplingConfig(max_new_tokens=32, temperature=0.0)
    python, exported = (
        generate(engine, PROMPTS[0], greedy).ids for engine in (PanguLM.load(source).engine for source in (run, bundle))
    )
    if list(python) != list(exported):
        raise RuntimeError(f"the bundle gives other tokens than the model: {list(exported)} instead of {list(python)}")
    say(f"    {folder / 'bundle'}: continues with exactly the {len(python)} tokens that the Python model gives")
    return True
