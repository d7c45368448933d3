"""Runs beside each other in the terminal."""

from __future__ import annotations

import json

import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.runs.comparison import compare_runs
from pangu_lab.runs.curves import smoothed


def test_a_comparison_names_the_settings_that_differ_and_losses_at_common_steps(runs):
    found = compare_runs([runs / "a", runs / "b"])
    assert found.settings == {"train.start_lr": [0.003, 0.001]}
    want = smoothed([6.0 - 0.1 * step for step in range(20)]), smoothed([6.0 - 0.2 * step for step in range(10)])
    assert found.losses[10] == [want[0][9], want[1][9]] and found.losses[20] == [want[0][19], None]
    assert [len(curve) for curve in found.curves] == [40, 40] and found.curves[1].endswith(" " * 20)
    assert found.curves[0][0] == "█" and found.curves[0].rstrip()[-1] < found.curves[0][20] < "█"


def test_the_command_line_compares_and_says_what_is_missing(runs, capsys):
    assert main(["runs", str(runs), "--compare", "a", "b", "--json"]) == 0
    out = capsys.readouterr().out
    assert "train.start_lr" in out and "█" in out
    assert json.loads(out.splitlines()[-1])["comparison"]["settings"] == {"train.start_lr": [0.003, 0.001]}
    assert main(["runs", str(runs), "--compare", "a", "nobody"]) == 2
    assert "nobody: no run here" in capsys.readouterr().err
    with pytest.raises(InputError, match="two runs or more"):
        compare_runs([runs / "a"])
