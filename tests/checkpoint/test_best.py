"""``runs/NAME@best`` wherever a checkpoint is named."""

from __future__ import annotations

import pytest

from pangu_lab.checkpoint import resolve_checkpoint
from pangu_lab.checkpoint.best import Best, named, read_best
from pangu_lab.checkpoint.source import tokenizer_folder
from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.lm import PanguLM


def test_best_names_the_checkpoint_with_the_lowest_held_out_loss(debug_run):
    best = read_best(debug_run)
    assert best.step == 20 and named(f"{debug_run}@best") == debug_run / "checkpoints" / "step-00000020"
    assert resolve_checkpoint(f"{debug_run}@best").step == 20
    assert tokenizer_folder(f"{debug_run}@best") == debug_run / "tokenizer"


def test_it_is_opened_everywhere_a_checkpoint_is_named(debug_run, tmp_path, capsys, monkeypatch):
    lm = PanguLM.load(f"{debug_run}@best")
    assert (lm.name, lm.origin) == ("debug@best", "debug/step-00000020")
    assert main(["convert", "--from", f"{debug_run}@best", "--out", str(tmp_path / "c"), "--to", "gpt_pangu"]) == 0
    (tmp_path / "runs").symlink_to(debug_run.parent)
    monkeypatch.chdir(tmp_path)
    assert PanguLM.load("debug@best").origin == "debug/step-00000020"  # as a bare name


def test_what_is_no_best_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="has no best checkpoint yet"):
        resolve_checkpoint(tmp_path / "run@best")
    with pytest.raises(InputError, match="no such folder; @best goes with a run"):
        resolve_checkpoint(tmp_path / "none@best")
    (tmp_path / "run" / "best.json").write_text('{"step": -1}')
    with pytest.raises(InputError, match="best.json"):
        resolve_checkpoint(tmp_path / "run@best")
    Best(5, 1.0).write(tmp_path / "run")
    with pytest.raises(InputError, match="step-00000005"):
        resolve_checkpoint(tmp_path / "run@best")
    (tmp_path / "odd@best").mkdir()
    assert named(tmp_path / "odd@best") == tmp_path / "odd@best"  # a folder of that very name is itself
