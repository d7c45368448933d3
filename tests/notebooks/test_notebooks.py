"""Every notebook runs from its first cell to its last, with small sizes in its parameters cell."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "00_quickstart": 'preset_name = "debug"\nchanges = {"train.steps": 10}\nfolder = FOLDER',
    "04_parallel": ('preset_name, steps, folder = "debug", 6, FOLDER\n'
                    'layouts = {"one process": {}, "pipeline 2": {"parallel.pipeline": 2, "parallel.micro_batches": 2}}'),
    "05_released_weights": 'preset_name = "debug"\nchanges = {"train.steps": 10}\nfolder = FOLDER\nsteps = 5',
    "06_generation": 'preset_name = "debug"\nchanges = {"train.steps": 5}\nfolder = FOLDER',
    "07_evaluation": 'preset_name = "debug"\nchanges = {"train.steps": 5}\nfolder = FOLDER\nc3_folder, limit = None, 4',
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, "a notebook has one cell tagged 'parameters'"
    cells[0].source = SMALL[name].replace("FOLDER", repr(str(tmp_path / "work")))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    errors = [output for cell in notebook.cells for output in cell.get("outputs", [])
              if output.output_type == "error" or output.get("name") == "stderr" and "ERROR" in output.text]
    assert not errors


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_is_kept_with_the_outputs_of_a_whole_run(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
