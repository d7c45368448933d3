"""Samples while a run learns."""

from __future__ import annotations

import json

import pytest

from pangu_lab.cli import main
from pangu_lab.lm import PanguLM
from pangu_lab.runs import read_curves, read_events
from pangu_lab.train import train

PROMPTS = ("宝玉听了", "春天来了，")


@pytest.fixture(scope="module")
def sampled(debug_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("sampled") / "run"
    train(debug_config.replace(**{"train.sample_prompts": PROMPTS, "train.sample_tokens": 8}), run)
    return run


def test_every_evaluation_continues_every_prompt_and_the_curve_is_the_same_to_the_last_bit(sampled, debug_run):
    curves, plain = read_curves(sampled), read_curves(debug_run)
    assert [(one["step"], one["prompt"]) for one in curves.samples] == [(s, p) for s in (0, 10, 20) for p in PROMPTS]
    assert [e["loss"] for e in curves.steps] == [e["loss"] for e in plain.steps]
    assert [e["loss"] for e in curves.evals] == [e["loss"] for e in plain.evals]


@pytest.mark.parametrize("step", [10, 20])
def test_a_sample_is_what_the_checkpoint_of_its_step_writes(sampled, step):
    lm = PanguLM.load(sampled / "checkpoints" / f"step-{step:08d}")
    written = [one["text"] for one in read_curves(sampled).samples if one["step"] == step]
    assert written == [
        lm.generate(prompt, max_new_tokens=8, seed=lm.settings.train.seed + number).text
        for number, prompt in enumerate(PROMPTS)
    ]


def test_the_samples_of_a_run_are_printed_with_nothing_that_a_terminal_obeys(sampled, tmp_path, capsys):
    assert main(["runs", str(sampled), "--samples", "--json"]) == 0
    out = capsys.readouterr().out
    assert "step 20: 宝玉听了 ▸ " in out and len(json.loads(out.splitlines()[-1])) == 6
    with open(sampled / "events.jsonl", "a") as handle:
        handle.write(
            json.dumps({"v": 1, "time": 1.0, "kind": "sample", "step": 20, "prompt": "x", "text": "a\x1b[2J\nb"}) + "\n"
        )
    assert main(["runs", str(sampled), "--samples"]) == 0
    assert "step 20: x ▸ a�[2J↵b" in capsys.readouterr().out


def test_a_run_without_samples_says_how_to_get_them(debug_run, capsys):
    assert main(["runs", str(debug_run), "--samples"]) == 0
    assert "train.sample_prompts" in capsys.readouterr().out
    assert not [event for event in read_events(debug_run) if event["kind"] == "sample"]
