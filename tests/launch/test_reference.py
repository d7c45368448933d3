"""Every launch of the reference has its row in both guides, and the command in it parses and dry-runs."""

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
from pangu_lab.launch.reference import ARGUMENTS, LAUNCHES, before, tables, translate
from pangu_lab.presets import preset
from pangu_lab.runs import read_curves

ROOT = Path(__file__).resolve().parent.parent.parent
GUIDES = {"en": ROOT / "docs/guide.md", "zh": ROOT / "docs/guide.zh-CN.md"}
SCRIPTS = [
    "run_distribute_train",
    "run_distribute_train_gpu",
    "run_distribute_train_moe",
    "run_distribute_train_moe_host_device",
    "run_distribute_incremental_train",
    "run_distribute_train_auto_parallel",
    "run_standalone_predict",
    "run_distribute_predict",
    "run_standalone_eval",
    "run_distribute_eval",
    "run_standalone_export",
    "run_distribute_export",
    "run_cluster_export",
]
TRAINING = [name for name in SCRIPTS if "_train" in name]


def shown(text: str) -> dict[str, list[list[str]]]:
    """Script → the commands in its row; the launch comes last."""
    rows = re.findall(r"^\| `(run_\w+)` .*? \| (`pangu-lab .+`) \|$", text, re.MULTILINE)
    return {
        script: [shlex.split(command) for command in re.findall(r"`([^`]+)`", commands)] for script, commands in rows
    }


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


@pytest.mark.parametrize("language", GUIDES)
def test_the_guides_have_the_tables_as_they_are_now(language):
    text = GUIDES[language].read_text(encoding="utf-8")
    begin, end = "<!-- reference launches -->\n\n", "\n\n<!-- end of reference launches -->"
    assert text.partition(begin)[2].partition(end)[0] == tables(language), (
        f"put what pangu_lab.launch.tables('{language}') gives between the two marks of {GUIDES[language].name}"
    )


def test_every_launch_and_every_argument_has_its_row():
    assert list(LAUNCHES) == SCRIPTS
    assert {name for launch in LAUNCHES.values() for name in launch.arguments} == set(ARGUMENTS)
    for language in GUIDES:
        assert set(shown(tables(language))) == set(SCRIPTS)
        assert all(f"| `{name}` |" in tables(language) for name in ARGUMENTS)


