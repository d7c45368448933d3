"""Memory honesty: the estimate is said, what cannot fit is refused with its numbers, and long prompts go in parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pangu_lab import PanguLM, memory
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.memory import GIB, Need, check, forward_bytes, generation_need, size, tokens_at_once
from pangu_lab.presets import preset


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are there."""
    return lambda amount: monkeypatch.setattr(memory, "available", lambda: amount)


def test_the_estimate_of_a_load_is_said_before_it_unless_any_machine_has_as_much(debug_run, capsys, free):
    free(64 * GIB)
    PanguLM.load(debug_run).runner
    assert capsys.readouterr().err == ""
    free(2 * GIB)
    PanguLM.load(debug_run).runner
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "generating: about" in said and "program" in said and "are free" in said


def test_a_model_that_cannot_fit_is_refused_with_the_numbers_and_what_would_fit(free):
    free(10 * GIB)
    with pytest.raises(InputError) as refused:
        check("x: generating", generation_need(preset("2.6B").model), generation_need)
    words = str(refused.value)
    assert "weights 9.8 GB" in words and "10.0 GB are free" in words and "preset 1.3B would fit" in words
    assert "\n" not in words


def test_no_verb_loads_what_does_not_fit(debug_run, debug_data, tmp_path, free, capsys):
    from pangu_lab.cli import main

    free(64 << 20)
    for line in (
        ["generate", "--from", str(debug_run), "--prompt", "春"],
        ["export", "--from", str(debug_run), "--out", str(tmp_path / "b")],
        ["evaluate", "perplexity", "--from", str(debug_run), "--data", str(debug_data / "heldout")],
        ["convert", "--from", str(debug_run), "--out", str(tmp_path / "c")],
        ["train", "--run", str(tmp_path / "r"), "--init-from", str(debug_run), "--data", str(debug_data / "train")],
    ):
        assert main(line) == 2, line
        said = capsys.readouterr().err
        assert "64 MB are free" in said and said.strip().count("\n") == 0, said
    assert not any((tmp_path / name).exists() for name in "bcr")


def test_training_that_does_not_fit_names_the_split_that_does(free, monkeypatch):
    from pangu_lab.train import fitting

    monkeypatch.setattr(fitting, "available", lambda: 30 * GIB)
    free(30 * GIB)
    config = preset("1.3B").replace(**{"data.batch_size": 1})
    with pytest.raises(InputError, match=r"parallel\.tensor=\d+ would need .* on each of .*preset \S+ would fit"):
        fitting.memory_line(config)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 600


def test_files_that_a_container_has_read_are_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{4 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{4 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 100\ninactive_file {3 << 20}\nactive_file 5\n")
    assert memory.available() == 3 << 20


def test_the_limits_of_version_1_and_of_the_groups_around_count(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("12:cpu,cpuacct:/a\n5:memory:/docker/x\n0::/user.slice/job.scope\n")
    first = tmp_path / "memory"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("9000\n")
    (first / "memory.usage_in_bytes").write_text("8000\n")
    (first / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500\n")
    assert memory.available() == 1500
    (tmp_path / "user.slice" / "job.scope").mkdir(parents=True)
    (tmp_path / "user.slice" / "memory.max").write_text("700\n")
    (tmp_path / "user.slice" / "memory.current").write_text("100\n")
    (tmp_path / "user.slice" / "job.scope" / "memory.max").write_text("max\n")
    assert memory.available() == 600


def test_a_prompt_in_parts_gives_the_same_as_at_once(debug_run):
    lm = PanguLM.load(debug_run)
    ids = np.random.default_rng(0).integers(0, 512, (3, 50))
    whole, said = lm.logits(ids), lm.generate("春天来了，" * 5, max_new_tokens=8, temperature=0)
    for most in (1, 7, 60):
        lm.runner.at_once = most
        assert np.abs(lm.logits(ids) - whole).max() < 1e-5
        assert lm.generate("春天来了，" * 5, max_new_tokens=8, temperature=0).ids == said.ids
        assert lm.score("春天来", "了，花开了。" * 3).tokens > 3
    assert lm.runner.pool.free == lm.runner.pool.slots


def test_large_models_are_fed_in_small_parts_and_small_ones_whole():
    small, large = preset("small").model, preset("2.6B").model
    assert tokens_at_once(small) > small.num_positions
    assert 16 <= tokens_at_once(large) < 128
    assert forward_bytes(large, tokens_at_once(large), 1024) <= memory.WORK
    assert (
        Need({"a": GIB, "b": GIB // 2}).total == 1.5 * GIB and size(1.5 * GIB) == "1.5 GB" and size(5 << 20) == "5 MB"
    )


def test_what_the_cache_holds_is_counted():
    model = dataclasses.replace(RunConfig().model, num_layers=2)
    small, large = generation_need(model), generation_need(model, 4096)
    assert large.total - small.total == 8 * 2 * 3072 * model.hidden_size


def test_what_top_will_show_stands_beside_the_estimate(monkeypatch):
    from pangu_lab.presets import preset
    from pangu_lab.train.fitting import memory_line

    config = preset("debug")
    line = memory_line(config)
    assert "are free; the process will show about" in line and line.endswith("400 MB of it MindSpore itself")
    monkeypatch.setenv("PANGU_LAB_LOCAL_RANKS", "2")
    assert "each process will show about" in memory_line(config)
