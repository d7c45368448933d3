"""What to train on a text in so many minutes: vocabulary, size, steps, and what loss to expect, each with its reason.

The text is read once, the proposed model takes a few steps on this machine, and the rest follows from three figures: the
characters that there are, the tokens a second, and the minutes. What to expect comes from the text itself: how well the
characters of its held-out part follow from the character before (a bigram model), which takes a second to count.
"""

from __future__ import annotations

import collections
import math
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pangu_lab.config import RunConfig
from pangu_lab.corpus import Inputs, Reading
from pangu_lab.errors import InputError
from pangu_lab.presets import changed_settings, preset
from pangu_lab.progress import Progress, silent
from pangu_lab.start.splitting import Look, look_at
from pangu_lab.start.timing import measured_speed

BASE = "verse"  # the preset whose recipe is taken: Muon, a rate that stays until the cooldown
SIZES = ((64, 2, 2), (128, 3, 4), (192, 4, 6), (256, 4, 4), (384, 6, 6), (512, 8, 8))  # hidden size, layers, heads
TOKENS_A_PARAMETER = (
    2.0  # that the time must hold at least: with 9.5 of them 0.3 million do better than 1 million with 0.9
)
PARAMETERS_A_TOKEN = 20  # of the layers, for each token of the text, at most: larger ones only learn it by heart
EPOCHS = 20  # at most; after about so many a small model knows a small text by heart
SEQUENCE, BATCHES, STEPS = 128, (32, 16, 8), 300  # the largest batch with which so many steps fit into the time
GUESS = 60e9  # floating-point operations a second and core, before anything is measured
EVALUATIONS, PATIENCE = 10, 5  # in a run; in a row without a gain, before it ends
COMPILING = 12.0  # seconds before the second step, with the starts of the processes
READING = 2e-5  # seconds a character: vocabulary and data sets
LARGEST_CHARACTERS, LARGEST = 6000, 8000  # pieces of a vocabulary of characters, and of one of longer pieces
CHARACTERS = 5_000_000  # of Chinese text up to which single characters are taken
AGAIN = 5.0  # readings after the first that are worth about a new text each
A_PIECE = {True: 1.45, False: 3.0}  # characters in a longer piece, of Chinese text and of other

MADE = {
    "train.minutes": "--minutes",
    "data.path": "the text",
    "data.eval_path": "the text",
    "tokenizer.path": "the text",
}

Measure = Callable[[RunConfig], float]


@dataclass(frozen=True)
class Advice:
    """What ``advise`` proposes.

    Attributes:
        characters, documents, heldout: of the text; ``heldout`` of its characters are not learned.
        kind, pieces: of the vocabulary.
        characters_per_token: about; known when the vocabulary is.
        config: complete settings but for the paths of the data; its ``train.steps`` are the most that are made.
        tokens_per_second: measured on this machine with this model.
        steps, tokens, epochs: that fit into the time, and no more than the text is good for.
        bits, perplexity: (low, high) to expect held out: bits per character, and the perplexity of a token.
        reasons: lines for a person.
    """

    inputs: tuple[str, ...]
    minutes: float
    out: str
    characters: int
    documents: int
    heldout: int
    kind: str
    pieces: int
    characters_per_token: float
    config: RunConfig
    tokens_per_second: float
    steps: int
    tokens: int
    epochs: float
    bits: tuple[float, float]
    perplexity: tuple[float, float]
    reasons: tuple[str, ...]
    reading: Reading = field(default_factory=lambda: Reading(documents="file"))

    def command(self, *settings: str) -> str:
        """What to type to do it; ``settings`` are the options with which they were given."""
        words = ["pangu-lab", "start", *self.inputs, "--minutes", f"{self.minutes:g}", *reading_words(self.reading)]
        return shlex.join(
            [*words, *(["--out", self.out] if self.out != default_folder(self.inputs) else []), *settings]
        )

    def yaml(self) -> str:
        """The settings in which it differs from the preset it is laid over, as a file for ``--config``."""
        values: dict[str, Any] = {"preset": self.config.preset}
        for key, value in changed_settings(
            self.config.replace(**{"train.minutes": None})
        ).items():  # those are --minutes
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = value
        return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("config", "reading")}
        return {**plain, "yaml": self.yaml()}


