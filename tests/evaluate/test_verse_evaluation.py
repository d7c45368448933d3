"""Poems that a model writes: what is measured, beside what, and from which titles and draws."""

from __future__ import annotations

import json

import pytest

from pangu_lab import cli
from pangu_lab.corpus import PoemIndex
from pangu_lab.errors import InputError
from pangu_lab.evaluate import evaluate_verse, measure_temperatures
from pangu_lab.evaluate import verse as module
from pangu_lab.evaluate.verse import measure
from pangu_lab.generate import Completion, Engine, Verse

HERON = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
MOON = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"


class Poet(Engine):
    """An engine in name only: ``generate_many`` is replaced."""

    def __init__(self) -> None:
        self.name = "poet"


@pytest.fixture
def files(tmp_path):
    for name, poems in (("heldout", [("甲", HERON), ("乙", MOON)]), ("train", [("静夜思", MOON)] * 3)):
        rows = [json.dumps({"title": title, "text": text}, ensure_ascii=False) for title, text in poems]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "heldout.jsonl", tmp_path / "train.jsonl"


@pytest.fixture
def asked(monkeypatch):
    """What the model was asked: (prompt, seed). It always writes the same poem."""
    found = []

    def write(engine, prompts, sampling, seeds):
        found.extend(zip(prompts, seeds))
        return [Completion(MOON, (1,), (1,), "end_of_document", seed) for seed in seeds]

    monkeypatch.setattr(module, "generate_many", write)
    return found


def test_shares_are_of_all_poems_and_a_wrong_form_has_no_rhyme():
    found = measure([HERON, MOON, "白日依山尽。", HERON])
    assert (found.n, found.form, found.rhyme, found.pattern, found.repeated) == (4, 0.75, 0.75, 0.5, 0.25)
    assert found.copied is None and found.tones == pytest.approx(2.75 / 3)
    assert measure(["白"]).tones is None and measure(["白"], PoemIndex([("", HERON)])).copied == 0


def test_the_model_gets_the_titles_each_with_a_seed_of_its_own(files, asked):
    result = evaluate_verse(Poet(), *files, show=1)
    assert sorted(prompt for prompt, _ in asked) == ["《乙》\n", "《甲》\n"] and [seed for _, seed in asked] == [1, 2]
    assert list(result.columns) == ["model", "held-out poems", "training poems", "bigram model"]
    assert result.columns["model"].copied == 1 and result.columns["model"].repeated == 0.5
    assert result.columns["training poems"].copied is None
    [poem] = result.poems
    assert poem.nearest.title == "静夜思" and poem.nearest.jaccard == 1


def test_without_training_poems_their_columns_are_absent(files, asked):
    result = evaluate_verse(Poet(), files[0], limit=1)
    assert list(result.columns) == ["model", "held-out poems"] and result.poems[0].nearest is None
    assert result.columns["model"].n == 1 and result.columns["model"].copied is None


def test_an_interrupted_evaluation_takes_up_where_it_was(files, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    whole = evaluate_verse(Poet(), *files)
    write, asked[:] = module.generate_many, []

    def fail_at_the_second(engine, prompts, sampling, seeds):
        if asked:
            raise KeyboardInterrupt
        return write(engine, prompts, sampling, seeds)

    monkeypatch.setattr(module, "generate_many", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate_verse(Poet(), *files, out=tmp_path / "out.json")
    monkeypatch.setattr(module, "generate_many", write)
    assert evaluate_verse(Poet(), *files, out=tmp_path / "out.json") == whole and len(asked) == 2
    kept = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["text"] for row in kept["questions"]] == [MOON, MOON] and kept["result"]["model"] == "poet"


def test_the_command_shows_a_table_and_ends_with_json(files, capsys):
    code = cli.main(
        ["evaluate", "verse", "--baselines-only", "--data", str(files[0]), "--train", str(files[1]), "--json"]
    )
    out = capsys.readouterr().out
    assert code == 0 and "bigram model" in out and "tonal pattern" in out
    assert json.loads(out.splitlines()[-1])["columns"]["held-out poems"]["pattern"] == 0.5


@pytest.mark.parametrize(
    "options, words",
    [
        (["verse", "--limit", "0", "--baselines-only"], "limit=0"),
        (["verse", "--server", "http://a"], "verse needs --from"),
        (["verse", "--baselines-only", "--temperature", "-1"], "sampling.temperature"),
        (["c3", "--baselines-only", "--seed", "1"], "--seed belongs to the task verse"),
    ],
)
def test_wrong_options_are_refused_in_one_line(files, capsys, options, words):
    assert cli.main(["evaluate", *options, "--data", str(files[0])]) == 2
    assert words in capsys.readouterr().err


def test_no_poems_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        evaluate_verse(None, tmp_path / "none.jsonl")


def test_at_each_temperature_the_same_titles_are_written_with_the_same_seeds_and_the_constraint(monkeypatch):
    asked = []

    def write(engine, prompts, sampling, seeds, constraint):
        asked.append((list(prompts), sampling.temperature, sampling.top_p, list(seeds), constraint))
        return [Completion(text, (1,), (1,), "end_of_document", 0) for text in (MOON, "白日依山尽。")]

    monkeypatch.setattr(module, "generate_many", write)
    held = Verse(4, 5, rhyme=True)
    found = measure_temperatures(Poet(), ["甲", "乙"], (0.5, 1.2), constraint=held)
    assert asked == [(["《甲》\n", "《乙》\n"], temperature, 0.9, [1, 2], held) for temperature in (0.5, 1.2)]
    assert list(found) == [0.5, 1.2] and (found[0.5].n, found[0.5].form, found[0.5].rhyme) == (2, 0.5, 0.5)


def test_the_list_of_tasks_shows_verse_and_perplexity_too(capsys):
    from pangu_lab.cli import main

    assert main(["evaluate", "list", "--json"]) == 0
    listed = {row["task"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])}
    assert {"verse", "perplexity", "c3"} <= listed
