"""The model that comes with the lab: opened by its name, small, described, and able to write a poem."""

from __future__ import annotations

import pytest

from pangu_lab import PanguLM
from pangu_lab.checkpoint import open_weights
from pangu_lab.cli import main
from pangu_lab.corpus.verse import FORMS
from pangu_lab.data import sample_folder
from pangu_lab.errors import InputError
from pangu_lab.evaluate import evaluate
from pangu_lab.loading import find
from pangu_lab.presets import preset
from pangu_lab.shipped import CARD, WEIGHTS, shipped_folder, shipped_names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_verse_is_found_by_its_name_unless_a_folder_has_it(tmp_path):
    assert shipped_names() == ["verse"] and find("verse") == shipped_folder("verse") == WEIGHTS / "verse"
    (tmp_path / "runs" / "verse").mkdir(parents=True)
    assert find("verse").resolve() == tmp_path / "runs" / "verse"
    (tmp_path / "verse").mkdir()
    assert shipped_folder("verse") is None


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"or a model that comes with the lab \(verse\)"):
        find("vers")


@pytest.mark.parametrize("name", shipped_names())
def test_what_comes_with_the_lab_is_at_most_ten_megabytes_names_no_path_and_has_a_card(name):
    assert sum(path.stat().st_size for path in (WEIGHTS / name).rglob("*") if path.is_file()) < 10_000_000
    weights, config = open_weights(name)
    assert config.model == preset(name).model and set(weights.shapes)
    assert not config.data.path and not config.data.eval_path and not config.train.init_from
    card = (WEIGHTS / name / CARD).read_text(encoding="utf-8")
    assert "bits per character" in card and "/tmp" not in card


def test_verse_writes_a_poem_of_a_regulated_form():
    model = PanguLM.load("verse")
    text = model.generate("《春夜》\n", temperature=0, max_new_tokens=80).text
    lines = [part for line in text.strip().split("\n") for part in line.replace("。", "，").split("，") if part]
    assert (len(lines), len(lines[0])) in FORMS and len({len(line) for line in lines}) == 1, text


def test_verse_finds_the_second_line_of_a_couplet_in_poems_later_than_those_it_learned_from():
    found = evaluate(
        "c3", "verse", sample_folder() / "verse" / "couplets.json", template="{passage}{question}{|}{option}"
    )
    assert found.n == 80 and found.interval[0] > 0.6 and found.cut == 0
    assert found.baselines["random"] == 0.25 and max(found.baselines.values()) < 0.3


def test_every_command_takes_the_name(capsys):
    assert (
        main(["generate", "--from", "verse", "--prompt", "《送友人》\n", "--max-new-tokens", "8", "--temperature", "0"])
        == 0
    )
    assert len(capsys.readouterr().out.strip()) >= 8


def test_a_poem_held_to_its_form_begins_below_its_title(capsys):
    assert (
        main(
            [
                "generate",
                "--from",
                "verse",
                "--prompt",
                "《四时》",
                "--verse",
                "4x7",
                "--rhyme",
                "--acrostic",
                "春夏秋冬",
            ]
        )
        == 0
    )
    title, first, second = capsys.readouterr().out.strip().split("\n")
    assert title == "《四时》" and [line[0] for line in (first, second)] == ["春", "秋"]
    assert [line.index("，") for line in (first, second)] == [7, 7] and [len(line) for line in (first, second)] == [
        16,
        16,
    ]
    assert first[8] == "夏" and second[8] == "冬"


def test_a_training_begins_from_it_by_name():
    config = preset("verse").replace(**{"train.init_from": "verse"})
    assert config.with_absolute_paths().train.init_from == "verse"
