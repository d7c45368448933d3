"""Runs side by side: what differs in their settings, and their losses at common steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.config import all_keys
from pangu_lab.errors import InputError
from pangu_lab.presets import load_yaml
from pangu_lab.runs.curves import smoothed
from pangu_lab.runs.events import Curves, read_curves
from pangu_lab.runs.status import STATUS, RunSummary, summarise
from pangu_lab.runs.units import BITS, LOSS, Vocabulary, bits_per_character, common_unit

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; every list is in the order of ``runs``.

    Attributes:
        settings: those that are not the same in all runs: key → values.
        losses: step → smoothed training losses, at up to ten steps; None where a run has not got that far.
        curves: each run's smoothed loss as a line of bars over the steps of the longest run, all on one scale.
        unit: of ``losses`` and ``curves``: "loss" (nats a token), or "bits" per character where the vocabularies differ;
            "none": they differ, and a run does not know its characters, so its loss compares with no other.
    """

    runs: list[RunSummary]
    settings: dict[str, list[Any]]
    losses: dict[int, list[float | None]]
    curves: list[str]
    unit: str = LOSS


def compare_runs(folders: Sequence[Path | str]) -> Comparison:
    """Compare runs.

    Raises:
        InputError: a folder is not a run, or there is only one.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise InputError("a comparison needs two runs or more")
    for folder in folders:
        if not (folder / STATUS).exists():
            raise InputError(f"{folder}: no run here")
    configs = [load_yaml(folder / "config.yaml") for folder in folders]
    values = {key: [_value(config, key) for config in configs] for key in all_keys(configs[0])}
    read = [read_curves(folder) for folder in folders]
    vocabularies = [Vocabulary.of(one.start, config.model.vocab_size) for one, config in zip(read, configs)]
    unit = common_unit(vocabularies)
    curves = [
        _loss(one, vocabulary.characters_per_token if unit == BITS else None)
        for one, vocabulary in zip(read, vocabularies)
    ]
    last = max((max(curve, default=0) for curve in curves), default=0)
    return Comparison(
        [summarise(folder) for folder in folders],
        {key: settings for key, settings in values.items() if any(s != settings[0] for s in settings)},
        {step: [_at(curve, step) for curve in curves] for step in _steps(last)},
        _bars(curves, last),
        unit,
    )


def _value(config: Any, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _loss(curves: Curves, characters_per_token: float | None) -> dict[int, float]:
    """Smoothed training loss by step; steps without a finite loss are left out.

    Args:
        characters_per_token: gives bits per character; None leaves nats a token.
    """
    steps = [
        event for event in curves.steps if isinstance(event.get("loss"), (int, float)) and math.isfinite(event["loss"])
    ]
    values = [float(event["loss"]) for event in steps]
    if characters_per_token is not None:
        values = [bits_per_character(value, characters_per_token) for value in values]
    return dict(zip((int(event["step"]) for event in steps), smoothed(values)))


def _steps(last: int, count: int = 10) -> list[int]:
    return sorted({max(1, round(last * part / count)) for part in range(1, count + 1)}) if last else []


def _at(curve: dict[int, float], step: int) -> float | None:
    """The loss at ``step``, or at the last logged step before it; None beyond the end of the run."""
    if not curve or step > max(curve):
        return None
    logged = max((other for other in curve if other <= step), default=None)
    return None if logged is None else curve[logged]


def _bars(curves: Sequence[dict[int, float]], last: int, width: int = 40) -> list[str]:
    values = [value for curve in curves for value in curve.values()]
    if not values:
        return ["" for _ in curves]
    low, span = min(values), (max(values) - min(values)) or 1.0
    lines = []
    for curve in curves:
        found = [_at(curve, math.ceil(last * (column + 1) / width)) for column in range(width)]
        lines.append(
            "".join(" " if value is None else BARS[round((value - low) / span * (len(BARS) - 1))] for value in found)
        )
    return lines
