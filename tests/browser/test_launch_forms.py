"""The launch form in a real JupyterLab: a rank table is made and planned for, and mpirun starts two processes."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.browser.jupyter import browser_is_here, notebook_of, somebody_at
from tests.browser.test_widgets import looks_right

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
]

CELL = (
    "from pangu_lab.presets import preset\nfrom widgets import LaunchPanel\n"
    "panel = LaunchPanel(preset('debug').replace(**{changes}), 'seen')\npanel"
)


@pytest.fixture
def at_the_form(debug_data, tmp_path):
    changes = {"data.path": str(debug_data / "train"), "model.num_layers": 2, "train.steps": 5}
    notebook_of(tmp_path / "lab" / "launch.ipynb", CELL.replace("{changes}", repr(changes)))
    with somebody_at(tmp_path / "lab") as person:
        person.open("launch.ipynb")
        person.run_all(60)
        yield person, tmp_path / "lab"


def test_lines_of_a_hosts_file_are_typed_checked_loaded_and_in_the_command(at_the_form, tmp_path):
    person, folder = at_the_form
    error = ".pgl-target .pgl-error:not([hidden])"
    person.wait(lambda: person.find(".pgl-target select"))
    person.click(".pgl-target option[value=mpirun]")
    person.click(".pgl-target option[value=hosts]")
    person.type(".pgl-target textarea[data-name=hosts_text]", "node-a slots=8\nnode-b slots")
    person.wait(lambda: "hosts, line 2: 'node-b slots' is not 'NAME' or 'NAME slots=N'" in person.text(error))
    person.find(".pgl-target textarea[data-name=hosts_text]").send_keys("=8")
    person.wait(lambda: "machines: 2, processes: 16" in person.text(".pgl-target") and not person.all(error))
    assert "--backend mpirun --hosts runs/hosts" in person.text(".pgl-launch .pgl-command")
    looks_right(person, "target-hosts")
    (tmp_path / "mine").write_text("10.0.0.1 slots=2\n10.0.0.2 slots=2\n")
    person.find(".pgl-target input[data-name=choose_file]").send_keys(str(tmp_path / "mine"))
    person.wait(lambda: "machines: 2, processes: 4" in person.text(".pgl-target"))
    person.press(".pgl-launch", "Dry run")
    person.wait(lambda: "# host 10.0.0.2 (node rank 1): ranks 2 to 3" in person.text(".pgl-launch .pgl-said"))
    assert (folder / "runs" / "hosts").read_text() == (tmp_path / "mine").read_text()
    assert person.errors() == []


def test_a_rank_table_is_pasted_together_checked_written_and_planned_for(at_the_form):
    person, folder = at_the_form
    error, told = ".pgl-target .pgl-error:not([hidden])", ".pgl-target [role=status]"
    person.wait(lambda: person.find(".pgl-target select"))
    person.picture("target-here")
    person.click(".pgl-target option[value=ranktable]")
    person.wait(lambda: "No server yet" in person.text(".pgl-target"))
    for server in (1, 2):
        person.type(".pgl-target input[data-name=server]", f"10.0.0.{server}")
        person.type(".pgl-target textarea[data-name=addresses]", f"address_0=192.168.{server}")
        person.wait(lambda: f"device_ip is '192.168.{server}', which is not an IP address" in person.text(error))
        person.type(".pgl-target textarea[data-name=addresses]", f"address_0=192.168.0.{server}")
        person.wait(lambda: f"devices 0: 192.168.0.{server}" in person.text(".pgl-target") and not person.all(error))
        person.click(".pgl-target button[data-name=add]")
        person.wait(lambda: len(person.all(".pgl-target tr")) == server + 1)
    person.wait(lambda: "is written by Dry run or Start" in person.text(".pgl-target"))
    person.press(".pgl-launch", "Dry run")
    person.wait(
        lambda: "this machine is none of 10.0.0.1, 10.0.0.2" in person.text(".pgl-launch .pgl-error:not([hidden])")
    )
    assert "holds exactly this" in person.text(".pgl-target")
    assert json.loads((folder / "runs" / "hccl.json").read_text())["server_count"] == "2"
    person.click(".pgl-target select[data-name=node_rank] option[value='0']")
    person.wait(lambda: "--node-rank 0" in person.text(".pgl-launch .pgl-command"))
    person.press(".pgl-launch", "Dry run")
    person.wait(lambda: "# host 10.0.0.2 (node rank 1): rank 1" in person.text(".pgl-launch .pgl-said"))
    looks_right(person, "target-table")
    person.click(".pgl-target .pgl-language")
    person.wait(lambda: "启动方式" in person.text(".pgl-target"))
    person.picture("target-table-chinese", ".pgl-target")
    person.click(".pgl-target tr:nth-child(2) button")
    person.wait(lambda: person.find(f"{told}") and "⚠" in person.text(".pgl-target"))
    assert json.loads((folder / "runs" / "hccl.json").read_text())["server_count"] == "2", "not overwritten unasked"
    assert person.errors() == []


@pytest.mark.slow  # it compiles
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no Open MPI here")
def test_mpirun_starts_two_processes_from_the_form_and_their_end_is_shown(at_the_form):
    person, folder = at_the_form
    person.wait(lambda: person.find(".pgl-target select"))
    person.click(".pgl-target option[value=mpirun]")
    person.type(".pgl-target input[data-name=nproc]", "2")
    person.wait(lambda: "--backend mpirun --nproc 2" in person.text(".pgl-launch .pgl-command"))
    person.click(".pgl-start")
    person.wait(lambda: "started 2 of 2 ranks here" in person.text(".pgl-launch .pgl-said"), 60)
    person.picture("target-mpirun-running")
    person.wait(lambda: "ended with exit code 0" in person.text(".pgl-launch .pgl-said"), 240)
    assert "finished at step 5: 2 ranks" in person.text(".pgl-launch .pgl-said")
    for rank in (0, 1):
        person.wait(lambda: "done" in person.text(f".pgl-monitor tr[data-rank='{rank}']"))
    person.show(".pgl-target")
    looks_right(person, "target-mpirun")
    person.picture("target-mpirun-monitor", ".pgl-monitor")
    assert person.errors() == []
