"""Results drawn with their intervals and baselines; the shipped questions are in C3's format."""

from __future__ import annotations

import pytest

from pangu_lab.data import sample_folder
from pangu_lab.errors import InputError
from pangu_lab.evaluate import evaluate
from pangu_lab.evaluate.pictures import plot_results, plot_temperatures
from pangu_lab.evaluate.verse import measure

QUESTIONS = sample_folder() / "questions"


def test_the_shipped_questions_have_baselines_and_a_picture(scorer, tmp_path):
    result = evaluate("c3", scorer, QUESTIONS)
    assert result.n == 12 and set(result.baselines) == {"random", "longest", "overlap"}
    assert plot_results([result], tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_alone_are_no_picture(tmp_path):
    with pytest.raises(InputError, match="baselines alone"):
        plot_results([evaluate("c3", None, QUESTIONS)], tmp_path / "results.png")


def test_verse_is_drawn_over_the_temperature_with_one_that_has_no_poem_of_right_form(tmp_path):
    right = measure(["白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"] * 3)
    measured = {"free": {0.5: right, 1.0: measure(["白"] * 3)}, "held": {0.5: right, 1.0: right}}
    assert plot_temperatures(measured, tmp_path / "verse.png").read_bytes().startswith(b"\x89PNG")
