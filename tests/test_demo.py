"""The demonstration from end to end, with the debug preset in place of tiny."""

from __future__ import annotations

import pytest

from pangu_lab.demo import PROMPTS, run_demo, sample_data
from pangu_lab.errors import InputError
from pangu_lab.presets import preset


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("demo") / "演示 (一)", []
    return run_demo(folder, say=said.append, config=preset("debug")), folder, "\n".join(said)


def test_the_main_job_runs_and_the_bundle_equals_the_model(demo):
    result, folder, _ = demo
    assert result.bundle_equals_python and (folder / "bundle" / "bundle.json").is_file()
    assert result.curve.read_bytes().startswith(b"\x89PNG")
    assert result.perplexity_after < result.perplexity_before / 3
    assert len(result.continuations) == len(PROMPTS) == 3 and all(result.continuations)


def test_the_demo_shows_the_curve_and_what_to_do_next(demo):
    _, folder, said = demo
    assert "step   · training loss" in said and "held-out perplexity" in said
    assert "make lab" in said and f"pangu-lab serve --bundle {folder / 'bundle'}" in said
    assert said.count("▸") == 3


def test_a_folder_of_something_else_is_left_alone_and_a_former_demo_replaced(demo, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="was not made by the demonstration"):
        run_demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_the_sample_is_prepared_once_and_found_again(tmp_path, monkeypatch):
    config = preset("debug")
    monkeypatch.chdir(tmp_path)
    made = sample_data("work", config)
    marks = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*")) if path.is_file()]
    assert made.data.path == "work/data/train" and sample_data("work", config) == made
    assert marks == [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*")) if path.is_file()]
    with pytest.raises(InputError, match="data.seq_length=64, not 32"):
        sample_data("work", config.replace(**{"data.seq_length": 32}))
