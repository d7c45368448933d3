"""The sample corpus that comes with the package."""

from __future__ import annotations

import json

import pytest

from pangu_lab.corpus import lines_of, prosody_of, read_poems
from pangu_lab.data import sample_files, sample_folder
from pangu_lab.errors import InputError


def test_both_parts_are_there_and_share_nothing() -> None:
    parts = {part: [path.read_text(encoding="utf-8") for path in sample_files(part)] for part in ("train", "heldout")}
    assert sample_folder().is_dir() and sum(map(len, parts["train"])) >= 40_000 and parts["heldout"]
    blocks = {
        part: {block.strip() for text in texts for block in text.split("\n\n") if block.strip()}
        for part, texts in parts.items()
    }
    assert not blocks["train"] & blocks["heldout"]


def test_another_part_is_refused() -> None:
    with pytest.raises(InputError, match="no part 'test'"):
        sample_files("test")


def test_the_poems_are_verse_by_the_rhyme_book_each_once() -> None:
    poems = {part: read_poems(sample_folder() / "verse" / f"{part}.jsonl") for part in ("famous", "later")}
    assert {part: len(found) for part, found in poems.items()} == {"famous": 14, "later": 36}
    texts = [text for found in poems.values() for _, text in found]
    assert len(set(texts)) == len(texts) and None not in map(lines_of, texts)
    assert [text[:5] for text in texts if not prosody_of(lines_of(text)).rhyme] == [
        "满纸荒唐言"
    ]  # 泪 and 味: 寘 and 未, loosely


def test_every_couplet_asked_for_stands_in_a_later_poem_and_its_other_options_in_others() -> None:
    later = {
        f"《{title}》\n{text}": lines_of(text) for title, text in read_poems(sample_folder() / "verse" / "later.jsonl")
    }
    seconds = {line + "。" for lines in later.values() for line in lines[1::2]}
    documents = json.loads((sample_folder() / "verse" / "couplets.json").read_text(encoding="utf-8"))
    assert len(documents) == 80
    for before, [question], _ in documents:
        whole = "".join(before) + question["question"] + question["answer"]
        [lines] = [lines for poem, lines in later.items() if poem.startswith(whole)]
        choices = question["choice"]
        assert len(set(choices)) == 4 and set(choices) <= seconds and len({len(choice) for choice in choices}) == 1
        assert [choice[:-1] in lines for choice in choices].count(True) == 1
