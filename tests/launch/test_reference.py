"""Every launch of the reference has its row in both READMEs, and the command in it parses and dry-runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pangu_lab import cli
from pangu_lab.config import parse_overrides
from pangu_lab.errors import InputError
from pangu_lab.launch import create_rank_table, launch, merge_rank_tables, write_rank_table
from pangu_lab.launch.reference import ARGUMENTS, LAUNCHES, tables, translate
from pangu_lab.runs import read_curves

ROOT = Path(__file__).resolve().parent.parent.parent
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
SCRIPTS = ["run_distribute_train", "run_distribute_train_gpu", "run_distribute_train_moe",
           "run_distribute_train_moe_host_device", "run_distribute_incremental_train",
           "run_distribute_train_auto_parallel"]


def shown(text: str) -> dict[str, list[list[str]]]:
    """Script → the commands in its row; the launch comes last."""
    rows = re.findall(r"^\| `(run_distribute\w+)` .*? \| (`pangu-lab .+`) \|$", text, re.MULTILINE)
    return {script: [shlex.split(command) for command in re.findall(r"`([^`]+)`", commands)] for script, commands in rows}


@pytest.fixture
def machines(tmp_path):
    """A folder with a hosts file and rank tables of 8 and 16 devices."""
    def address(server, number):
        return f"192.168.{100 + server}.{number + 1}"

    servers = [create_rank_table(f"10.0.0.{n}", list(range(8)), [address(n, i) for i in range(8)]) for n in (1, 2)]
    write_rank_table(servers[0], tmp_path / "8.json")
    write_rank_table(merge_rank_tables(servers), tmp_path / "16.json")
    (tmp_path / "hosts").write_text("10.0.0.1 slots=8\n10.0.0.2 slots=8\n")
    return tmp_path


@pytest.mark.parametrize("language", READMES)
def test_the_readmes_have_the_tables_as_they_are_now(language):
    text = READMES[language].read_text(encoding="utf-8")
    begin, end = "<!-- reference launches -->\n\n", "\n\n<!-- end of reference launches -->"
    assert text.partition(begin)[2].partition(end)[0] == tables(language), (
        f"put what pangu_lab.launch.tables('{language}') gives between the two marks of {READMES[language].name}")


def test_every_launch_and_every_argument_has_its_row():
    assert list(LAUNCHES) == SCRIPTS
    assert {name for launch in LAUNCHES.values() for name in launch.arguments} == set(ARGUMENTS)
    for language in READMES:
        assert set(shown(tables(language))) == set(SCRIPTS)
        assert all(f"| `{name}` |" in tables(language) for name in ARGUMENTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_command_of_a_row_parses_and_dry_runs(script, machines, monkeypatch, capsys):
    monkeypatch.chdir(machines)
    *first, command = shown(READMES["en"].read_text(encoding="utf-8"))[script]
    for words in first:
        assert callable(cli.build_parser().parse_args(words[1:]).handler)
    ranks = dict(zip(LAUNCHES[script].arguments, LAUNCHES[script].example.split()))["RANK_SIZE"]
    words = [f"{ranks}.json" if word == "hccl.json" else word for word in command[1:]]
    assert cli.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    started = [line for line in lines if line.startswith("env ")]
    if "--rank-table" in words:
        assert len(started) == int(ranks) and all("RANK_TABLE_FILE=" in line for line in started)
    else:
        assert any(f"-np {ranks} " in line for line in started)


def test_each_argument_lands_where_the_table_says():
    words = translate("scripts/run_distribute_train.sh", "D t.json 32 fp32 2.6B 2 4 16 8 8".split())
    settings = dict(word.split("=") for word in words if "=" in word)
    assert settings == {"parallel.data": "2", "parallel.tensor": "8", "parallel.pipeline": "2",
                        "parallel.micro_batches": "4", "parallel.optimizer": "true", "parallel.recompute": "true",
                        "data.batch_size": str(16 * 2 * 4)}
    for option, value in (("--preset", "2.6B"), ("--rank-table", "t.json"), ("--node-rank", "1"), ("--data", "D")):
        assert words[words.index(option) + 1] == value
    one = translate("run_distribute_train", "D t.json 8 fp32 13B 1 1 16 0 8".split())
    assert {"parallel.data=1", "parallel.optimizer=false"} <= set(one)  # the preset has two data ranks
    moe = translate("run_distribute_train_moe", "D t.json 16 fp32 2.6B 1 1 2 0 8 4 1 2".split())
    assert {"model.num_experts=8", "parallel.expert=2", "parallel.all_to_all=true"} <= set(moe)
    host = translate("run_distribute_train_moe_host_device", "D t.json 8 fp32 2.6B 1 1 2 0 8 36 0".split())
    assert {"model.num_experts=36", "train.offload=optimizer", "data.batch_size=2"} <= set(host)
    assert "reference-1.3B" in translate("run_distribute_train_gpu", "8 hosts D 16 1.3B".split())


def test_what_comes_before_a_launch_is_shown_with_it(capsys):
    found = shown(tables("en"))
    assert [script for script, commands in found.items() if len(commands) > 1] == SCRIPTS[-2:]
    convert, plan = (found[script][0] for script in SCRIPTS[-2:])
    assert convert[1] == "convert" and plan[1] == "plan" and cli.main(plan[1:]) == 0


@pytest.mark.parametrize("script,arguments,message", [
    ("run_distribute_trian", "", "unknown script 'run_distribute_trian' .did you mean 'run_distribute_train'"),
    ("run_distribute_train", "D t.json 8", "takes 10 to 10 arguments"),
    ("run_distribute_train", "D t.json 12 fp32 2.6B 1 1 8 0 8", "RANK_SIZE=12 must be a multiple of STAGE_NUM"),
    ("run_distribute_train", "D t.json 8 fp32 2.7B 1 1 8 0 8", "unknown preset '2.7B'"),
    ("run_distribute_train", "D t.json 8 fp32 2.6B one 1 8 0 8", "STAGE_NUM=one must be a whole number"),
])
def test_what_the_reference_would_not_take_either_is_one_line(script, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        translate(script, arguments.split())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script, layout", [
    ("run_distribute_train_moe", {"parallel.tensor": 1}), ("run_distribute_train_moe_host_device", {"parallel.tensor": 2})])
def test_the_launches_with_experts_train_on_this_machine(script, layout, debug_config, tmp_path):
    """With the settings of the row, but for a small model and two ranks instead of 16 or 8."""
    words = translate(script, LAUNCHES[script].example.split())
    settings = parse_overrides([words[i + 1] for i, word in enumerate(words) if word == "--set"])
    config = debug_config.replace(**{**settings, **layout, "data.batch_size": 4, "train.steps": 8})
    assert config.parallel.world_size == 2 and config.model.num_experts in (8, 36)
    launch(config, tmp_path / "run", 2)
    steps = read_curves(tmp_path / "run").steps
    assert len(steps) == 8 and steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert np.allclose(np.sum(steps[-1]["expert_load"], -1), 1.0, atol=0.01)
