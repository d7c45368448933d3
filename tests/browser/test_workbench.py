"""The workbench in a real JupyterLab: forms, a run that is started, watched over a page refresh, stopped and resumed."""

from __future__ import annotations

import re

import pytest

from pangu_lab.data import sample_files
from pangu_lab.runs.events import read_events
from tests.browser.jupyter import BUSY, Person, browser_is_here, notebook_of, somebody_at

# slow: it compiles and trains, about three minutes on a busy machine
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
]

CELLS = (
    "from pangu_lab.presets import preset\n"
    "from widgets import ConfigForm, LaunchPanel\n"
    "form = ConfigForm(preset('debug').replace(**{changes}))\nform",
    "panel = LaunchPanel(form, 'seen')\npanel",
)


def points(person: Person) -> int:
    return int(
        person.driver.execute_script(
            "const c = document.querySelector('.pgl-monitor canvas[data-points]');"
            "return c ? Number(c.dataset.points.split(',')[0]) : 0"
        )
    )


def state(person: Person) -> str:
    return person.driver.execute_script(
        "const b = document.querySelector('.pgl-monitor .pgl-badge'); return b ? b.dataset.state : ''"
    )


def step(person: Person) -> int:
    """The step that the monitor says the run is at."""
    found = re.search(r"step ([\d,]+) of 100,000", person.text(".pgl-monitor"))
    return int(found[1].replace(",", "")) if found else 0


def field(key: str) -> str:
    return f".pgl-form input[data-key='{key}']"


@pytest.fixture
def at_the_desk(debug_data, tmp_path):
    changes = {
        "data.path": str(debug_data / "train"),
        "data.eval_path": str(debug_data / "heldout"),
        "train.steps": 100_000,
        "train.eval_every": 20,
    }
    cells = [cell.replace("{changes}", repr(changes)) for cell in CELLS]
    notebook_of(tmp_path / "lab" / "bench.ipynb", *cells, BUSY)
    with somebody_at(tmp_path / "lab") as person:
        try:
            person.open("bench.ipynb")
            yield person, tmp_path / "lab"
        finally:
            (tmp_path / "lab" / "release").touch()
            (tmp_path / "lab" / "runs" / "seen").is_dir() and (tmp_path / "lab" / "runs" / "seen" / "stop").touch()


def test_settings_are_turned_a_run_is_started_watched_over_a_refresh_stopped_and_resumed(at_the_desk):
    person, folder = at_the_desk
    person.start("notebook:run-all-cells")  # the last cell runs until it is released
    person.wait(lambda: person.find(".pgl-form") and person.find(".pgl-monitor"), 120)
    parameters = person.wait(lambda: person.text(".pgl-form .pgl-tile[data-name='parameters'] div:last-child"))
    person.type(field("model.hidden_size"), "48")
    person.wait(lambda: person.text(".pgl-form .pgl-tile[data-name='parameters'] div:last-child") != parameters)
    assert "model.hidden_size=48" in person.text(".pgl-form .pgl-command")
    person.type(field("model.num_heads"), "5")
    person.wait(lambda: "must divide model.hidden_size=48" in person.text(".pgl-form .pgl-error"))
    person.click(".pgl-start")
    person.wait(lambda: "must divide model.hidden_size=48" in person.text(".pgl-launch .pgl-error"))
    person.type(field("model.num_heads"), "4")
    person.wait(
        lambda: not person.all(".pgl-error:not([hidden])")
    )  # the kernel has seen it: Start would be refused before
    assert "model.hidden_size=48" in person.text(".pgl-launch .pgl-command")
    person.wait(lambda: person.find(".pgl-start").is_enabled())
    person.picture("bench-form", ".pgl-form")
    person.click(".pgl-start")
    person.wait(lambda: state(person) in ("starting", "compiling", "training"), 120)
    person.wait(lambda: points(person) >= 3, 120)
    before = points(person)
    person.wait(lambda: points(person) > before, 60)  # while a cell runs
    person.picture("bench-monitor", ".pgl-monitor")
    person.save()
    before = points(person)
    person.refresh_busy()
    person.wait(lambda: points(person) > before, 90)  # the cell still runs, and so does the run
    assert state(person) in ("training", "evaluating", "saving")
    person.click(".pgl-monitor .pgl-danger")
    person.wait(lambda: state(person) == "stopped", 90)
    stopped = step(person)
    person.press(".pgl-monitor", "Resume")
    person.wait(lambda: state(person) == "training" and step(person) > stopped, 120)
    begun = [event for event in read_events(folder / "runs" / "seen") if event["kind"] == "start"]
    assert [event["resumed_from"] for event in begun] == [0, stopped]
    person.picture("bench-resumed", ".pgl-monitor")
    person.press(".pgl-monitor", "Stop")
    person.wait(lambda: state(person) == "stopped", 90)
    assert step(person) > stopped and not (folder / "release").exists()
    (folder / "release").touch()
    person.wait(person.idle, 60)
    assert person.errors() == []


def test_a_text_is_named_looked_at_trained_on_and_the_next_commands_are_shown(tmp_path):
    text = tmp_path / "lab" / "我的 书.txt"
    notebook_of(tmp_path / "lab" / "start.ipynb", "from widgets import StartForm\nStartForm()")
    text.write_text("\n".join(path.read_text(encoding="utf-8") for path in sample_files("train")), encoding="utf-8")
    with somebody_at(tmp_path / "lab") as person:
        person.open("start.ipynb")
        person.run_all(60)
        person.press(".pgl-starter", "Start")
        person.wait(lambda: "name a text" in person.text(".pgl-starter .pgl-error"))
        person.type(".pgl-starter input[type=text]", "nothing.txt")
        person.press(".pgl-starter", "What to expect")
        person.wait(lambda: "nothing.txt: no such file" in person.text(".pgl-starter .pgl-error:not([hidden])"))
        person.type(".pgl-starter input[type=number]", "0.5")
        person.type(".pgl-starter input[type=text]", text.name)
        person.wait(lambda: person.text(".pgl-starter .pgl-command") == "pangu-lab start '我的 书.txt' --minutes 0.5")
        person.press(".pgl-starter", "What to expect")
        person.wait(lambda: "bits per character held out" in person.text(".pgl-starter"), 90)
        person.picture("start-advice", ".pgl-starter")
        person.press(".pgl-starter", "Start")
        person.wait(lambda: state(person) == "training", 120)
        person.picture("start-training")
        person.wait(lambda: state(person) in ("finished", "stopped"), 120)
        person.wait(lambda: "pangu-lab generate --from" in person.text(".pgl-starter"))
        person.picture("start-done")
        assert person.errors() == []
