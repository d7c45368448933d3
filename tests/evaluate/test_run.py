"""``evaluate`` from files to a number: results, baselines, resuming, and the command line around it."""

from __future__ import annotations

import json
import math
import os
import signal
import time

import pytest

from pangu_lab import cli
from pangu_lab.errors import InputError
from pangu_lab.evaluate import Scorer, engine_writer, evaluate, open_scorer, perplexity, wilson_interval
from pangu_lab.evaluate.record import Record
from pangu_lab.evaluate.scoring import make_score
from pangu_lab.evaluate.split import TokenPair
from pangu_lab.evaluate.tasks import TASKS, Outcome
from tests.evaluate.published import write_all, write_c3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("published"))


class Oracle(Scorer):
    """Finds a text more probable the more of its characters it has seen; counts what it is asked."""

    name = "oracle"

    def __init__(self, stop_after: int | None = None):
        self.asked, self.stop_after = 0, stop_after

    def loglikelihood(self, pairs, cut="context", progress=None):
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(pairs)
        return [make_score([-1.0 if "奶奶" in context else -2.0], False) for context, _ in pairs]


def evaluate_c3(folder, scorer=None, **options):
    return evaluate("c3", scorer or Oracle(), folder / "c3", **options)


# ------------------------------------------------------------------------------------------------------- results


def test_a_result_has_its_interval_and_baselines(folder):
    result = evaluate_c3(folder)
    # 奶奶 is right in half of the questions; in the others it is not among the options and the first one is taken
    assert (result.task, result.metric, result.n, result.value) == ("c3", "accuracy", 18, 0.5)
    assert result.interval == wilson_interval(9, 18) and set(result.baselines) == {"random", "longest", "overlap"}
    assert evaluate_c3(folder, half="d").n == 12 and evaluate_c3(folder, split="test").n == 4
    assert evaluate_c3(folder, limit=5).n == 5
    assert evaluate("c3", Oracle(), [folder / "c3" / "c3-m-dev.json"]).n == 6


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"cmrc2018"}))
def test_every_scored_task_runs_with_a_real_model(task, folder, scorer):
    result = evaluate(task, scorer, folder)
    assert math.isfinite(result.value) and result.n > 0 and result.model == "debug"
    assert result.interval[0] <= result.value <= result.interval[1]
    if result.metric == "accuracy":
        assert 0 <= result.value <= 1


def test_without_a_model_there_are_the_baselines_alone(folder):
    result = evaluate("c3", None, folder / "c3")
    assert result.n == 18 and result.value is None and result.interval is None and len(result.baselines) == 3


def test_the_way_of_scoring_changes_the_numbers_not_the_questions(folder, scorer):
    results = [evaluate("c3", scorer, folder / "c3", scoring=scoring) for scoring in ("corrected", "reference")]
    assert results[0].n == results[1].n and results[0].baselines == results[1].baselines


def test_written_answers_come_from_a_function_or_from_the_models_own_engine(folder, run_folder):
    told = []

    def write(prompts, new_tokens, stop):
        told.extend(prompts)
        return ["三十二米\n", "老秦头"]

    result = evaluate("cmrc2018", None, folder, generate=write)
    assert (result.metric, result.n, result.value) == ("exact_match", 2, 0.5) and len(told) == 2
    assert result.more["f1"] == pytest.approx((1 + 4 / 5) / 2)
    own = evaluate("cmrc2018", run_folder, folder)
    assert own.n == 2 and own.model == "small/step-00000000" and 0 <= own.more["f1"] <= 1
    with pytest.raises(InputError, match="the model writes its answers: name its folder"):
        evaluate("cmrc2018", Oracle(), folder)


def test_an_engine_writes_greedily_up_to_a_stop(run_folder):
    from pangu_lab import PanguLM
    from pangu_lab.config import SamplingConfig
    from pangu_lab.generate import generate

    engine = PanguLM.load(run_folder).engine
    text = generate(engine, "春天来了，", SamplingConfig(max_new_tokens=12, temperature=0.0)).text
    assert engine_writer(engine)(["春天来了，"], 12, ()) == [text]
    assert engine_writer(engine)(["春天来了，"], 12, (text[2],)) == [text[: text.index(text[2])]]


