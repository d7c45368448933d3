"""A text to a model in one step: everything is made, nothing twice, and what is interrupted goes on."""

from __future__ import annotations

import json
import shlex

import pytest

from pangu_lab import cli
from pangu_lab.corpus import Reading
from pangu_lab.data import open_dataset, sample_folder
from pangu_lab.errors import InputError
from pangu_lab.presets import load_yaml
from pangu_lab.runs import list_runs, read_curves, read_events, request_stop
from pangu_lab.start import start

SAMPLE, BLOCKS = sample_folder() / "train", Reading(documents="block")
SMALL = {
    "model.hidden_size": 32,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "data.seq_length": 64,
    "train.steps": 40,
    "train.warmup_steps": 4,
    "train.eval_every": 20,
    "train.checkpoint_every": 20,
    "train.sample_tokens": 5,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A start of 40 steps, stopped on its way and gone on with: its folder, its lines, and what came of it."""
    folder, lines = tmp_path_factory.mktemp("start") / "书 a", []

    def stop_at_ten(done, total, text):
        if done == 10 and "loss" in text:
            request_stop(folder)

    options = dict(how=BLOCKS, changes=SMALL, measure=lambda config: 20_000.0, say=lines.append)
    stopped = start(SAMPLE, 5.0, folder, progress=stop_at_ten, **options)
    assert stopped.result.reason == "stop file" and stopped.result.step == 10
    made = {path: path.stat().st_mtime_ns for path in (folder / "start").rglob("*") if path.is_file()}
    lines.clear()
    done = start(SAMPLE, 5.0, folder, **options)
    assert all(path.stat().st_mtime_ns == when for path, when in made.items()), "nothing is made twice"
    return folder, lines, done


def test_training_goes_on_where_it_stopped_and_its_rate_comes_to_its_end(finished):
    folder, lines, done = finished
    assert done.result.reason == "finished" and done.result.step == 40
    starts = [event for event in read_events(folder) if event["kind"] == "start"]
    assert [event["resumed_from"] for event in starts] == [0, 10] and starts[1]["budget"] < starts[0]["budget"]
    assert read_curves(folder).steps[-1]["lr"] == 0.0
    assert [run.name for run in list_runs(folder.parent)] == [folder.name], "`pangu-lab runs` shows it"
    assert any("goes on with what is there" in line for line in lines)


def test_no_text_stands_on_both_sides_and_both_have_one_vocabulary(finished):
    folder, _, _ = finished
    files = [folder / "start" / "text" / f"{part}.jsonl" for part in ("train", "heldout")]
    texts = [{json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()} for file in files]
    assert all(texts) and not texts[0] & texts[1]
    train, heldout = (open_dataset(folder / "start" / part) for part in ("train", "heldout"))
    config = load_yaml(folder / "config.yaml")
    assert train.fingerprint == heldout.fingerprint and train.vocab_size == config.model.vocab_size
    assert config.data.eval_path == str((folder / "start" / "heldout").absolute())


def test_the_figures_are_of_the_whole_held_out_part_and_the_next_commands_can_be_typed(finished, monkeypatch, capsys):
    folder, _, done = finished
    assert done.result.eval_records == done.result.eval_of_records == len(open_dataset(folder / "start" / "heldout"))
    assert [shlex.split(line)[1] for line in done.commands] == ["generate", "evaluate", "serve"]
    for line in done.commands:
        cli.build_parser().parse_args(shlex.split(line)[1:])
    assert cli.main(shlex.split(done.commands[1])[1:]) == 0
    best = done.result.best if done.model.endswith("@best") else None
    perplexity = 2.718281828459045 ** (best.loss if best else done.result.eval_loss)
    assert f"perplexity {perplexity:.2f}" in capsys.readouterr().out, "what `evaluate` gives is what the run ended with"


def test_samples_continue_what_was_held_out(finished):
    folder, _, done = finished
    held_out = (folder / "start" / "text" / "heldout.jsonl").read_text(encoding="utf-8")
    assert len(done.samples) == 2 and all(prompt in held_out for prompt, _ in done.samples)


def test_a_start_that_is_done_says_so_and_trains_no_step_wherever_its_folder_is(finished, tmp_path):
    folder, _, done = finished
    folder.rename(tmp_path / "moved")
    try:
        again = start(SAMPLE, 5.0, tmp_path / "moved", how=BLOCKS, changes=SMALL)
    finally:
        (tmp_path / "moved").rename(folder)
    assert again.result.step == done.result.step and again.result.eval_loss == done.result.eval_loss
    assert "--init-from" in again.result.notes[-1] and len(again.commands) == len(done.commands)


def test_a_folder_of_another_text_or_of_something_else_is_refused(finished, tmp_path):
    folder, _, _ = finished
    with pytest.raises(InputError, match="made of another text"):
        start(SAMPLE, 5.0, folder)  # read in another way
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("do not touch")
    with pytest.raises(InputError, match="was not made by `pangu-lab start`"):
        start(SAMPLE, 5.0, tmp_path / "mine", how=BLOCKS)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "words, why",
    [
        (["start"], "name a text, such as `pangu-lab start novel.txt"),
        (["advise", "no.txt"], "no.txt: no such file"),
        (["start", str(SAMPLE), "--set", "train.minutes=3"], "train.minutes comes from --minutes"),
        (["start", str(SAMPLE), "--config", "tiny.yaml"], "no preset but verse"),
        (["start", str(SAMPLE), "--set", "model.hiden=3"], "unknown setting 'model.hiden'"),
        (["advise", str(SAMPLE), "--minutes", "0"], "must be above 0"),
        (["start", str(SAMPLE), "--minutes", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("preset: tiny\n")
    assert cli.main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert why in said and said.startswith(f"pangu-lab {words[0]}: ")
    assert not (tmp_path / "runs").exists()
