"""The adapter for lm-evaluation-harness: its three questions, and, where it is installed, a local task file."""

from __future__ import annotations

import importlib.util
import json

import pytest

from pangu_lab.errors import InputError
from pangu_lab.evaluate import LocalScorer
from pangu_lab.evaluate.harness import harness_model, run_harness, score_texts, write_until
from tests.evaluate.letters import LetterTokenizer, debug_model, sample_lines

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install -e '.[harness]'",
)


@pytest.fixture(scope="module")
def started():
    config, weights = debug_model()
    return LocalScorer(config, weights, LetterTokenizer(), batch_tokens=512, start_id=7)


def test_a_long_text_is_scored_in_windows_and_every_token_once(started, scorer):
    text = "".join(sample_lines(20))[:300]
    tokens = len(started.tokenizer.encode(text))
    long, short = score_texts(started, [text, text[:20]])
    assert tokens > 2 * started.window and long.tokens == tokens
    assert score_texts(scorer, [text])[0].tokens == tokens - 1  # nothing stands before the first
    assert short.logprob == pytest.approx(started.loglikelihood([("", text[:20])])[0].logprob, abs=1e-4)
    assert long.token_logprobs[: started.window] == pytest.approx(
        started.loglikelihood([("", text)])[0].token_logprobs[: started.window], abs=1e-4
    )
    assert score_texts(started, [""])[0].tokens == 0


def test_requests_with_the_same_limits_are_written_together_and_keep_their_order():
    calls = []

    def generate(prompts, new_tokens, stop):
        calls.append((list(prompts), new_tokens, stop))
        return [prompt + "!" for prompt in prompts]

    requests = [
        ("a", {"until": ["\n"], "max_gen_toks": 5}),
        ("b", {"until": "。"}),
        ("c", {"until": ["\n"], "max_gen_toks": 5}),
    ]
    assert write_until(generate, requests) == ["a!", "b!", "c!"]
    assert calls == [(["a", "c"], 5, ("\n",)), (["b"], 64, ("。",))]


def test_without_the_harness_it_is_said_how_to_get_it(started, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(InputError, match=r"not installed: pip install 'pangu-lab\[harness\]'"):
        harness_model(started)


TASK = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "问：{{{{question}}}}\\n答："
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@installed
def test_a_task_file_of_ones_own_gives_the_accuracy_counted_here(started, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    questions = [{"question": f"第{i}个字是什么", "choices": ["山", "水", "田"], "label": i % 3} for i in range(9)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_choice.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    right = 0
    for row in questions:
        scores = started.loglikelihood([(f"问：{row['question']}\n答：", choice) for choice in row["choices"]])
        best = max(range(3), key=lambda i: scores[i].logprob)
        right += best == row["label"]
    found = run_harness(started, ["local_choice"], tmp_path / "tasks")  # a folder or a URL would do as well
    assert found["local_choice"]["acc,none"] == pytest.approx(right / 9)
    with pytest.raises(InputError, match="knows no task 'nothing_of_the_kind'"):
        run_harness(started, ["nothing_of_the_kind"], tmp_path / "tasks")


@installed
def test_the_model_answers_the_three_questions(started):
    from lm_eval.api.instance import Instance

    def ask(kind, *arguments):
        return [Instance(kind, {}, one, 0) for one in arguments]

    model = harness_model(started, generate=lambda prompts, new_tokens, stop: ["写"] * len(prompts))
    [(logprob, greedy)] = model.loglikelihood(ask("loglikelihood", ("春天来了，", "花开了")))
    [score] = started.loglikelihood([("春天来了，", "花开了")])
    assert (logprob, greedy) == (score.logprob, score.greedy)
    assert model.loglikelihood_rolling(ask("loglikelihood_rolling", ("春天来了",))) == [
        score_texts(started, ["春天来了"])[0].logprob
    ]
    assert model.generate_until(ask("generate_until", ("春", {"until": ["。"]}))) == ["写"]
    with pytest.raises(InputError, match="this task has the model write"):
        harness_model(started).generate_until(ask("generate_until", ("春", {})))
