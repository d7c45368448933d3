"""A text in two parts: nothing stands in both, nothing is lost, and the same text gives the same parts."""

from __future__ import annotations

import json
import random

import pytest

from pangu_lab.corpus import Reading
from pangu_lab.errors import InputError
from pangu_lab.start.splitting import held_out_share, look_at, split_text

WHOLE = Reading(documents="file")
LETTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


def paragraph(seed: int, length: int = 60) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length)) + "。"


def parts(path, how, tmp_path):
    look = look_at(path, how)
    split = split_text(path, tmp_path / "text", how, look)
    found = []
    for part in ("train", "heldout"):
        lines = (split.folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([json.loads(line)["text"] for line in lines])
        assert sum(map(len, found[-1])) == getattr(split, part)
    return *found, look


def test_of_one_long_document_the_last_part_is_held_out_in_whole_paragraphs(tmp_path):
    paragraphs = [paragraph(seed) for seed in range(200)]
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(paragraphs), encoding="utf-8")
    [train], [heldout], look = parts(path, WHOLE, tmp_path)
    assert train.split("\n") + heldout.split("\n") == paragraphs
    assert len(heldout) == pytest.approx(look.characters * look.share, abs=70) and not look.by_hash


def test_of_a_longer_one_stretches_from_everywhere_are_held_out_since_its_end_may_be_something_else(tmp_path):
    paragraphs = [paragraph(seed) for seed in range(2000)]
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(paragraphs), encoding="utf-8")
    train, heldout, look = parts(path, WHOLE, tmp_path)
    assert len(train) == len(heldout) == int(look.characters * look.share / 2000) == 3
    assert "\n".join(part for pair in zip(train, heldout) for part in pair).split("\n") == paragraphs
    assert sum(map(len, heldout)) == pytest.approx(look.characters * look.share, rel=0.05)


def test_a_paragraph_that_stands_in_both_is_not_measured_on(tmp_path):
    paragraphs = [paragraph(seed) for seed in range(100)]
    paragraphs[97] = paragraphs[3]
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(paragraphs), encoding="utf-8")
    [train], [heldout], _ = parts(path, WHOLE, tmp_path)
    assert paragraphs[3] in train and paragraphs[3] not in heldout and paragraphs[99] in heldout


def test_a_text_without_line_ends_is_cut_between_sentences(tmp_path):
    sentences = [paragraph(seed, 20) for seed in range(50)]
    path = tmp_path / "line.txt"
    path.write_text("".join(sentences), encoding="utf-8")
    [train], [heldout], _ = parts(path, WHOLE, tmp_path)
    assert train + heldout == "".join(sentences) and train.endswith("。") and heldout


def test_many_documents_are_divided_by_what_they_say_and_copies_stay_together(tmp_path):
    poems = [paragraph(seed % 400) for seed in range(800)]  # each twice
    path = tmp_path / "poems.txt"
    path.write_text("\n\n".join(poems), encoding="utf-8")
    train, heldout, look = parts(path, Reading(documents="block"), tmp_path)
    assert look.by_hash and sorted(train + heldout) == sorted(poems) and not set(train) & set(heldout)
    assert sum(map(len, heldout)) == pytest.approx(look.characters * look.share, rel=0.3)
    assert sorted(look.sample[0] + look.sample[1]) == sorted(poems)
    again = look_at(path, Reading(documents="block"))
    assert (again.identity, again.border) == (look.identity, look.border)


def test_another_text_or_another_reading_is_another_identity(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(map(paragraph, range(10))), encoding="utf-8")
    before = look_at(path, WHOLE).identity
    assert look_at(path, Reading()).identity != before
    path.write_text("\n".join(map(paragraph, range(11))), encoding="utf-8")
    assert look_at(path, WHOLE).identity != before


@pytest.mark.parametrize(
    "text, why", [("天地玄黄", "has 4 characters: give at least"), ("天" * 300, "no part of the text could be")]
)
def test_what_is_too_short_or_cannot_be_cut_is_refused(tmp_path, text, why):
    path = tmp_path / "short.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=why):
        parts(path, WHOLE, tmp_path)
    assert not (tmp_path / "text").exists()


def test_the_share_is_a_twentieth_between_bounds():
    assert held_out_share(500_000) == 0.05 and held_out_share(20_000) == 0.1 and held_out_share(6_000_000) == 0.005
