"""What a poem has in common with others, and what a bigram model writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pangu_lab.corpus import BigramModel, PoemIndex, read_poems
from pangu_lab.errors import InputError

POEMS = [
    ("登鹳雀楼", "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"),
    ("静夜思", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"),
]


def test_spans_are_copied_within_a_poem_and_not_across_two():
    index = PoemIndex(POEMS)
    assert index.copied(POEMS[0][1]) == (14, 14)
    assert index.copied("白日依山尽，黄河") == (1, 1)
    assert index.copied("上一层楼，床前明") == (0, 1)
    assert index.copied("白日") == (0, 0)


def test_shorter_poems_than_a_span_give_no_copies():
    assert PoemIndex([("a", "白日")]).copied("白日依山尽，黄河入海流。") == (0, 4)


def test_the_nearest_poem_has_the_longest_run():
    found = PoemIndex(POEMS).nearest("我见明月光，疑是雪上霜。")
    assert (found.title, found.span) == ("静夜思", "明月光疑是") and 0 < found.jaccard < 1
    assert PoemIndex(POEMS).nearest(POEMS[0][1]).jaccard == 1


def test_a_bigram_model_only_writes_pairs_of_the_poems():
    model, random = BigramModel(POEMS), np.random.default_rng(1)
    pairs = {text[place : place + 2] for _, text in POEMS for place in range(len(text) - 1)}
    for sampled in (model.sample(random) for _ in range(20)):
        assert sampled[0] in "白床" and len(sampled) <= 120
        assert {sampled[place : place + 2] for place in range(len(sampled) - 1)} <= pairs


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "has no poems"),
        ("{", "line 1 is not JSON"),
        ('{"title": "a"}', "line 1 has no title"),
        ("[1]", "line 1 has no title"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=words):
        read_poems(tmp_path / "a.jsonl")


def test_poems_are_read_as_the_corpus_writes_them(tmp_path):
    rows = [json.dumps({"title": title, "author": "", "text": text}, ensure_ascii=False) for title, text in POEMS]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert read_poems(tmp_path / "a.jsonl") == POEMS
    with pytest.raises(InputError, match="cannot be read"):
        read_poems(tmp_path / "none.jsonl")
