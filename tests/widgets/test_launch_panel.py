"""Starting a run from a notebook's side: a real process, one that refuses, names that cannot be."""

from __future__ import annotations

import os
import time

import pytest

from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from widgets import launching
from widgets.config_form import ConfigForm
from widgets.launch_panel import LaunchPanel
from widgets.launching import resume_run, start_run


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def panel_of(tmp_path):
    made = []

    def make(settings):
        panel = LaunchPanel(settings, "first", tmp_path / "runs")
        made.append(panel)
        return panel

    yield make
    for panel in made:
        panel.monitor.close()


def test_a_run_is_started_watched_and_stopped(debug_config, panel_of):
    panel = panel_of(debug_config.replace(**{"train.steps": 100_000, "train.eval_every": 100_000}))
    assert panel.monitor.heads[0]["state"] == "none"
    started = panel.start()
    assert os.getsid(started.pid) == started.pid, "a session of its own: it outlives the kernel"
    with pytest.raises(InputError, match="going on here"):
        panel.start()
    assert launching.wait_for(panel.run, step=3) in ("training", "saving")
    wait_for(lambda: panel.monitor.heads[0]["step"] >= 3)
    assert panel.monitor.heads[0]["state"] in ("training", "saving")
    panel.stop()
    assert launching.wait_for(panel.run) == "stopped"
    wait_for(lambda: panel.monitor.heads[0]["state"] == "stopped")
    assert panel.monitor.heads[0]["reason"] == "stop file"
    assert len(panel.monitor.runs[0].steps) == panel.monitor.heads[0]["step"]

    stopped = panel.monitor.heads[0]["step"]  # resumed at once, while the old launcher is still taking its leave
    resume_run(panel.run)
    assert launching.wait_for(panel.run, step=stopped + 2) in ("training", "saving")
    panel.stop()
    assert launching.wait_for(panel.run) == "stopped"


def test_a_launch_that_refuses_is_shown_with_its_reason(debug_config, panel_of, debug_data):
    panel = panel_of(debug_config.replace(**{"data.path": str(debug_data / "tokenizer")}))
    panel.start()
    assert launching.wait_for(panel.run) == "failed"
    wait_for(lambda: panel.monitor.heads[0]["state"] == "failed")
    assert str(debug_data / "tokenizer") in panel.monitor.heads[0]["reason"]


def test_what_cannot_start_is_refused_before_any_process(panel_of, tmp_path):
    form = ConfigForm("debug")
    panel = panel_of(form)
    with pytest.raises(InputError, match="data.path is empty"):
        panel.start()
    form.edit("data.path", str(tmp_path))
    assert f"--data {tmp_path}" in panel.controls.command
    panel.controls.name = "../elsewhere"
    with pytest.raises(InputError, match="cannot be a run's name"):
        panel.start()
    form.edit("train.steps", "0")
    with pytest.raises(InputError, match="train.steps"):
        panel.start()
    with pytest.raises(InputError, match="no such folder"):
        start_run(preset("debug").replace(**{"data.path": str(tmp_path / "none")}), tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        resume_run(tmp_path)


def test_form_and_panel_show_one_command(panel_of):
    form = ConfigForm("debug", run="runs/another")
    panel = panel_of(form)
    assert form.command == panel.controls.command and f"--run {panel.run}" in form.command
    panel.controls.name = "second"
    form.edit("train.steps", "7")
    assert form.command == panel.controls.command and "second" in form.command and "train.steps=7" in form.command


def test_waiting_for_a_run_ends_when_nothing_more_is_heard_of_it(written_run):
    run = written_run()
    run.step(2)
    run.status("training", 2)
    seen = []
    assert launching.wait_for(run.folder, step=2, progress=lambda *news: seen.append(news)) == "training"
    assert seen == [(2, 2, "training")]
    with pytest.raises(InputError, match="nothing new for 0 s; it is training"):
        launching.wait_for(run.folder, patience=0.2)
