"""`python -m tests.benchmarks.losses`: the table "what to expect at which loss" of both readmes, made anew.

It reads the runs that the notebooks 00 and 03 leave in ``runs/``, so it comes after ``make notebooks``. The remark at the
end of each row is written by hand and stays.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pangu_lab import PanguLM
from pangu_lab.checkpoint import list_checkpoints
from pangu_lab.runs import read_curves
from pangu_lab.runs.curves import smoothed

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/guide.md", "docs/guide.zh-CN.md")
PROMPT = "春天来了，"
SETTINGS = {"max_new_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 1}
RUNS = {ROOT / "runs" / "train_and_watch" / "straight": (20, 60), ROOT / "runs" / "quickstart" / "run": (0, 150, 300)}
TRAINING = {"docs/guide.md": r"(training loss is )[\d.]+", "docs/guide.zh-CN.md": r"(训练损失为 )[\d.]+"}


def row(loss: float, perplexity: float, bits: float, step: int, text: str) -> str:
    """The row without its remark. Line ends are marked, and nothing in the text is taken for Markdown."""
    shown = re.sub(r"([\\`*_|<>#])", r"\\\1", text.replace("\n", "↵"))
    return f"| {loss:.2f} | {perplexity:.0f} | {bits:.2f} | {step} | {shown} |".replace("|  |", "| |")


def measured() -> tuple[dict[int, str], float]:
    """Step → row; and the training loss at the last step, smoothed as the curves are."""
    rows = {}
    for run, steps in RUNS.items():
        curves, kept = (
            read_curves(run),
            {int(path.name.split("-")[1]): path for path in list_checkpoints(run / "checkpoints")},
        )
        evals = {event["step"]: event for event in curves.evals}
        for step in steps:
            text = str(PanguLM.load(kept[step]).generate(PROMPT, **SETTINGS)) if step else ""
            one = evals[step]
            rows[step] = row(one["loss"], one["perplexity"], one["bits_per_character"], step, text)
    return rows, float(smoothed([event["loss"] for event in curves.steps])[-1])


def with_rows(text: str, rows: dict[int, str]) -> str:
    """``text`` with the rows of these steps in the place of those that it has."""
    for step, new in rows.items():
        text, count = re.subn(
            rf"^\| [\d.]+ \| \d+ \| [\d.]+ \| {step} \| (?:.*?(?<!\\))??\|(?= )",
            lambda _: new,
            text,
            flags=re.MULTILINE,
        )
        assert count == 1, f"step {step} has no row"
    return text


def main() -> int:
    rows, training = measured()
    for name in GUIDES:
        path = ROOT / name
        text = with_rows(path.read_text(encoding="utf-8"), rows)
        path.write_text(re.sub(TRAINING[name], rf"\g<1>{training:.2f}", text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
