"""Poems that a model writes, measured beside poems of people and of a bigram model.

The model is given the titles of some held-out poems in the form ``《title》`` and writes the rest. Every share is of all
poems: one whose form is wrong neither rhymes nor has a tonal pattern.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.config import SamplingConfig
from pangu_lab.corpus import BigramModel, Nearest, PoemIndex, lines_of, prosody_of, read_poems
from pangu_lab.errors import InputError
from pangu_lab.evaluate.record import Record
from pangu_lab.evaluate.tasks import Outcome
from pangu_lab.files import sha256_file
from pangu_lab.generate import Constraint, generate_many
from pangu_lab.generate.engine import Engine
from pangu_lab.loading import Model
from pangu_lab.progress import Progress, silent

NEW_TOKENS = 100  # the longest form has 75 characters with its punctuation
CHUNK = 64  # poems between two writes of the results file
SAMPLING = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=1.0, top_p=0.9, seed=1)


@dataclass(frozen=True)
class VerseMeasure:
    """Shares of some poems, 0 … 1; ``copied`` is of spans of 7 characters, None where there is nothing to compare with.

    ``tones`` is the mean share of fitting positions of the poems whose form is right; None when there are none.
    """

    n: int
    form: float
    rhyme: float
    loose_rhyme: float
    pattern: float
    tones: float | None
    copied: float | None
    repeated: float


@dataclass(frozen=True)
class WrittenPoem:
    """A poem of the model, and the training poem that has most in common with it."""

    title: str
    text: str
    nearest: Nearest | None = None


@dataclass(frozen=True)
class VerseResult:
    """Measures by source: ``model``, ``held-out poems``, and with training poems these and a ``bigram model`` of them."""

    model: str
    columns: dict[str, VerseMeasure]
    poems: list[WrittenPoem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_verse(
    source: str | Path | Model | Engine | None,
    data: str | Path,
    train: str | Path | None = None,
    *,
    limit: int = 200,
    sampling: SamplingConfig = SAMPLING,
    show: int = 3,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> VerseResult:
    """Have a model write poems and measure them.

    Args:
        source: what ``PanguLM.load`` opens or has opened, or an engine; None measures the others alone.
        data: held-out poems, ``heldout.jsonl`` of ``corpus verse``; titles are drawn from them.
        train: the training poems, to look for copies in.
        limit: how many poems.
        sampling: with a seed, from which titles and each poem's draws follow.
        show: how many poems to return with the nearest of the training poems.
        out: results file, a JSON with every poem; an interrupted evaluation is resumed from it.

    Raises:
        InputError: no model or no poems there, or a setting out of its range.
    """
    if limit < 1:
        raise InputError(f"limit={limit} must be at least 1")
    seed = sampling.seed or 0
    heldout = _drawn(read_poems(data), limit, seed)
    training = read_poems(train) if train is not None else None
    model, written = "", []
    if source is not None:
        opened = source if isinstance(source, (Model, Engine)) else Model.load(source)
        engine, model = (opened, opened.name) if isinstance(opened, Engine) else (opened.engine, opened.origin)
        record = Record(
            out,
            {
                "task": "verse",
                "model": model,
                "limit": limit,
                "sampling": asdict(sampling),
                "data": [[Path(path).name, sha256_file(path)] for path in (data, train) if path is not None],
            },
        )
        written = _write(engine, [title for title, _ in heldout], sampling, record, progress)
    index = PoemIndex(training) if training is not None else None
    columns = {"model": measure(written, index)} if source is not None else {}
    columns["held-out poems"] = measure([text for _, text in heldout], index)
    if training is not None:
        columns["training poems"] = measure([text for _, text in _drawn(training, limit, seed)])
        bigrams, draws = BigramModel(training), np.random.default_rng(seed)
        columns["bigram model"] = measure([bigrams.sample(draws) for _ in range(len(heldout))], index)
    poems = [
        WrittenPoem(title, text, index.nearest(text) if index is not None else None)
        for (title, _), text in list(zip(heldout, written))[:show]
    ]
    result = VerseResult(model, columns, poems)
    if source is not None:
        record.finish(result.to_dict())
    return result


def measure(texts: Sequence[str], index: PoemIndex | None = None) -> VerseMeasure:
    """Measure poems; with an index also what they copied from its poems."""
    right = [lines for text in texts if (lines := lines_of(text)) is not None]
    found, n = [prosody_of(lines) for lines in right], len(texts)
    copied = np.sum([index.copied(text) for text in texts], 0) if index is not None and texts else None
    counts = Counter(text.strip() for text in texts)
    return VerseMeasure(
        n,
        len(right) / max(n, 1),
        sum(poem.rhyme for poem in found) / max(n, 1),
        sum(poem.loose_rhyme for poem in found) / max(n, 1),
        sum(poem.pattern for poem in found) / max(n, 1),
        sum(poem.tones for poem in found) / len(found) if found else None,
        None if copied is None else float(copied[0] / max(copied[1], 1)),
        1 - len(counts) / max(n, 1),
    )


def measure_temperatures(
    engine: Engine,
    titles: Sequence[str],
    temperatures: Sequence[float],
    *,
    constraint: Constraint | None = None,
    sampling: SamplingConfig = SAMPLING,
) -> dict[float, VerseMeasure]:
    """Measure a poem for each title, written at each temperature; the same seeds at all of them, one a title."""
    found, first = {}, sampling.seed or 0
    for temperature in temperatures:
        made = generate_many(
            engine,
            [f"《{title}》\n" for title in titles],
            replace(sampling, temperature=temperature),
            seeds=range(first, first + len(titles)),
            constraint=constraint,
        )
        found[temperature] = measure([one.text for one in made])
    return found


def _drawn(poems: list[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    return random.Random(seed).sample(poems, min(count, len(poems)))


def _write(
    engine: Engine, titles: Sequence[str], sampling: SamplingConfig, record: Record, progress: Progress
) -> list[str]:
    """A poem for each title; those that the record has are taken from there."""
    todo = [number for number in range(len(titles)) if str(number) not in record.outcomes]
    done, first = len(titles) - len(todo), sampling.seed or 0
    progress(done, len(titles), "poems")
    for start in range(0, len(todo), CHUNK):
        numbers = todo[start : start + CHUNK]
        made = generate_many(
            engine,
            [f"《{titles[number]}》\n" for number in numbers],
            sampling,
            seeds=[first + number for number in numbers],
        )
        record.add(
            [
                Outcome(str(number), 0.0, 1, {"title": titles[number], "text": one.text})
                for number, one in zip(numbers, made)
            ]
        )
        done += len(numbers)
        progress(done, len(titles), "poems")
    return [str(record.outcomes[str(number)].details["text"]) for number in range(len(titles))]