@pytest.mark.parametrize("script", TRAINING)
def test_the_command_of_a_row_parses_and_dry_runs(script, machines, monkeypatch, capsys):
    monkeypatch.chdir(machines)
    *first, command = shown(GUIDES["en"].read_text(encoding="utf-8"))[script]
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


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in TRAINING])
def test_the_commands_of_prediction_evaluation_and_export_parse_and_those_of_several_ranks_dry_run(
    script, machines, monkeypatch, capsys
):
    monkeypatch.chdir(machines)
    convert, command = shown(GUIDES["en"].read_text(encoding="utf-8"))[script]
    for words in (convert, command):
        assert callable(cli.build_parser().parse_args(words[1:]).handler)
    if "--rank-table" in command:
        words = ["8.json" if word == "hccl.json" else word for word in command[1:]]
        assert cli.main([*words, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("env DEVICE_ID=") for line in lines) == 8


@pytest.mark.parametrize(
    "line, command",
    [
        (
            "bash scripts/run_distribute_predict.sh 8 t.json S ${P}/tokenizer/ ${P}/c filitered 2.6B fp32",
            "pangu-lab generate --from WEIGHTS --rank-table t.json --prompt TEXT",
        ),
        (
            "python -m src.preprocess --input_glob  data/*.txt --tokenizer jieba --model_file vocab.model --eot 6",
            "pangu-lab prepare --input 'data/*.txt' --tokenizer pangu --eod 6 --seq-length 1025 --column input_ids --out output",
        ),
        (
            "python -m src.preprocess --input_glob 'data/*.txt' --tokenizer gpt --eot=50256 --seq_length 1025",
            "pangu-lab prepare --input 'data/*.txt' --tokenizer VOCABULARY --eod 50256 --seq-length 1025 --column input_ids "
            "--out output",
        ),
        (
            "bash run_cluster_export.sh S C t.json 16 8",
            "pangu-lab export --from WEIGHTS --out BUNDLE --tensor-parallel 16 --rank-start 8 --ranks 8",
        ),
        ("bash stop_pangu.sh", "pangu-lab serve --stop --pid-file serve.pid"),
        (
            "bash scripts/run_distribute_predict.sh 32 t.json S T C filitered 200B fp16",
            "pangu-lab generate --from WEIGHTS --rank-table t.json --pipeline 4 --dtype float16 --prompt TEXT",
        ),
        (
            "bash scripts/run_distribute_eval.sh 32 t.json S T C 200B fp32 c3 D",
            "pangu-lab evaluate c3 --from WEIGHTS --rank-table t.json --pipeline 4 --data D",
        ),
        (
            "python predict.py --mode=200B --run_type=predict --device_num=32 --stage_num=4",
            "pangu-lab generate --from WEIGHTS --nproc 32 --pipeline 4 --prompt TEXT",
        ),
        (
            "python predict.py --enable_client --eval_task=c3 --tokenizer_path=T --eval_data_url=D",
            "pangu-lab evaluate c3 --server http://127.0.0.1:7860 --tokenizer T --data D",
        ),
        (
            "$ DEVICE_ID=0 nohup /bin/bash -x run_distribute_predict.sh \\ \n 8 \\\r\n'~/表 x' S T C filitered 2.6B fp32",
            "pangu-lab generate --from WEIGHTS --rank-table '~/表 x' --prompt TEXT",
        ),
        (
            'bash run_distribute_predict.sh 8 "${HOME}/my table" S T C filitered 2.6B fp32',
            'pangu-lab generate --from WEIGHTS --rank-table "${HOME}/my table" --prompt TEXT',
        ),
        (
            "bash run_distribute_predict.sh 8 ~/hccl.json S T C filitered 2.6B fp32",
            "pangu-lab generate --from WEIGHTS --rank-table ~/hccl.json --prompt TEXT",
        ),
        (
            "bash run_distribute_predict.sh 8 '$(reboot)' S T C filitered 2.6B fp32",
            "pangu-lab generate --from WEIGHTS --rank-table '$(reboot)' --prompt TEXT",
        ),
        (
            "bash run_distribute_train.sh export PATH=x 8 fp32 2.6B 1 1 8 0 8",
            "pangu-lab launch --preset 2.6B --rank-table PATH=x --node-rank 0 --data export --run DIR --set parallel.tensor=8 "
            "--set parallel.recompute=true --set data.batch_size=8",
        ),
    ],
)
def test_a_pasted_line_becomes_the_command_here(line, command, capsys):
    assert cli.main(["translate", line]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == command
    for words in map(shlex.split, said):
        assert callable(cli.build_parser().parse_args(words[1:]).handler)


def test_200b_has_its_own_stages_micro_batches_and_rates():
    words = translate("run_distribute_train", ["D", "t.json", "2048", "fp32", "200B", "1", "1", "2", "0", "8"])
    config = preset("200B").replace(**parse_overrides([word for word in words if "=" in word]))
    assert (config.parallel.pipeline, config.parallel.micro_batches, config.parallel.tensor) == (16, 32, 8)
    assert config.parallel.world_size == 2048 and (config.train.start_lr, config.train.end_lr) == (6e-5, 6e-6)
    assert config.data.batch_size == 2 * 16 * 32
    with pytest.raises(InputError, match="200B always has 16 stages"):
        translate("run_distribute_train", ["D", "t.json", "64", "fp32", "200B", "1", "1", "2", "0", "8"])


TRAINING = "bash run_distribute_train.sh D t.json 8 fp32 2.6B 1 1 8 0 8"


@pytest.mark.parametrize(
    "line, said",
    [
        ("", "paste a line"),
        ("bash", "paste a line"),
        ("ls -l", "unknown script 'ls'"),
        ("bash 'x", "No closing quotation"),
        ("python predict.py --mode=2.6B", "--enable_client"),
        ("bash '\n\x1b[31m\u202e'", r"'\n\x1b[31m\u202e'"),
        ("x" * 10**6, "1000000 characters"),
        (f"{TRAINING} > log 2>&1", "'>' is for the shell"),
        (f"{TRAINING} &", "'&' is for the shell"),
        (f"{TRAINING}; ls", "'8;' is for the shell"),
        (TRAINING.replace("json 8", "json ²"), "RANK_SIZE=² must be a whole number"),
        (TRAINING.replace("json 8", "json " + "9" * 5000), "RANK_SIZE=9999"),
        (TRAINING.replace("2.6B 1", "2.6B 0"), "STAGE_NUM=0 must be a whole number from 1"),
        (TRAINING.replace("8 0 8", "0 0 8"), "PER_BATCH=0 must be a whole number from 1"),
        ("bash run_distribute_predict.sh 6 t.json S T C filitered 200B fp16", "RANK_SIZE=6 must be a multiple of 4"),
        ("bash run_cluster_export.sh S C t.json 16 99", "RANK_START=99 must be below RANK_SIZE=16"),
    ],
)
def test_a_line_that_is_not_the_references_is_refused_in_one_line(line, said, capsys):
    assert cli.main(["translate", line]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1 and len(error) < 600


def test_a_path_with_equals_signs_is_no_setting():
    assert (
        before(
            "run_distribute_train_auto_parallel", ["a=b=c", "t.json", "8", "fp16", "2.6B", "1", "1", "16", "0", "8"]
        )[-1]
        == "16"
    )


def test_each_argument_lands_where_the_table_says():
    words = translate(
        "scripts/run_distribute_train.sh", ["D", "t.json", "32", "fp32", "2.6B", "2", "4", "16", "8", "8"]
    )
    settings = dict(word.split("=") for word in words if "=" in word)
    assert settings == {
        "parallel.data": "2",
        "parallel.tensor": "8",
        "parallel.pipeline": "2",
        "parallel.micro_batches": "4",
        "parallel.optimizer": "true",
        "parallel.recompute": "true",
        "data.batch_size": str(16 * 2 * 4),
    }
    for option, value in (("--preset", "2.6B"), ("--rank-table", "t.json"), ("--node-rank", "1"), ("--data", "D")):
        assert words[words.index(option) + 1] == value
    one = translate("run_distribute_train", ["D", "t.json", "8", "fp32", "13B", "1", "1", "16", "0", "8"])
    assert {"parallel.data=1", "parallel.optimizer=false"} <= set(one)  # the preset has two data ranks
    moe = translate(
        "run_distribute_train_moe", ["D", "t.json", "16", "fp32", "2.6B", "1", "1", "2", "0", "8", "4", "1", "2"]
    )
    assert {"model.num_experts=8", "parallel.expert=2", "parallel.all_to_all=true"} <= set(moe)
    host = translate(
        "run_distribute_train_moe_host_device", ["D", "t.json", "8", "fp32", "2.6B", "1", "1", "2", "0", "8", "36", "0"]
    )
    assert {"model.num_experts=36", "train.offload=optimizer", "data.batch_size=2"} <= set(host)
    assert "reference-1.3B" in translate("run_distribute_train_gpu", ["8", "hosts", "D", "16", "1.3B"])


def test_what_comes_before_a_launch_is_shown_with_it(capsys):
    found = shown(tables("en"))
    assert [script for script, commands in found.items() if len(commands) > 1] == SCRIPTS[4:]
    convert, plan = (found[script][0] for script in SCRIPTS[4:6])
    assert all(found[script][0][1] == "convert" for script in SCRIPTS[6:])
    assert convert[1] == "convert" and plan[1] == "plan" and cli.main(plan[1:]) == 0


@pytest.mark.parametrize(
    "script,arguments,message",
    [
        ("run_distribute_trian", "", "unknown script 'run_distribute_trian' .did you mean 'run_distribute_train'"),
        ("run_distribute_train", "D t.json 8", "takes 10 arguments"),
        ("run_distribute_train", "D t.json 12 fp32 2.6B 1 1 8 0 8", "RANK_SIZE=12 must be a multiple of STAGE_NUM"),
        ("run_distribute_train", "D t.json 8 fp32 2.7B 1 1 8 0 8", "unknown preset '2.7B'"),
        ("run_distribute_train", "D t.json 8 fp32 2.6B one 1 8 0 8", "STAGE_NUM=one must be a whole number"),
    ],
)
def test_what_the_reference_would_not_take_either_is_one_line(script, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        translate(script, arguments.split())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "script, layout",
    [
        ("run_distribute_train_moe", {"parallel.tensor": 1}),
        ("run_distribute_train_moe_host_device", {"parallel.tensor": 2}),
    ],
)
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
