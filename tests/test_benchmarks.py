"""The benchmarks' own book-keeping; what they measure is not tested."""

from __future__ import annotations

import json
import re

import pytest

from pangu_lab.checkpoint import list_checkpoints
from tests.benchmarks import losses, table


@pytest.mark.parametrize("name", table.TABLES)
def test_the_tables_of_speed_are_those_of_the_kept_results(name):
    assert (table.ROOT / name).read_text(encoding="utf-8") == table.with_table(name)
    assert table.BEGIN in table.with_table(name)


def kept_output(notebook: str, pattern: str) -> str:
    """The first group of what ``pattern`` finds in the kept outputs of a notebook."""
    cells = json.loads((losses.ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]
    return re.search(pattern, "\n".join(texts), re.DOTALL)[1]


@pytest.mark.parametrize("name", losses.GUIDES)
def test_the_guides_expect_what_the_notebooks_found(name):
    """After `make notebooks` comes `python -m tests.benchmarks.losses`."""
    rows = re.findall(
        r"^\| ([\d.]+) \| (\d+) \| [\d.]+ \| (\d+) \| (.*?) ?\|(?: |$)",
        (losses.ROOT / name).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    told = {int(step): (loss, perplexity, text) for loss, perplexity, step, text in rows}
    assert sorted(told) == [0, 20, 60, 150, 300]
    before, after = (kept_output("00_quickstart", rf"(\d+) {word}") for word in ("before training", "after"))
    assert (told[0][1], told[300][1]) == (before, after)
    assert told[60][0] == f"{float(kept_output('03_train_and_watch', r'straight +held-out loss ([0-9.]+)')):.2f}"
    written = kept_output("00_quickstart", r"temperature 0\.8: 春天来了，(.*)").replace("\n", "↵")
    assert len(told[300][2]) > 10 and written.startswith(told[300][2].replace("\\", ""))


def test_losses_are_read_from_runs(debug_run, monkeypatch):
    step = int(list_checkpoints(debug_run / "checkpoints")[-1].name.split("-")[1])
    monkeypatch.setattr(losses, "RUNS", {debug_run: (0, step)})
    rows, training = losses.measured()
    assert re.fullmatch(rf"\| [\d.]+ \| \d+ \| [\d.]+ \| {step} \| .+ \|", rows[step]) and 0 < training < 10
    text = f"| 7 | 1 | 2 | 0 | | why |\n| 7 | 1 | 2 | {step} | x \\| y | because |\n"
    assert losses.with_rows(text, rows) == f"{rows[0]} why |\n{rows[step]} because |\n"
    assert losses.row(1.5, 4.5, 2.5, 3, "a|b*\nc") == r"| 1.50 | 4 | 2.50 | 3 | a\|b\*↵c |"
