"""Pictures without scripts."""

from __future__ import annotations

import re

import pytest

from pangu_lab.texts import catalogue
from tests.widgets.conftest import WrittenRun
from widgets.monitor import RunMonitor
from widgets.run_data import RunFollower
from widgets.still import loss_svg, ticks


@pytest.mark.parametrize(
    "low, high, count, whole, expected",
    [
        (0, 300, 6, True, [0, 50, 100, 150, 200, 250, 300]),
        (0, 31, 6, True, [0, 10, 20, 30]),
        (0, 3, 6, True, [0, 1, 2, 3]),
        (7.41, 7.89, 5, False, [7.5, 7.6, 7.7, 7.8]),
        (5.1, 8.2, 5, False, [6, 7, 8]),
        (-0.2, 0.2, 4, False, [-0.2, -0.1, 0, 0.1, 0.2]),
    ],
)
def test_ticks_are_round_numbers(low, high, count, whole, expected):
    assert ticks(low, high, count, whole) == pytest.approx(expected)


def test_a_run_is_told_in_the_language_of_its_monitor(tmp_path):
    run = WrittenRun(tmp_path / "runs" / "first")
    run.step(7, loss=5.25)
    run.status("finished", 7)
    monitor = RunMonitor(tmp_path / "runs" / "first")
    try:
        assert monitor.still_text() == "first: finished, step 7 of 20, 0.0251 tokens a parameter, loss 5.25"
        monitor.language = "zh"
        assert (
            monitor.still_text() == "first: 已完成, 第 7 / 20 步, 每参数 0.0251 个词元, 损失 5.25"
            and "已完成" in monitor.still_html()
        )
    finally:
        monitor.close()


def test_the_picture_of_a_run_names_its_axes_and_no_step_twice(tmp_path):
    run = WrittenRun(tmp_path / "runs" / "short")
    for step in range(1, 4):
        run.step(step, loss=8 - step / 10)
    follower = RunFollower(tmp_path / "runs" / "short")
    follower.poll()
    svg = loss_svg([follower], lambda key: catalogue("en")["monitor"][key])
    steps = re.findall(r'text-anchor="middle" fill="#667">([^<]+)<', svg)
    assert steps == ["0", "1", "2", "3"] and ">step<" in svg and "loss (nats a token)" in svg