def test_a_model_is_loaded_from_its_run_with_its_own_tokenizer(run_folder, folder):
    result = evaluate("afqmc", run_folder, folder)
    assert result.n == 2 and result.model == "small/step-00000000"
    with pytest.raises(InputError, match="the tokenizer has 40000 pieces and the model 512"):
        evaluate("afqmc", run_folder, folder, tokenizer="pangu")
    with pytest.raises(InputError, match="no such folder"):
        evaluate("afqmc", run_folder / "none", folder)


def test_perplexity_of_a_prepared_data_set_is_the_scorers(run_folder, tmp_path):
    from pangu_lab.data import open_dataset, prepare, sample_files
    from pangu_lab.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(run_folder / "tokenizer")
    prepare([str(sample_files("heldout")[0])], tmp_path / "data", tokenizer, record_length=33, workers=1)
    result = perplexity(run_folder, tmp_path / "data", max_records=4)
    assert result.records == 4 and result.perplexity == pytest.approx(math.exp(result.loss))
    rows = open_dataset(tmp_path / "data").records(range(4))
    scorer = open_scorer(run_folder)
    logprob, tokens = 0.0, 0
    for row in rows.tolist():  # each document of a record stands for itself, and its end is predicted too
        for text in _documents(row, tokenizer.eod_id):
            [score] = scorer.score_tokens([TokenPair(tuple(text), 1)])
            logprob, tokens = logprob + score.logprob, tokens + score.tokens
    assert tokens == result.tokens and -logprob / tokens == pytest.approx(result.loss, abs=1e-4)


def _documents(ids, eod):
    part = []
    for index in ids:
        part.append(index)
        if index == eod:
            yield part
            part = []
    yield part


# ------------------------------------------------------------------------------------------------------ resuming


def test_an_interrupted_evaluation_goes_on_where_it_stood(folder, tmp_path):
    out = tmp_path / "results" / "c3.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate_c3(folder, Oracle(stop_after=10), out=out)
    assert not out.exists() and len(out.with_name("c3.json.partial").read_text().splitlines()) == 17
    oracle = Oracle()
    result = evaluate_c3(folder, oracle, out=out)
    assert result.resumed == 16 and oracle.asked == 7 and result.n == 18  # the last two questions: 3 + 4 options
    assert result.value == evaluate_c3(folder).value
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert len(kept["questions"]) == 18 and kept["result"]["value"] == 0.5 and kept["settings"]["task"] == "c3"
    first = kept["questions"][0]
    assert first["id"].startswith("c3-d-dev/") and first["options"] == ["学游泳", "修自行车", "去医院"]
    assert (first["prediction"], first["answer"], first["right"]) == ("学游泳", "修自行车", False)
    assert not out.with_name("c3.json.partial").exists()


def test_results_are_not_overwritten_nor_mixed(folder, tmp_path):
    out = tmp_path / "c3.json"
    evaluate_c3(folder, out=out)
    with pytest.raises(InputError, match="c3.json exists already: choose another file"):
        evaluate_c3(folder, out=out)
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate_c3(folder, Oracle(stop_after=0), out=out)
    with pytest.raises(InputError, match="c3.json.partial belongs to an evaluation with another limit"):
        evaluate_c3(folder, out=out, limit=3)
    with pytest.raises(InputError, match="with another template"):
        evaluate_c3(folder, out=out, template="{question}{option}{|}{passage}")
    with pytest.raises(InputError, match="with another data"):
        evaluate("c3", Oracle(), folder / "c3" / "c3-d-dev.json", out=out)


