"""Graphs that are kept: a second start takes them and computes the same; what does not belong is never taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pangu_lab.cache import cache_folder
from pangu_lab.ops.native import train as native
from pangu_lab.runs import read_curves, read_events
from pangu_lab.train import graph_cache
from pangu_lab.train.graph_cache import GraphCache, graph_key

TRAIN = """import sys
from pangu_lab.presets import load_yaml
from pangu_lab.train import train
train(load_yaml(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Trains in a process of its own, with a cache folder of this test; (graphs taken, losses) of the last start."""
    monkeypatch.setenv("PANGU_LAB_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "start.py"
    script.write_text(TRAIN, encoding="utf-8")

    def run(config, name):
        path = tmp_path / f"{name}.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        subprocess.run([sys.executable, str(script), str(path), str(tmp_path / name)], check=True, timeout=200)
        told = [event["graphs_taken"] for event in read_events(tmp_path / name) if event["kind"] == "compile"]
        return told[-1], [event["loss"] for event in read_curves(tmp_path / name).steps]

    return run


def test_a_second_start_takes_every_graph_and_gives_the_same_losses_to_the_last_bit(debug_config, start):
    short = debug_config.replace(**{"train.steps": 4, "train.decay_steps": 20, "model.dropout_rate": 0.1})
    taken, first = start(short, "first")
    assert taken == 0
    taken, second = start(short, "second")
    assert taken == (2 if native.library() else 4) and second == first  # kernels need no graph for norm and update
    longer = short.replace(**{"train.steps": 8})
    taken, resumed = start(longer, "first")  # begins with another graph: its own set
    assert taken == 0
    again, same = start(longer, "second")
    assert again == (1 if native.library() else 3) and same == resumed and same[:4] == first
    file = next(cache_folder().glob("graphs/*/evaluation/rank_0/graph_cache/compile_cache_1.mindir"))
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1])
    taken, third = start(short, "third")  # a file that was cut short: all are made anew
    assert taken == 0 and third == first


@pytest.mark.parametrize(
    "change",
    [
        {"model.hidden_act": "gelu_erf"},
        {"train.seed": 5},
        {"data.batch_size": 8},
        {"train.accumulation": 2},
        {"data.eod_reset": False},
    ],
)
def test_a_setting_that_changes_graphs_has_a_folder_of_its_own(debug_config, change):
    assert graph_key(debug_config.replace(**change)) != graph_key(debug_config)


def test_more_steps_and_other_places_find_the_same_graphs(debug_config):
    other = debug_config.replace(**{"train.steps": 999, "data.path": "/elsewhere", "train.eval_every": 3})
    assert graph_key(other) == graph_key(debug_config)


@pytest.fixture
def fake_compile(tmp_path, monkeypatch):
    """Compiles as MindSpore does: the n-th graph with the cache on is the n-th file, whatever graph it is."""
    monkeypatch.setenv("PANGU_LAB_CACHE", str(tmp_path))
    monkeypatch.setitem(graph_cache._state, "used", False)
    context = {}
    monkeypatch.setattr(graph_cache.ms, "set_context", lambda **settings: context.update(settings))
    monkeypatch.setattr(graph_cache.sys, "argv", [__file__])

    def process(config, names, files=1):
        monkeypatch.setitem(graph_cache._state, "used", False)
        got, count = [], 0
        with GraphCache(config) as cache:
            for name in names:
                with cache.compiling(name):
                    if not context.get("enable_compile_cache"):
                        got.append(f"{name} anew")
                        continue
                    folder = cache.folder / "rank_0" / "graph_cache"
                    folder.mkdir(parents=True, exist_ok=True)
                    for _ in range(files):
                        path = folder / f"compile_cache_{count}.mindir"
                        count += 1
                        if not path.exists():
                            path.write_text(name, encoding="utf-8")
                        got.append(path.read_text(encoding="utf-8"))
        return got

    return process


def test_a_graph_out_of_turn_is_compiled_anew_and_never_another_ones_file(debug_config, fake_compile):
    fake_compile(debug_config, ["evaluation", "gradients", "norm"])
    assert fake_compile(debug_config, ["evaluation", "norm", "gradients"]) == ["evaluation", "norm anew", "gradients"]
    assert fake_compile(debug_config, ["gradients", "evaluation"]) == ["gradients", "evaluation"]


def test_a_file_without_a_record_is_never_taken(debug_config, fake_compile):
    fake_compile(debug_config, ["evaluation", "gradients"])
    record = next(cache_folder().glob("graphs/*/evaluation/record.json"))
    kept = json.loads(record.read_text(encoding="utf-8"))["graphs"]
    record.write_text(json.dumps({"graphs": kept[:1]}), encoding="utf-8")  # killed before it was written down
    assert fake_compile(debug_config, ["evaluation", "other"]) == ["evaluation", "other"]


def test_a_name_that_compiles_two_graphs_is_not_kept(debug_config, fake_compile):
    fake_compile(debug_config, ["evaluation", "gradients"], files=2)
    assert not list(cache_folder().glob("graphs/*/evaluation/record.json"))
    assert fake_compile(debug_config, ["evaluation"]) == ["evaluation"]


def test_only_the_sets_used_last_stay(debug_config, fake_compile, monkeypatch):
    monkeypatch.setattr(graph_cache, "KEPT", 3)
    for seed in range(5):
        fake_compile(debug_config.replace(**{"train.seed": seed}), ["evaluation"])
    assert len(list((cache_folder() / "graphs").iterdir())) == 3
