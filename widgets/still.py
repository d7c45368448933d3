"""Pictures without scripts: what GitHub, a viewer or a terminal shows of a widget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_lab.runs.curves import smoothed
from pangu_lab.runs.units import BITS, common_unit
from widgets.base import escape
from widgets.run_data import RunFollower

COLORS = ("#2f6fde", "#bf5519", "#177f5f", "#a24fc4", "#c93a55", "#66717e")
Word = Callable[..., str]  # a key of the monitor's words, and what its places are filled with
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 290, 52, 36, 20, 12


def figure(value: float | None, digits: int = 4) -> str:
    """A number short enough to read; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """At most ``count`` + 1 round numbers (1, 2 or 5 times a power of ten apart) between two others; ``whole``: no fractions."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(part for part in (1, 2, 5, 10) if part * power >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def head_line(head: dict[str, Any], word: Word) -> str:
    """``first: training, step 120 of 300, loss 5.28, held-out perplexity 265``"""
    parts = [f"{head['name']}: {word('state_' + head['state'])}"]
    if head["steps"]:
        parts.append(word("step_of", step=f"{head['step']:,}", steps=f"{head['steps']:,}"))
    parts += [word(key, number=figure(value, 3)) for key, value in head.get("seen", {}).items() if value is not None]
    if head["last"].get("loss") is not None:
        parts.append(f"{word('loss')} {figure(head['last']['loss'])}")
    if head.get("evaluation"):
        parts.append(f"{word('perplexity')} {figure(head['evaluation'].get('perplexity'))}{_of_records(head, word)}")
        if head["evaluation"].get("bits_per_character") is not None:
            parts.append(f"{word('bits_per_character')} {figure(head['evaluation']['bits_per_character'])}")
    if head["reason"] and head["reason"] != head["state"]:
        parts.append(head["reason"])
    return ", ".join(parts)


def _of_records(head: dict[str, Any], word: Word) -> str:
    """On how many records the evaluation rests, when they are not all."""
    part, whole = (head["evaluation"].get(key) for key in ("records", "of_records"))
    return f" ({word('of_records', part=f'{part:,}', whole=f'{whole:,}')})" if part and whole and part < whole else ""


def monitor_text(heads: Sequence[dict[str, Any]], word: Word) -> str:
    """A line a run, and the lines that tell why it failed."""
    lines = []
    for head in heads:
        lines.append(head_line(head, word))
        lines += [f"  ! {head['warning']}"] if head.get("warning") else []
        lines += [f"  | {line}" for line in head["lines"][:6]]
    return "\n".join(lines)


def monitor_html(runs: Sequence[RunFollower], heads: Sequence[dict[str, Any]], word: Word) -> str:
    """The lines of ``monitor_text`` over the loss curves as SVG."""
    lines = "".join(f"<div>{escape(line)}</div>" for line in monitor_text(heads, word).splitlines())
    return f'<div style="font-family:sans-serif;font-size:13px">{lines}{loss_svg(runs, word)}{_samples(runs[0], word)}</div>'


def _samples(run: RunFollower, word: Word) -> str:
    """What the first run wrote at its last evaluation."""
    last = [one for one in run.samples if one["step"] == run.samples[-1]["step"]]
    lines = "".join(f"<div><b>{escape(one['prompt'])}</b>{escape(one['text'])}</div>" for one in last)
    return f"<div>{word('samples')}, {word('sample_step', step=last[0]['step'])}</div>{lines}" if last else ""


def loss_svg(runs: Sequence[RunFollower], word: Word) -> str:
    """Training loss (pale), the same smoothed, and held-out loss (dots) over the steps; nothing without points."""
    unit = common_unit([run.vocabulary for run in runs])
    curves = [(run, *_points(run, unit == BITS)) for run in runs]
    values = [value for _, _, loss, evals in curves for value in (*loss, *(e for _, e in evals))]
    if not values:
        return ""
    last = max([step for _, steps, _, evals in curves for step in (*steps, *(s for s, _ in evals))] + [1.0])
    scale = _Scale(last, min(values), max(values))
    parts = [scale.frame(word, unit)]
    for number, (run, steps, loss, evals) in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        parts.append(scale.line(steps, loss, color, 0.3))
        parts.append(scale.line(steps, smoothed(loss), color, 1.0))
        parts += [
            f'<circle cx="{scale.x(s):.1f}" cy="{scale.y(e):.1f}" r="3.5" fill="#fff" stroke="{color}" '
            'stroke-width="2"/>'
            for s, e in evals
        ]
        parts.append(
            f'<text x="{WIDTH - RIGHT - 6}" y="{TOP + 14 + 16 * number}" text-anchor="end" fill="{color}">'
            f"{escape(run.name)}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'style="max-width:100%;background:#fff" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _points(run: RunFollower, bits: bool) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    rows, name = run.steps.rows(), "bits_per_character" if bits else "loss"
    pairs = [
        (float(s), run.bits(v) if bits else float(v))
        for s, v in zip(rows.get("step", ()), rows.get("loss", ()))
        if np.isfinite(v)
    ]
    evals = [
        (float(e["step"]), float(e[name]))
        for e in run.evals
        if isinstance(e.get(name), (int, float)) and math.isfinite(e[name])
    ]
    return [s for s, _ in pairs], [v for _, v in pairs], evals


class _Scale:
    """From steps and losses to places in the picture."""

    def __init__(self, last: float, low: float, high: float) -> None:
        margin = (high - low) * 0.06 or 0.5
        self.last, self.low, self.high = last, low - margin, high + margin

    def x(self, step: float) -> float:
        return LEFT + step / self.last * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def line(self, steps: Sequence[float], values: Sequence[float], color: str, opacity: float) -> str:
        points = " ".join(f"{self.x(s):.1f},{self.y(v):.1f}" for s, v in zip(steps, values))
        return (
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-opacity="{opacity}" '
            f'stroke-width="{1 if opacity < 1 else 2}"/>'
        )

    def frame(self, word: Word, unit: str) -> str:
        parts = []
        for value in ticks(self.low, self.high, 5):
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value):.1f}" y2="{self.y(value):.1f}" '
                'stroke="#e3e6ea"/>'
            )
            parts.append(
                f'<text x="{LEFT - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end" fill="#667">{value:g}</text>'
            )
        for step in ticks(0, self.last, 6, whole=True):
            parts.append(
                f'<text x="{self.x(step):.1f}" y="{HEIGHT - 18}" text-anchor="middle" fill="#667">{step:,.0f}</text>'
            )
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end" fill="#667">{word("axis_step")}</text>'
        )
        parts.append(f'<text x="{LEFT}" y="{TOP - 8}" fill="#667">{word(f"unit_{unit}")}</text>')
        return "".join(parts)