def test_a_half_written_line_is_dropped_and_written_anew(tmp_path):
    settings = {"task": "x"}
    record = Record(tmp_path / "r.json", settings)
    record.add([Outcome("a", 1.0, 1, {"right": True}), Outcome("b", 0.0, 1)])
    with open(record.partial, "ab") as handle:
        handle.write('{"id": "c", "right": 1, "details": {"text": "半'.encode()[:-1])
    again = Record(tmp_path / "r.json", settings)
    assert sorted(again.outcomes) == ["a", "b"] and again.outcomes["a"].details == {"right": True}
    again.add([Outcome("c", 1.0, 1)])
    assert sorted(Record(tmp_path / "r.json", settings).outcomes) == ["a", "b", "c"]


def test_an_interruption_before_the_first_line_is_no_obstacle(tmp_path):
    (tmp_path / "r.json.partial").write_bytes(b'{"format": 1, "ta')
    assert Record(tmp_path / "r.json", {"task": "x"}).resumed == 0
    assert Record(tmp_path / "r.json", {"task": "x"}).outcomes == {}


def test_progress_counts_questions_and_ends_full(folder):
    calls = []
    evaluate_c3(folder, progress=lambda done, total, text="": calls.append((done, total)))
    assert calls[0] == (0, 18) and calls[-1] == (18, 18) and calls == sorted(calls)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"half": "x"}, "half='x' must be"),
        ({"split": "nope"}, "no 'nope' part of C3"),
        ({"scoring": "best"}, "scoring='best' must be"),
    ],
)
def test_wrong_settings_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        evaluate_c3(folder, **options)


# -------------------------------------------------------------------------------------------------- command line


def run(*arguments, capsys):
    try:
        code = cli.main(["evaluate", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_baselines_only_needs_no_model_and_ends_with_one_line_of_json(tmp_path, capsys):
    write_c3(tmp_path)
    code, out, _ = run("c3", "--baselines-only", "--data", tmp_path, "--half", "d", "--json", capsys=capsys)
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["n"] == 12 and found["value"] is None
    assert "C3: n 12\n" in out and "baseline random: 29.17%" in out and "baseline overlap: 100.00%" in out


def test_the_verb_evaluates_a_run_and_writes_every_question(folder, run_folder, tmp_path, capsys):
    out_file = tmp_path / "wplc.json"
    code, out, _ = run(
        "wplc",
        "--from",
        run_folder,
        "--data",
        folder,
        "--out",
        out_file,
        "--json",
        "--template",
        "{before}\\n{|}{option}",
        capsys=capsys,
    )
    found, kept = json.loads(out.splitlines()[-1]), json.loads(out_file.read_text(encoding="utf-8"))
    assert code == 0 and found["n"] == 2 and found["model"] == "small/step-00000000"
    assert "WPLC: n 2\nperplexity " in out and "95 % interval" in out and "\naccuracy 0.00%" in out
    assert len(kept["questions"]) == 2 and kept["settings"]["template"] == "{before}\n{|}{option}"


def test_sigterm_interrupts_as_ctrl_c_does(folder, capsys, monkeypatch):
    def killed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("pangu_lab.evaluate.evaluate", killed)
    assert run("c3", "--baselines-only", "--data", folder / "c3", capsys=capsys) == (
        130,
        "",
        "pangu-lab evaluate: interrupted\n",
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_list_names_every_task_with_its_template(capsys):
    code, out, _ = run("list", "--json", capsys=capsys)
    assert code == 0 and [row["task"] for row in json.loads(out.splitlines()[-1])] == [*TASKS, "perplexity", "verse"]
    assert "该答案来自对话" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["c4", "--data", "x", "--baselines-only"], "unknown task 'c4' (did you mean 'c3'?)"),
        (["c3", "--baselines-only"], "give --data: the task's files or their folder"),
        (["c3", "--data", "x"], "give one of --from DIR, --server URL and --baselines-only"),
        (["c3", "--data", "x", "--from", "a", "--server", "http://b"], "give one of --from"),
        (["c3", "--data", "x", "--server", "localhost:1"], "--server localhost:1: an address begins with http"),
        (["c3", "--data", "none", "--baselines-only"], "none: no such file or folder of C3 data"),
        (["perplexity", "--data", "x", "--baselines-only"], "perplexity needs --from DIR and one data set"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err
