"""Curves as text and picture, events that were cut short, runs seen from outside."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from pangu_lab.errors import InputError
from pangu_lab.runs import EventLog, list_runs, read_curves, request_stop
from pangu_lab.runs.curves import plot_curves, smoothed, text_curve
from pangu_lab.runs.events import EventReader


def test_a_curve_in_characters_falls_from_the_left_to_the_right(debug_run):
    lines = text_curve(debug_run, width=40, height=8).splitlines()
    assert len(lines) == 11 and "o" in lines[0] and "o" not in lines[0][30:]
    assert "·" in lines[7][30:] or "o" in lines[7][30:]


def test_a_picture_of_several_runs_is_written(debug_run, tmp_path):
    assert plot_curves([debug_run, debug_run], tmp_path / "c.png").stat().st_size > 20_000
    with pytest.raises(InputError, match="no steps"):
        plot_curves([tmp_path], tmp_path / "d.png")


def test_a_loss_scale_has_a_panel_of_its_own(debug_run, tmp_path):
    log = EventLog(tmp_path)
    for step, scale in enumerate((8.0, 4.0, 2.0), 1):
        log.write("overflow", step=step, loss_scale=scale, was=2 * scale)
    log.write("step", step=4, loss=5.0, lr=1e-3, grad_norm=1.0, loss_scale=2.0)
    log.write("step", step=5, loss=4.0, lr=1e-3, grad_norm=1.0, loss_scale=2.0)
    shapes = [imread(plot_curves(runs, tmp_path / "c.png")) for runs in ([debug_run], [debug_run, tmp_path])]
    third = [(picture[-220:-80, -380:, :3] < 0.5).mean() for picture in shapes]  # the place of the third panel
    assert third[0] != third[1]


def test_smoothing_keeps_a_constant_and_has_no_start_bias():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_the_smoothed_line_of_a_run_of_30_steps_lies_on_its_data():
    losses = [6.0 + 2.0 * 0.9**step for step in range(30)]
    assert max(abs(line - loss) for line, loss in zip(smoothed(losses), losses)) < 0.1
    noisy = [(-1.0) ** step for step in range(300)]
    assert max(map(abs, smoothed(noisy)[100:])) < 0.06  # and a long one is as smooth as ever


def test_events_are_read_bit_by_bit_and_a_half_written_line_waits(tmp_path):
    log, reader = EventLog(tmp_path), EventReader(tmp_path)
    log.write("step", step=1, loss=5.0)
    assert [event["step"] for event in reader.new()] == [1]
    with open(tmp_path / "events.jsonl", "a") as handle:
        handle.write('{"v": 1, "time": 1.0, "kind": "step", "loss": 4.5, "st')
        handle.flush()
        assert reader.new() == []
        handle.write('ep": 2}\n')
    assert [event["step"] for event in reader.new()] == [2]
    assert reader.new() == []


def test_a_line_that_a_kill_cut_short_does_not_swallow_the_next(tmp_path):
    (tmp_path / "events.jsonl").write_text(
        '{"v": 1, "time": 1.0, "kind": "step", "step": 1, "loss": 5.0}\n{"v": 1, "ki'
    )
    EventLog(tmp_path).write("start", step=1, resumed_from=1)
    assert [event["kind"] for event in EventReader(tmp_path).new()] == ["step", "start"]


def test_a_resume_takes_back_the_steps_after_its_checkpoint(tmp_path):
    log = EventLog(tmp_path)
    log.write("start", step=0, resumed_from=0)
    for step in range(1, 6):
        log.write("step", step=step, loss=1.0)
    log.write("start", step=3, resumed_from=3)
    log.write("step", step=4, loss=2.0)
    assert [(e["step"], e["loss"]) for e in read_curves(tmp_path).steps] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_runs_are_listed_and_only_a_run_can_be_asked_to_stop(debug_run, tmp_path):
    found = list_runs(debug_run.parent)
    assert [(run.name, run.state, run.step, run.steps) for run in found] == [("debug", "finished", 20, 20)]
    assert list_runs(tmp_path / "none") == []
    with pytest.raises(InputError, match="no run here"):
        request_stop(tmp_path)
