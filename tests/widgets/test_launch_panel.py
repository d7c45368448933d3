"""Starting a run from a notebook's side: real processes, one that refuses, names that cannot be, plans of other machines."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from widgets import launching
from widgets.config_form import ConfigForm
from widgets.launch_panel import LaunchPanel
from widgets.launching import resume_run, start_run
from widgets.run_state import launched_by


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


def test_a_dry_run_shows_the_plan_of_every_machine_and_a_mistake_in_one_line(
    debug_config, panel_of, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    panel, said = panel_of(debug_config), []
    panel.controls.send = said.append
    panel.target.backend, panel.target.table_file = "ranktable", "runs/hccl.json"
    for server in (1, 2):
        panel.target.add_server(f"10.0.0.{server}", "0", f"192.168.0.{server}")
    panel.target.node_rank = 0
    assert "--rank-table runs/hccl.json --node-rank 0" in panel.controls.command.replace("\\\n  ", "")
    asking = panel.dry_run()
    with pytest.raises(InputError, match="wait for it"):
        panel.dry_run()
    asking.join(60)
    lines = panel.controls.said.splitlines()
    assert [line for line in lines if line.startswith("# host")] == [
        "# host 10.0.0.1 (node rank 0): rank 0",
        "# host 10.0.0.2 (node rank 1): rank 1",
    ]
    assert sum("RANK_TABLE_FILE=" in line for line in lines) == 2 and not panel.run.exists()
    panel.target.node_rank = -1
    said.clear()
    panel.dry_run().join(60)
    assert panel.controls.said == "" and not panel.controls.busy
    (refused,) = (message["text"] for message in said if message["kind"] == "refused")
    assert "this machine is none of 10.0.0.1, 10.0.0.2: give --node-rank K" in refused and "\n" not in refused
    with pytest.raises(InputError, match="this machine is none of"):
        panel.plan()
    panel.target.node_rank = 1
    assert panel.plan() == panel.controls.said and panel.controls.said.splitlines()[0] == lines[0]
    panel.target.backend, panel.target.several = "mpirun", True
    with pytest.raises(InputError, match="names no host"):
        panel.start()
    assert not panel.run.exists()


@pytest.mark.multiprocess
@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["msrun", pytest.param("mpirun", marks=pytest.mark.slow)])
def test_two_processes_are_started_by_a_back_end_their_output_shown_and_stopped(debug_config, panel_of, backend):
    if backend == "mpirun" and not shutil.which("mpirun"):
        pytest.skip("no Open MPI here")
    panel = panel_of(
        ConfigForm(debug_config.replace(**{"model.num_layers": 2, "train.steps": 100_000, "train.eval_every": 100_000}))
    )
    panel.target.backend, panel.target.nproc = backend, 2
    assert f"--backend {backend} --nproc 2" in panel.controls.command == panel.settings.command
    panel.start()
    assert panel.controls.running
    assert launching.wait_for(panel.run, step=2) in ("training", "saving")
    wait_for(lambda: "rank 1: training" in panel.controls.said)
    assert "started 2 of 2 ranks here" in panel.controls.said
    assert '"backend": "%s"' % backend in (panel.run / "launch.json").read_text()
    panel.controls._received(panel.controls, {"do": "stop"}, [])
    assert panel.controls.stopping
    wait_for(lambda: not panel.controls.running)
    assert "2 ranks" in panel.controls.said and "ended with exit code 0 after" in panel.controls.said
    assert launching.wait_for(panel.run) == "stopped" and list(panel.run.glob("checkpoints/step-*/manifest.json"))
    assert launched_by(panel.run) == backend, "it is resumed as it was started"


def test_a_start_that_is_refused_ends_with_its_reason_and_its_exit_code(debug_config, panel_of):
    panel = panel_of(debug_config)
    with pytest.raises(InputError, match="nothing was started"):
        panel.wait()
    panel.target.nproc = 3
    panel.start()
    assert panel.wait().startswith("ended with exit code 2 after") and not panel.controls.running
    assert "batch_size=4 must be a multiple of 3" in panel.controls.said.splitlines()[-2]
