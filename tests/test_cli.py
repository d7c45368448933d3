"""The command line: one clear line for every mistake, the right exit code, and each verb really run."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import errno
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pangu_lab import cli
from pangu_lab.checkpoint import list_checkpoints
from pangu_lab.cli.common import settings
from pangu_lab.cli.training import ending
from pangu_lab.data import sample_files
from pangu_lab.errors import InputError
from pangu_lab.presets import PRESETS, load_yaml, preset
from pangu_lab.train import TrainResult

ROOT = Path(__file__).resolve().parent.parent
HOME = Path("家", "张 三", "(a)+b")


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every verb with its parser; `tokenizer train` counts as one."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                deeper = verbs_of(child)
                found.update({f"{name} {verb}": leaf for verb, leaf in deeper.items()} or {name: child})
    return found


VERBS = verbs_of(cli.build_parser())


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def start(code: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


# ------------------------------------------------------------------------------------------------------- usage


def test_help_is_quick_and_tells_every_verb():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pangu_lab.cli", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0 and seconds < 2, f"{seconds:.2f} s; on a quiet machine 0.1 s"
    for verb in VERBS:
        assert re.search(rf"^ +{verb.split()[0]}\b", done.stdout, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json_and_a_handler(verb, capsys):
    code, out, _ = run(*verb.split(), "--help", capsys=capsys)
    assert code == 0 and f"pangu-lab {verb}" in out and "--json" in out
    assert callable(VERBS[verb].get_default("handler"))


def test_no_verb_is_a_stub():
    """What the handlers import when they run is there, so a verb that is listed can do its work."""
    for path in sorted((ROOT / "pangu_lab" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pangu_lab"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: VERB"),
        (["trian"], "unknown verb 'trian' (did you mean 'train'?)"),
        (["tokenizer", "shw", "x"], "unknown verb 'shw' (did you mean 'show'?)"),
        (["train"], "the following arguments are required: --run"),
        (["train", "--run", "x", "--presett", "tiny"], "unknown argument '--presett' (did you mean '--preset'?)"),
        (["train", "--run", "x", "--pre", "tiny"], "unknown argument '--pre'"),
        (["plan", "2.6B"], "'2.6B' belongs to no option (did you mean '--preset 2.6B'?)"),
        (["train", "--run", "x", "data"], "'data' belongs to no option (see `pangu-lab train --help`)"),
        (["train", "--run", "x", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["train", "--run", "x"], "give --preset NAME (debug, tiny,"),
        (["train", "--run", "x", "--preset", "tinny"], "unknown preset 'tinny' (did you mean 'tiny'?)"),
        (["train", "--run", "x", "--preset", "tiny"], "give --data DIR"),
        (
            ["train", "--run", "x", "--preset", "tiny", "--data", "d", "--set", "train.stps=3"],
            "unknown setting 'train.stps' (did you mean 'train.steps'?)",
        ),
        (["train", "--run", "x", "--preset", "tiny", "--data", "d", "--steps", "0"], "train.steps=0 must be"),
        (["train", "--run", "x", "--config", "none.yaml"], "none.yaml: no such configuration file"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("pangu-lab") and message in err
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "error, code, message",
    [
        (InputError("a.txt: not readable"), 2, "pangu-lab doctor: a.txt: not readable\n"),
        (KeyboardInterrupt(), 130, "pangu-lab doctor: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            1,
            "pangu-lab doctor: No space left on device: /data/x\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "pangu-lab doctor: Permission denied: /x\n"),
    ],
)
def test_what_went_wrong_decides_the_exit_code(error, code, message, capsys, monkeypatch):
    def fail(folder="."):
        raise error

    monkeypatch.setattr("pangu_lab.doctor.checks", fail)
    assert run("doctor", capsys=capsys) == (code, "", message)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("pangu_lab.doctor.checks", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_ctrl_c_ends_with_130_and_without_a_traceback():
    code = (
        "import sys, time\nfrom pangu_lab import cli, doctor\n"
        "def wait(folder='.'):\n    print('now', flush=True)\n    time.sleep(60)\n"
        "doctor.checks = wait\nsys.exit(cli.main(['doctor']))"
    )
    process = start(code)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "pangu-lab doctor: interrupted\n"


def test_a_reader_that_goes_away_is_no_crash():
    code = (
        "import sys\nfrom pangu_lab import cli, doctor\n"
        "doctor.checks = lambda: [doctor.Check('a', 'ok', 'x' * 1000)] * 10000\n"
        "sys.exit(cli.main(['doctor']))"
    )
    process = start(code)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == 1


def test_doctor_exits_with_1_when_something_is_bad_and_ends_with_json(capsys, monkeypatch):
    from pangu_lab.doctor import Check

    good, bad = Check("Python", "ok", "3.11"), Check("numpy", "bad", "2.0", "pip install 'numpy<2'")
    monkeypatch.setattr("pangu_lab.doctor.checks", lambda: [good])
    code, out, _ = run("doctor", capsys=capsys)
    assert code == 0 and "ready" in out
    monkeypatch.setattr("pangu_lab.doctor.checks", lambda: [good, bad])
    code, out, _ = run("doctor", "--json", capsys=capsys)
    assert code == 1 and "pip install 'numpy<2'" in out and "numpy: fix this first" in out
    assert [check["state"] for check in json.loads(out.splitlines()[-1])] == ["ok", "bad"]


# ----------------------------------------------------------------------------------------------------- settings


def namespace(**values) -> argparse.Namespace:
    return argparse.Namespace(**{"preset": None, "config": None, "set": [], **values})


def test_settings_come_from_preset_file_set_and_options_in_this_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: small\ntrain:\n  steps: 11\n  seed: 5\n  log_every: 2\n")
    config = settings(namespace(config=str(path), set=["train.seed=6", "train.log_every=3"]), train__log_every=4)
    assert config.model == preset("small").model
    assert (config.train.steps, config.train.seed, config.train.log_every) == (11, 6, 4)
    over_tiny = settings(namespace(config=str(path), preset="tiny"))
    assert over_tiny.model == preset("tiny").model and over_tiny.train.steps == 11


def test_options_that_are_not_given_change_nothing():
    assert settings(namespace(preset="tiny"), train__steps=None, data__path=None) == preset("tiny")


def test_a_run_that_exists_brings_its_own_settings(tmp_path):
    written = preset("debug").replace(**{"train.steps": 33})
    (tmp_path / "config.yaml").write_text(written.to_yaml())
    assert settings(namespace(), fallback=tmp_path / "config.yaml") == written
    assert settings(namespace(preset="tiny"), fallback=tmp_path / "config.yaml") == preset("tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_named(name):
    assert settings(namespace(preset=name)) == preset(name)


# ------------------------------------------------------------------------------------------- the verbs, for real


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a tokenizer, two data sets and a trained run, all made by the command line.

    Its path is one that people have: Chinese, a space, brackets and a plus. All verbs are tried in it.
    """
    folder = tmp_path_factory.mktemp("life") / HOME
    folder.mkdir(parents=True)
    for line in (
        "tokenizer train --sample train --vocab-size 1024 --out tok",
        "prepare --sample train --tokenizer tok --seq-length 65 --out data",
        "prepare --sample heldout --tokenizer tok --seq-length 65 --out heldout",
        "train --preset debug --data data --eval-data heldout --run runs/a --steps 12",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pangu_lab.cli", *line.split(), "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        verb = line.split(" --")[0].replace(" ", "-")
        (folder / f"{verb}-{line.split()[-1].replace('/', '-')}.json").write_text(done.stdout.splitlines()[-1])
    return folder


def said(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_tokenizer_train_then_prepare_count_everything(workplace):
    assert said(workplace, "tokenizer-train-tok")["vocab_size"] == 1024
    data = said(workplace, "prepare-data")
    kept = data["records"] * data["record_length"]
    assert kept + data["leftover_tokens"] == data["tokens"] > 30_000


def test_train_says_how_it_ended(workplace):
    result = said(workplace, "train-12")
    assert result["step"] == 12 and result["reason"] == "finished"
    assert 2 < result["loss"] < 8 and 10 < result["eval_perplexity"] < 1500
    assert (workplace / result["checkpoint"] / "manifest.json").is_file()


def test_the_vocabulary_is_the_data_set_s_unless_it_is_set(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    assert load_yaml("runs/a/config.yaml").model.vocab_size == 1024 != preset("debug").model.vocab_size
    code, _, err = run(
        "train",
        "--preset",
        "debug",
        "--set",
        "model.vocab_size=600",
        "--data",
        "data",
        "--run",
        "runs/few",
        capsys=capsys,
    )
    assert code == 2 and "1024 pieces, more than model.vocab_size=600; set model.vocab_size=1024" in err
    Path("few.yaml").write_text("model: {vocab_size: 600}\n")
    code, _, err = run(
        "train", "--preset", "debug", "--config", "few.yaml", "--data", "data", "--run", "runs/few", capsys=capsys
    )
    assert code == 2 and "set model.vocab_size=1024" in err
    code, _, err = run(
        "train", "--preset", "debug", "--data", "data", "--run", "runs/few", "--init-from", "verse", capsys=capsys
    )
    assert code == 2 and "more than model.vocab_size=512" in err, (
        "it does not follow the data set where there are weights"
    )
    settings = "launch --preset debug --set parallel.tensor=2 --data data --run runs/few --dry-run --json"
    code, out, _ = run(*settings.split(), capsys=capsys)
    assert code == 0 and "model.vocab_size=1024, as data has it; preset debug: 512" in out


def test_a_run_keeps_its_vocabulary_whatever_the_preset_says(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run(
        *["train", "--preset", "debug", "--data", "data", "--eval-data", "heldout", "--steps", "12", "--run", "runs/a"],
        capsys=capsys,
    )
    assert code == 0 and "finished at step 12" in out and "as runs/a/config.yaml has it" in out


def test_a_time_budget_that_ends_early_says_that_the_rate_is_still_high(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run(
        "train", "--preset", "debug", "--data", "data", "--run", "runs/short", "--max-minutes", "0", capsys=capsys
    )
    assert code == 0 and "the time ended at step 1 of 20, with the learning rate still at" in out and "--minutes" in out


def test_a_held_out_loss_of_an_earlier_step_is_told_as_one():
    result = TrainResult(
        Path("run"), 22, 6.05, 8.0, 2980.96, "signal", Path("run"), eval_records=9, eval_of_records=9, eval_step=20
    )
    assert (
        ending(result)
        == "signal at step 22: loss 6.050, held-out perplexity 2980.96 on all 9 records, measured at step 20"
    )
    assert ending(dataclasses.replace(result, eval_step=22)).endswith("on all 9 records")


def test_a_run_goes_on_with_its_own_settings(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run("train", "--run", "runs/a", "--steps", "14", capsys=capsys)
    assert code == 0 and "finished at step 14" in out
    code, _, err = run("train", "--run", "runs/a", "--new", capsys=capsys)
    assert code == 2 and "runs/a" in err and err.count("\n") == 1


def test_a_damaged_checkpoint_is_named_on_the_terminal_and_starting_over_needs_a_word(workplace):
    folder = workplace / "runs" / "cut"
    shutil.copytree(workplace / "runs" / "a", folder)
    saved = list_checkpoints(folder / "checkpoints")
    for path in saved:
        os.truncate(path / "shard-00000.safetensors", 1000)

    def train(*more: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "pangu_lab.cli", "train", "--run", "runs/cut", "--steps", "2", *more]
        done = subprocess.run(
            words,
            cwd=workplace,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.returncode, done.stderr

    code, err = train()
    refusal = [line for line in err.splitlines() if line.startswith("pangu-lab train:")]
    assert code == 2 and len(refusal) == 1
    assert "--start-over" in refusal[0] and all(path.name in refusal[0] for path in saved)
    code, err = train("--start-over")
    assert code == 0 and "starting over at step 0" in err
    assert all(f"set aside as {path.name}.damaged" in err for path in saved)


def test_the_word_for_starting_over_reaches_the_ranks_of_a_launch(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    line = ("launch", "--preset", "debug", "--data", "data", "--run", "runs/none", "--dry-run")
    for more, there in (((), False), (("--start-over",), True)):
        code, out, _ = run(*line, *more, capsys=capsys)
        assert code == 0 and ("--start-over" in out) == there


def test_runs_lists_what_there_is_and_says_when_there_is_nothing(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run("runs", "--json", capsys=capsys)
    assert code == 0 and "finished" in out
    listed = json.loads(out.splitlines()[-1])
    assert {entry["name"]: entry["state"] for entry in listed}["a"] == "finished"
    code, out, _ = run("runs", "elsewhere", capsys=capsys)
    assert code == 0 and "no runs in elsewhere" in out
    code, _, err = run("runs", "--stop", "nobody", capsys=capsys)
    assert code == 2 and "nobody" in err


def test_runs_takes_a_run_by_its_folder_too(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run("runs", "runs/a", "--json", capsys=capsys)
    assert code == 0 and [entry["name"] for entry in json.loads(out.splitlines()[-1])] == ["a"]
    shutil.copytree("runs/a", "elsewhere/b")
    for words in (["--stop", "elsewhere/b"], ["elsewhere", "--stop", "b"]):
        assert run("runs", *words, capsys=capsys)[0] == 0
        Path("elsewhere/b/stop").unlink()
    code, out, _ = run("runs", "--compare", "runs/a", "elsewhere/b", capsys=capsys)
    assert code == 0 and "their settings are the same" in out
    shutil.rmtree("elsewhere")


def test_tokenizer_show_puts_words_pieces_and_ids_side_by_side(workplace, capsys, monkeypatch):
    code, out, _ = run("tokenizer", "show", "春眠不觉晓 GPT", "--json", capsys=capsys)
    rows = json.loads(out.splitlines()[-1])
    assert code == 0 and "".join(row["word"] for row in rows) == "春眠不觉晓␣GPT"
    for row in rows:
        assert len(row["pieces"]) == len(row["ids"]) and row["word"] in out
    monkeypatch.chdir(workplace)
    assert run("tokenizer", "show", "春天", "--tokenizer", "tok", capsys=capsys)[0] == 0


def test_generate_streams_the_prompt_and_its_continuation_and_the_seed_repeats_it(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    arguments = (
        *["generate", "--from", "runs/a", "--prompt", "春天", "--max-new-tokens", "8", "--seed", "3", "--json"],
    )
    code, out, _ = run(*arguments, capsys=capsys)
    (result,) = json.loads(out.splitlines()[-1])
    assert code == 0 and out.startswith("春天" + result["text"]) and len(result["ids"]) <= 8 and result["seed"] == 3
    assert json.loads(run(*arguments, capsys=capsys)[1].splitlines()[-1]) == [result]


def test_generate_writes_several_texts_and_takes_the_prompt_from_standard_input(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n"))
    code, out, _ = run(
        "generate",
        "--from",
        "runs/a",
        "--max-new-tokens",
        "4",
        "--seed",
        "1",
        "--json",
        "--set",
        "sampling.num_return_sequences=3",
        capsys=capsys,
    )
    (result,) = json.loads(out.splitlines()[-1])
    assert code == 0 and result["prompt"] == "你好" and len(result["others"]) == 2
    assert all(f"{number}. 你好" in out for number in (1, 2, 3))


@pytest.mark.parametrize(
    "content", ["\ufeff春天来了，\r\n".encode(), "春天来了，\n".encode("gbk"), "春天来了，".encode("utf-16")]
)
def test_a_prompt_on_standard_input_is_decoded_whatever_wrote_it(content):
    code = (
        "import argparse\nfrom pangu_lab.cli.writing import prompts\n"
        "print(ascii(prompts(argparse.Namespace(prompt=None))))"
    )
    locale = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, env=locale, check=True)
    assert done.stdout.decode().strip() == ascii(["春天来了，"])


def test_a_prompt_on_standard_input_that_is_no_text_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00\xfe")))
    code, _, err = run("generate", "--from", "runs/a", capsys=capsys)
    assert (
        code == 2 and "on standard input is not readable as UTF-8 or GBK text at byte 0" in err and err.count("\n") == 1
    )


def test_stop_takes_a_line_end_and_top_k_0_is_off():
    from pangu_lab.cli.writing import sampling
    from pangu_lab.config import SamplingConfig

    args = cli.build_parser().parse_args(
        ["generate", "--from", "x", "--stop", r"\n", "--stop", r"a\\n", "--top-k", "0"]
    )
    chosen = sampling(args, SamplingConfig(top_k=5))
    assert chosen.stop == ("\n", r"a\n") and chosen.top_k is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--from", "nowhere", "--prompt", "x"], "nowhere: no such folder"),
        (["--from", "runs/a", "--prompt", "x", "--top-p", "3"], "sampling.top_p=3.0 must be between"),
        (["--from", "runs/a", "--prompt", "x", "--set", "train.steps=3"], "only takes sampling.* settings"),
        (["--from", "runs/a", "--prompt", "x", "--set", "samplng.top_k=3"], "did you mean 'sampling.top_k'?"),
        (["--prompt", "x"], "required: --from"),
        (["--from", "runs/a", "--prompt", "\udcb4\udcba"], "--prompt: is not UTF-8 text"),
        (["--from", "runs/a", "--prompt", "x", "--top-k", "-1"], "sampling.top_k=-1 must be"),
    ],
)
def test_generate_tells_mistakes_in_one_line(workplace, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(workplace)
    code, out, err = run("generate", *arguments, capsys=capsys)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_bundle_continues_as_the_run_it_came_from(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run("export", "--from", "runs/a", "--out", "exports/a", "--json", capsys=capsys)
    assert code == 0 and json.loads(out.splitlines()[-1])["bundle"] == "exports/a"
    texts = [
        run(*f"generate --from {source} --prompt 春天 --max-new-tokens 12 --seed 5".split(), capsys=capsys)
        for source in ("runs/a", "exports/a")
    ]
    assert texts[0][:2] == texts[1][:2] and texts[0][0] == 0
    code, _, err = run("export", "--from", "runs/a", "--out", "exports/a", capsys=capsys)
    assert code == 2 and "exports/a exists already" in err


def test_serve_tells_its_address_when_it_answers_and_ends_well_on_a_signal(workplace):
    bundle = workplace / "exports" / "page"
    if not bundle.exists():
        assert cli.main(["export", "--from", str(workplace / "runs" / "a"), "--out", str(bundle)]) == 0
    command = [sys.executable, "-m", "pangu_lab.cli", *["serve", "--bundle", "exports/page", "--port", "0", "--json"]]
    process = subprocess.Popen(
        command,
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        lines = iter(process.stdout.readline, "")
        ready = json.loads(next(line for line in lines if line.startswith("{")))
        with urllib.request.urlopen(ready["url"], timeout=30) as answer:
            assert answer.status == 200 and b"PanGu" in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0 and list(lines)[-1] == "ended\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_serve_refuses_what_is_no_model_and_an_open_door(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, _, err = run("serve", "--bundle", "data", capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and "data" in err
    code, _, err = run("serve", "--bundle", "runs/a", "--host", "0.0.0.0", capsys=capsys)
    assert code == 2 and "0.0.0.0" in err and "password" in err


def test_evaluate_gives_the_perplexity_of_a_data_set(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    code, out, _ = run("evaluate", "perplexity", "--from", "runs/a", "--data", "heldout", "--json", capsys=capsys)
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and 10 < result["perplexity"] < 1500 and f"{result['perplexity']:.2f}" in out
    assert result["tokens"] > 5000


def test_mistakes_with_text_are_the_users_to_mend(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    for arguments, message in (
        (["prepare", "--input", "no/*.txt", "--out", "x"], "no/*.txt: no such file"),
        (["prepare", "--sample", "trian", "--out", "x"], "'trian'"),
        (["prepare", "--sample", "train", "--out", "data"], "data exists already"),
        (["prepare", "--sample", "train", "--out", "x", "--format", "wikki"], "'wikki'"),
        (["prepare", "--sample", "train", "--out", "x", "--eod", "<nope>"], "<nope>"),
        (["prepare", "--sample", "train", "--out", "x", "--tokenizer", "nowhere"], "nowhere"),
        (["tokenizer", "train", "--sample", "train", "--out", "x", "--vocab-size", "3"], "vocabulary of 3"),
        (["train", "--run", "runs/b", "--preset", "tiny", "--data", "data"], "seq_length"),
        (["train", "--run", "runs/b", "--preset", "tiny", "--data", "nowhere"], "nowhere"),
    ):
        code, out, err = run(*arguments, capsys=capsys)
        lines = [line for line in err.splitlines() if line.startswith("pangu-lab")]
        assert code == 2 and len(lines) == 1 and message in lines[0], (arguments, err)
        assert not Path("x").exists()


# ------------------------------------------------------------------------------------- every verb, in that folder

FURTHER = (  # what no test above runs there
    ("plan", "--preset debug --devices 2 --hardware cpu"),
    ("ranktable create", "--server 10.0.0.1 --devices 0-1 --device-ips 192.168.1.1,192.168.1.2 --out '甲 (一).json'"),
    ("ranktable create", "--server 10.0.0.2 --devices 0-1 --device-ips 192.168.2.1,192.168.2.2 --out '乙 (二).json'"),
    ("ranktable merge", "'甲 (一).json' '乙 (二).json' --out 表+.json"),
    ("ranktable check", "表+.json"),
    (
        "launch",
        "--preset debug --set model.vocab_size=1024 --set parallel.data=2 --nproc 2 --data data --run 'runs/双 机' --steps 2",
    ),
    ("convert", "--from 'runs/双 机' --to gpt_pangu --out '外 (三)'"),
    ("corpus verse", "--from '诗 集' --out 诗+"),
    ("advise", "--input '文 (四).txt' --minutes 0.1 --yaml '设+.yaml'"),
    ("start", "'文 (四).txt' --minutes 0.1 --config '设+.yaml' --out 'runs/始 (五)'"),
)
ABOVE = {"tokenizer train", "tokenizer show", "prepare", "train", "runs", "generate", "evaluate", "export", "serve"}
ELSEWHERE = {
    "demo",  # minutes of training: tests/test_demo.py runs it in a folder named like these
    "doctor",
    "bench serve",
    "translate",
}  # touch no folder


def test_every_verb_is_tried_in_a_folder_as_people_name_them():
    assert set(VERBS) == {verb for verb, _ in FURTHER} | ABOVE | ELSEWHERE


def test_the_further_verbs_work_in_a_folder_as_people_name_them(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    Path("诗 集").mkdir()
    Path("文 (四).txt").write_text(sample_files("train")[0].read_text(encoding="utf-8")[:3000], encoding="utf-8")
    letters = "".join(chr(0x4E00 + number) for number in range(400))
    poems = [
        {"title": "题", "author": "人", "paragraphs": [f"{text[:5]}，{text[5:10]}。", f"{text[10:15]}，{text[15:]}。"]}
        for text in (letters[start : start + 20] for start in range(0, 400, 20))
    ]
    Path("诗 集", "a.json").write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")
    for verb, arguments in FURTHER:
        if verb == "corpus verse":
            pytest.importorskip("opencc")
        code, _, err = run(*verb.split(), *shlex.split(arguments), capsys=capsys)
        assert code == 0, (verb, err)
    assert json.loads(Path("表+.json").read_text("utf-8"))["server_count"] == "2"
    assert list(Path("外 (三)").glob("*.safetensors")) and Path("诗+", "heldout.jsonl").is_file()
    assert list_checkpoints(Path("runs", "始 (五)", "checkpoints"))