def advise(
    inputs: Inputs,
    minutes: float,
    *,
    out: str | None = None,
    how: Reading | None = None,
    changes: dict[str, Any] | None = None,
    measure: Measure | None = None,
    progress: Progress = silent,
) -> Advice:
    """Look at a text and at this machine, and propose what to train.

    Args:
        inputs: files, patterns, folders or archives.
        minutes: for everything, from the text to the end of training.
        out: the folder that ``start`` would make.
        how: how files become documents; by default a file of prose is one document.
        changes: settings by dotted key that are given; the rest is fitted around them.
        measure: gives tokens a second of a configuration; by default it is trained for a few seconds.

    Raises:
        InputError: the text cannot be read, or is too short; or settings cannot be given, or do not go together.
    """
    check(minutes, changes or {})
    how = how or Reading(documents="file")
    look = look_at(inputs, how, progress)
    return advice_of(
        look, names_of(inputs), minutes, out=out, how=how, changes=changes, measure=measure, progress=progress
    )


def check(minutes: float, changes: dict[str, Any]) -> None:
    """Raise InputError for minutes that are none, and for settings that cannot be given."""
    if not minutes > 0.0 or not math.isfinite(minutes):
        raise InputError(f"minutes={minutes:g} must be above 0")
    for key in changes:
        if key.startswith("parallel."):
            raise InputError(
                f"{key}: one process trains here; `pangu-lab launch` trains with several, on prepared data sets"
            )
        if key in MADE:
            raise InputError(f"{key} comes from {MADE[key]}: leave it out")


def advice_of(
    look: Look,
    inputs: tuple[str, ...],
    minutes: float,
    *,
    out: str | None = None,
    how: Reading,
    changes: dict[str, Any] | None = None,
    measure: Measure | None = None,
    progress: Progress = silent,
) -> Advice:
    """As ``advise``, for a text that was looked at."""
    changes = dict(changes or {})
    kind, pieces, a_token, why = _vocabulary(look)
    pieces = changes.pop("model.vocab_size", pieces)
    learned = round(look.characters * (1.0 - look.share) / a_token)
    seconds = max(10.0, 60.0 * minutes - COMPILING - READING * look.characters)
    progress(0, None, "timing a few steps of the model")
    config, speed = _sized(pieces, seconds, learned, changes, measure or measured_speed)
    most, fits = EPOCHS * learned, speed * seconds
    tokens = min(most, fits)
    config = _scheduled(config, tokens, most, minutes, changes)
    a_step = config.data.batch_size * config.data.seq_length
    bits, bigrams = _expected(look, tokens, learned)
    reasons = (
        *why,
        *_why_this_size(config, speed, learned, tokens, most, fits, minutes),
        f"to expect: a table of pairs of characters, counted in the text, needs {bigrams:.2f} bits for a character of the "
        f"held-out part; a model that has read {tokens / 1e6:.2g} million tokens about {sum(bits) / 2 / bigrams:.0%} of "
        "that",
        *look.notes,
    )
    perplexity = (2.0 ** (bits[0] * a_token), 2.0 ** (bits[1] * a_token))
    return Advice(
        inputs,
        minutes,
        out or default_folder(inputs),
        look.characters,
        look.documents,
        round(look.characters * look.share),
        kind,
        pieces,
        a_token,
        config,
        speed,
        max(1, round(tokens / a_step)),
        round(tokens),
        tokens / max(learned, 1),
        bits,
        perplexity,
        reasons,
        how,
    )


# ------------------------------------------------------------------------------------------------------ vocabulary


