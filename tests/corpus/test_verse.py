"""Regulated verse of the collection: what counts, and which poems are held out."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import pytest

from pangu_lab import cli
from pangu_lab.corpus import make_verse
from pangu_lab.corpus.verse import Poem, held_out, read_poems
from pangu_lab.errors import InputError

pytest.importorskip("opencc")
GOOD = {
    "title": "相思（其一）",
    "author": "王維",
    "paragraphs": ["紅豆生南國，春來發幾枝？", "願君多采擷，此物最相思。"],
}
OTHERS = [
    {"title": "短", "author": "甲", "paragraphs": ["一二三四五，一二三四五。"]},
    {"title": "长短", "author": "甲", "paragraphs": ["一二三四五，一二三四五六七。", "一二三四五，一二三四五六七。"]},
    {"title": "缺", "author": "甲", "paragraphs": ["一二□四五，一二三四五。", "一二三四五，一二三四五。"]},
    {"title": "再", "author": "乙", "paragraphs": GOOD["paragraphs"]},
    {"name": "no poem"},
    ["x"],
    {"paragraphs": "text"},
]


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def random_poems(count: int, seed: int = 1) -> list[Poem]:
    draw = random.Random(seed)
    return [
        Poem("题", "人", tuple("".join(chr(draw.randrange(0x4E00, 0x9F00)) for _ in range(5)) for _ in range(4)))
        for _ in range(count)
    ]


def test_a_poem_is_simplified_and_keeps_its_shape(tmp_path):
    left_out: collections.Counter[str] = collections.Counter()
    poem, again = read_poems(write(tmp_path / "a.json", [GOOD, *OTHERS]), left_out)
    assert (
        poem == Poem("相思", "王维", ("红豆生南国", "春来发几枝", "愿君多采撷", "此物最相思"))
        and again.lines == poem.lines
    )
    assert (poem.form, poem.text) == ("wujue", "红豆生南国，春来发几枝。\n愿君多采撷，此物最相思。")
    assert left_out == {"another shape": 2, "gaps or signs in a line": 1, "no poem": 3}


def test_the_corpus_has_every_poem_once_and_says_what_was_left_out(tmp_path):
    rows = [{"title": poem.title, "author": "", "paragraphs": list(poem.lines)} for poem in random_poems(200)]
    write(tmp_path / "in" / "a.json", [GOOD, *OTHERS, *rows])
    made = make_verse(tmp_path / "in", tmp_path / "verse", 0.2)
    read = {
        name: [json.loads(line) for line in open(tmp_path / "verse" / f"{name}.jsonl", encoding="utf-8")]
        for name in ("train", "heldout")
    }
    assert (made.train, made.heldout) == (len(read["train"]), len(read["heldout"])) and made.train + made.heldout == 201
    assert 15 < made.heldout < 70 and made.forms == {"wujue": 201}
    assert made.left_out["the same text again"] == 1 and made.left_out["another shape"] == 2
    assert not {poem["text"] for poem in read["train"]} & {poem["text"] for poem in read["heldout"]}
    assert json.loads((tmp_path / "verse" / "verse.json").read_text(encoding="utf-8"))["train"] == made.train


def test_whether_a_poem_is_held_out_depends_on_nothing_but_it_and_its_like():
    poems = random_poems(300)
    sides = dict(zip(poems, held_out(poems, 0.3)))
    assert 50 < sum(sides.values()) < 130
    assert dict(zip(poems[::-1], held_out(poems[::-1], 0.3))) == sides
    assert dict(zip(poems[:100], held_out(poems[:100], 0.3))) == {poem: sides[poem] for poem in poems[:100]}


def test_poems_that_are_nearly_the_same_stand_on_one_side():
    poems, draw = random_poems(300), random.Random(2)
    changed = []
    for poem in poems:  # one other character in every couplet
        lines = [list(line) for line in poem.lines]
        for line in (draw.choice(lines[:2]), draw.choice(lines[2:])):
            line[draw.randrange(5)] = "某"
        changed.append(Poem("别题", "别人", tuple("".join(line) for line in lines)))
    sides = held_out(poems + changed, 0.3)
    assert sides[:300] == sides[300:] and 30 < sum(sides[:300]) < 180


def test_without_the_collection_it_is_said_where_to_get_it(tmp_path, capsys):
    assert cli.main(["corpus", "verse", "--out", str(tmp_path / "verse")]) == 2
    assert "npm pack chinese-poetry" in capsys.readouterr().err
    with pytest.raises(InputError, match="no regulated poem in .*npm pack"):
        make_verse(write(tmp_path / "a.json", OTHERS[:2]), tmp_path / "verse")
    assert not (tmp_path / "verse").exists()


def test_the_published_collection_is_read_as_it_comes(data_folder, tmp_path, capsys):
    folder = data_folder / "verse" / "tang"
    if not folder.is_dir():
        pytest.skip("the data folder has no verse")
    left_out: collections.Counter[str] = collections.Counter()
    poems = list(read_poems([folder / "poet.tang.0.json", folder / "poet.tang.1000.json"], left_out))
    assert 800 < len(poems) < 1300 and sum(left_out.values()) + len(poems) == 2000
    assert all(len({len(line) for line in poem.lines}) == 1 for poem in poems)
