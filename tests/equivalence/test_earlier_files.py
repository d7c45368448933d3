"""Runs, checkpoints and bundles that version 0.1 wrote open as they did, and say the same.

``tests/fixtures/v0.1`` was written by that version: for each of a dense model and one with experts a run of 6 steps, the
bundle of it, and in ``expected.json`` what both said. Such a folder is added when a format changes, and never rewritten.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pangu_lab import PanguLM
from pangu_lab.checkpoint.folder import list_checkpoints
from pangu_lab.runs.status import list_runs

FIXTURES = Path(__file__).parent.parent / "fixtures" / "v0.1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["run", "bundle", "checkpoint"])
@pytest.mark.parametrize("name", EXPECTED)
def test_it_opens_and_writes_the_same(name, kind, tmp_path):
    shutil.copytree(FIXTURES / name, tmp_path / name)  # what is committed is never written to
    folder = tmp_path / name / ("run" if kind != "bundle" else "bundle")
    if kind == "checkpoint":
        (folder,) = list_checkpoints(folder / "checkpoints")
    lm, expected = PanguLM.load(folder), EXPECTED[name]
    found = lm.logits([expected["ids"]])[0][:, :8]
    np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=1e-5)
    assert list(lm.generate("春天来了，", max_new_tokens=16, temperature=0.0).ids) == expected["greedy"]


@pytest.mark.parametrize("name", EXPECTED)
def test_its_run_is_listed_as_finished(name, tmp_path):
    shutil.copytree(FIXTURES / name, tmp_path / name)
    (run,) = list_runs(tmp_path / name)
    assert (run.name, run.state, run.step) == ("run", "finished", 6) and run.loss > 0