def _vocabulary(look: Look) -> tuple[str, int, float, list[str]]:
    """Kind, pieces, characters a token, and why."""
    chinese = (
        sum(count for letter, count in look.letters.items() if "\u3400" <= letter <= "\u9fff") > 0.4 * look.characters
    )
    if chinese and look.characters <= CHARACTERS:
        often = sum(count > 1 for count in look.letters.values())
        pieces = max(24, min(LARGEST_CHARACTERS, often + 10))
        return (
            "char",
            pieces,
            1.0,
            [
                f"vocabulary: single characters, the {pieces - 10:,} of {len(look.letters):,} that occur more than once: from "
                f"{look.characters:,} characters longer pieces would be too rare to be learned"
            ],
        )
    pieces = max(300, min(LARGEST, look.characters // 200))
    pieces = max(pieces, min(LARGEST, round(1.5 * len(look.letters)))) if chinese else pieces
    return (
        "bpe",
        pieces,
        A_PIECE[chinese],
        [
            f"vocabulary: {pieces:,} pieces of one or more characters (bpe): "
            f"{look.characters:,} characters show each of them often enough"
        ],
    )


# ------------------------------------------------------------------------------------------------------------ size


def _sized(
    pieces: int, seconds: float, learned: int, changes: dict[str, Any], measure: Measure
) -> tuple[RunConfig, float]:
    """The largest model for which the time and the text suffice, and its speed: a guess, a measurement, a better guess."""
    work = GUESS * _cores()
    timed: dict[tuple[int, int], float] = {}
    while True:
        config = _choice(pieces, seconds, learned, changes, work)
        size = (config.model.hidden_size, config.model.num_layers)
        if size in timed:
            return config, timed[size]
        timed[size] = measure(config)
        work = timed[size] * _operations(config)


def _choice(pieces: int, seconds: float, learned: int, changes: dict[str, Any], work: float) -> RunConfig:
    found = None
    for size in _sizes(changes):
        config = _model(pieces, size, changes)
        tokens = min(seconds * work / _operations(config), EPOCHS * learned)
        layers = config.model.num_parameters - config.model.vocab_size * config.model.hidden_size
        if (
            found is None
            or tokens >= TOKENS_A_PARAMETER * config.model.num_parameters
            and layers <= PARAMETERS_A_TOKEN * learned
        ):
            found = _batched(config, tokens, changes)
    assert found is not None, "the smallest size is always taken"
    return found


def _sizes(changes: dict[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """Those to choose from: one, where any part of it is given."""
    if not {"model.hidden_size", "model.num_layers", "model.num_heads"} & set(changes):
        return SIZES
    hidden = int(changes.get("model.hidden_size", 256))
    heads = next((count for count in range(max(1, hidden // 64), 0, -1) if hidden % count == 0), 1)
    return ((hidden, 4, heads),)


def _model(pieces: int, size: tuple[int, int, int], changes: dict[str, Any]) -> RunConfig:
    hidden, layers, heads = size
    return preset(BASE).replace(
        **{
            "model.vocab_size": pieces,
            "model.hidden_size": hidden,
            "model.num_layers": layers,
            "model.num_heads": heads,
            "data.seq_length": SEQUENCE,
            "model.num_positions": changes.get("data.seq_length", SEQUENCE),
            **changes,
        }
    )


def _batched(config: RunConfig, tokens: float, changes: dict[str, Any]) -> RunConfig:
    batch = next((one for one in BATCHES if tokens >= STEPS * one * config.data.seq_length), BATCHES[-1])
    return config.replace(**{"data.batch_size": batch, **changes})


def _operations(config: RunConfig) -> float:
    """Floating-point operations of training on a token."""
    model = config.model
    return (
        6.0 * (model.num_parameters - 2 * model.num_positions * model.hidden_size)
        + 12.0 * model.num_layers * config.data.seq_length * model.hidden_size
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scheduled(config: RunConfig, tokens: float, most: float, minutes: float, changes: dict[str, Any]) -> RunConfig:
    """With steps, evaluations and dropout for so many tokens."""
    a_step = config.data.batch_size * config.data.seq_length
    steps = max(2, round(tokens / a_step))
    often = max(1, steps // EVALUATIONS)
    often = often if often < 20 else often // 10 * 10
    dropout = 0.1 if tokens > 0.25 * most else 0.0  # from several epochs on
    return config.replace(
        **{
            "train.steps": max(2, round(min(most, 3 * tokens) / a_step)),
            "train.minutes": minutes,
            "train.warmup_steps": max(1, min(50, steps // 8)),
            "train.eval_every": often,
            "train.checkpoint_every": often,
            "train.eval_batches": 10_000,
            "train.patience": PATIENCE,
            "train.log_every": 1 if steps < 2000 else 10,
            "model.dropout_rate": dropout,
            "train.sample_tokens": 60,
            "sampling.temperature": 0.8,
            "sampling.top_p": 0.9,
            **changes,
        }
    )


def _why_this_size(
    config: RunConfig, speed: float, learned: int, tokens: float, most: float, fits: float, minutes: float
) -> list[str]:
    model = config.model
    lines = [
        f"size: {model.num_layers} layers × {model.hidden_size}, {model.num_parameters:,} parameters: this machine trains "
        f"it at {speed:,.0f} tokens/s, so that {_minutes(minutes)} hold {fits / 1e6:.2g} million, "
        f"{fits / model.num_parameters:.2g} a parameter; a larger one would see too few (below {TOKENS_A_PARAMETER:g}) or "
        "is too large for the text",
        f"epochs: the part to learn from is read {tokens / max(learned, 1):.2g} times",
    ]
    if fits > 1.1 * most:
        lines.append(
            f"the text is the limit, not the time: after {EPOCHS} epochs a model learns it by heart; about "
            f"{minutes * most / fits:.1f} of {_minutes(minutes)} are needed, and more text would help"
        )
    return lines


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minute" + "s" * (minutes != 1.0)


# ------------------------------------------------------------------------------------------------- what to expect


def _expected(look: Look, tokens: float, learned: int) -> tuple[tuple[float, float], float]:
    """Bits per character to expect, (low, high), and those of the bigram model."""
    bigrams = bigram_bits(*look.sample)
    again = max(0.0, tokens / learned - 1.0)  # what is read again teaches less each time
    middle = bigrams * share_of_bigrams(min(tokens, learned * (1.0 + AGAIN * (1.0 - math.exp(-again / AGAIN)))))
    return (0.94 * middle, 1.06 * middle), bigrams


def share_of_bigrams(tokens: float) -> float:
    """How many bits per character a model needs that has read so many tokens, as a share of a bigram model's."""
    return max(0.78, 1.03 - 0.04 * math.log2(max(tokens, 1e4) / 4e5))


def bigram_bits(learned: Iterable[str], heldout: Iterable[str]) -> float:
    """Bits per character of held-out text by pairs of characters (Witten–Bell smoothing over characters, then over all alike)."""
    ones: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    for text in learned:
        ones.update(text)
        pairs.update(zip(text, text[1:]))
    before: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    for (first, _), count in pairs.items():
        before[first] += count
        kinds[first] += 1
    total, different = sum(ones.values()), len(ones)
    bits, count = 0.0, 0
    for text in heldout:
        for first, second in zip(text, text[1:]):
            one = (ones[second] + different / (different + 1000)) / (total + different)
            new = kinds[first] / (kinds[first] + before[first]) if before[first] else 1.0
            pair = pairs[first, second] / before[first] if before[first] else 0.0
            bits -= math.log2((1.0 - new) * pair + new * one)
            count += 1
    return bits / max(count, 1)


# ----------------------------------------------------------------------------------------------------------- words


def names_of(inputs: Inputs) -> tuple[str, ...]:
    """The inputs as one would type them."""
    return (str(inputs),) if isinstance(inputs, (str, Path)) else tuple(map(str, inputs))


def default_folder(inputs: tuple[str, ...]) -> str:
    """``runs/novel`` for ``books/novel.txt``, ``runs/books`` for ``books/*.txt``."""
    path = Path(inputs[0])
    name = (path.parent if set(path.name) & set("*?[") else path).name
    return str(Path("runs") / (name.split(".")[0] or "text"))


def reading_words(how: Reading) -> list[str]:
    """The options that give this reading."""
    words = []
    for name, value in how.to_dict().items():
        option = {"text_format": "--format"}.get(name, "--" + name.replace("_", "-"))
        if name != "documents":
            words += [option] if value is True else [option, str(value)]
    return words + ([] if how.documents == "file" else ["--documents", how.documents])
