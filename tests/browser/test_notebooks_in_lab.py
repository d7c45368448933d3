"""Every notebook opened in a real JupyterLab with small sizes and run to its end: no error, and every widget is drawn."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests.browser.jupyter import Person, browser_is_here, jupyter_server
from tests.notebooks.test_notebooks import NOTEBOOKS, ROOT, SMALL

# slow: the notebooks train, serve and evaluate; measured together: about eleven minutes beside other work
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
]
WIDGET = "application/vnd.jupyter.widget-view+json"
DRAWN = ".jp-Notebook .jp-OutputArea-output > :is(.pgl, .jupyter-widgets):has(> *)"
OUTPUTS = (
    "return window.jupyterapp.shell.currentWidget.content.widgets.filter((cell) => cell.model.type === 'code')"
    ".map((cell) => cell.model.outputs.toJSON())"
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The address of a JupyterLab and its folder with all notebooks, small and without outputs."""
    folder = tmp_path_factory.mktemp("desk")
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                places = {"FOLDER": f"work-{name[:2]}", "SHARED": "shared"}
                cell.source = re.sub("FOLDER|SHARED", lambda word: repr(places[word.group()]), SMALL[name])
        nbformat.write(notebook, folder / f"{name}.ipynb")
    with jupyter_server(folder) as address:
        yield address


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_jupyterlab_and_all_its_widgets_are_drawn(desk, name):
    person = Person(desk)
    try:
        person.open(f"{name}.ipynb")
        person.run_all(600)
        outputs = [output for cell in person.driver.execute_script(OUTPUTS) for output in cell]
        assert [output["ename"] for output in outputs if output["output_type"] == "error"] == []
        person.wait(lambda: "Loading widget" not in person.text(".jp-Notebook"))
        assert "Error displaying widget" not in person.text(".jp-Notebook")
        shown = sum(WIDGET in output.get("data", {}) for output in outputs)
        assert len(person.all(DRAWN)) == shown
        person.picture(f"notebook-{name}")
    finally:
        person.command("kernelmenu:shutdown")
        person.close()
