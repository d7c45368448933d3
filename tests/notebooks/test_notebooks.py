"""Every notebook runs from its first cell to its last, with small sizes in its parameters cell.

Those that need a run share one in ``SHARED``, as people do: 00 trains it, or else the first that needs it. The others open
the model that comes with the lab.
"""

from __future__ import annotations

import getpass
import os
import re
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SLOW = {"03_train_and_watch"}  # starts six runs; what it does is tested in parts in tests/widgets and tests/train
# two layers of four: what takes the time is compiling, layer by layer
MODEL = 'preset_name = "debug"\nchanges = {"train.steps": 10, "model.num_layers": 2}\nfolder = SHARED'
VERSE = 'model, folder = "verse", FOLDER'
SMALL = {
    "00_quickstart": MODEL,
    "01_data_and_tokens": "folder, texts, vocab_size, sizes, record_length = FOLDER, None, 512, (512, 640), 41",
    "02_the_model": VERSE,
    "03_train_and_watch": ('preset_name, stop_at, folder = "debug", 3, FOLDER\n'
                           'changes = {"train.steps": 150, "train.eval_every": 150, "train.checkpoint_every": 150, '
                           '"model.num_layers": 2}'),
    "04_parallel": ('preset_name, steps, routing_steps, changes, folder = "debug", 3, 2, {"model.num_layers": 3}, FOLDER\n'
                    'layouts = {"one process": {}, "pipeline 2": {"parallel.pipeline": 2, "parallel.micro_batches": 2}}'),
    "05_released_weights": f"{MODEL}\nsteps = 5",
    "06_generation": f"{VERSE}\nrounds = 1",
    "07_evaluation": f"{VERSE}\nc3_folder, limit = None, 4",
    "08_export_and_serve": f"{VERSE}\nstreams, seconds, new_tokens = (1, 2), 1, 4",
    "09_exercises": MODEL,
    "10_verse": f"{VERSE}\ncount, temperatures = 4, (0.7, 1.3)",
}
HOME = Path("家", "张 三", "(a)+b")  # notebooks run wherever people have their files
TOGETHER = 900.0  # seconds for all of them, the slow one too, on two cores beside other tests
took: dict[str, float] = {}  # by notebook, of those that this process has run
OF_THIS_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|var)/|[A-Z]:\\\\Users")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """Where notebooks that need some model find the same one."""
    return tmp_path_factory.mktemp("notebooks") / HOME / "work"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NOTEBOOKS])
def test_a_notebook_runs_to_its_end(name, tmp_path, shared_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, "a notebook has one cell tagged 'parameters'"
    folder = tmp_path / HOME
    folder.mkdir(parents=True)
    places = {"FOLDER": folder / "work", "SHARED": shared_folder}
    cells[0].source = re.sub("FOLDER|SHARED", lambda word: repr(str(places[word.group()])), SMALL[name])
    begun = time.monotonic()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    took[name] = time.monotonic() - begun
    errors = [output for cell in notebook.cells for output in cell.get("outputs", [])
              if output.output_type == "error" or output.get("name") == "stderr" and "ERROR" in output.text]
    assert not errors


def test_all_notebooks_that_ran_took_a_quarter_of_an_hour_at_most():
    if not took:
        pytest.skip("no notebook ran here")
    assert sum(took.values()) < TOGETHER, {name: round(seconds) for name, seconds in took.items()}


def test_answers_are_folded_away_and_each_checks_itself():
    notebook = nbformat.read(ROOT / "notebooks" / "09_exercises.ipynb", as_version=4)
    tagged = [(tag, cell) for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    answers = [cell for tag, cell in tagged if tag == "answer"]
    assert 10 <= len(answers) <= 14 and len(answers) == sum(tag == "yours" for tag, _ in tagged)
    for number, cell in enumerate(answers, 1):
        assert cell.source.startswith(f"# answer {number}\n") and "assert " in cell.source
        assert cell.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}


def outputs_of(name: str) -> list[str]:
    """Every text that the kept outputs of a notebook hold."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return shown + [output.text for output in outputs if output.output_type == "stream"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_with_the_outputs_of_a_whole_run(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_say_nothing_of_the_machine_they_were_made_on(name):
    for text in outputs_of(name):
        found = OF_THIS_MACHINE.search(text)
        assert not found, text[max(0, found.start() - 60):found.end() + 60]
        assert str(ROOT) not in text and (getpass.getuser() == "root" or getpass.getuser() not in text)


def test_the_check_of_outputs_sees_paths():
    for text in ("at /home/me/x", "'/tmp/a/b'", "C:\\\\Users\\\\me", "/root/" + ".cache"):
        assert OF_THIS_MACHINE.search(text)
    assert not OF_THIS_MACHINE.search("../runs/home/run and runs/tmp/x")
