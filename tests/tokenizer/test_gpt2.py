"""GPT-2's byte-level pairs from local files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return load_tokenizer(gpt2_folder)


def test_any_text_comes_back_exactly(gpt2: Tokenizer) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=30))
    def exact(text: str) -> None:
        ids = gpt2.encode(text)
        assert gpt2.decode(ids) == text
        stream = gpt2.stream()
        shown = "".join(stream.push(index) for index in ids)
        assert shown == text and stream.flush() == ""

    exact()


def test_ids_are_those_of_the_library(gpt2: Tokenizer, gpt2_folder: Path, text: str) -> None:
    import tokenizers

    engine = tokenizers.ByteLevelBPETokenizer(str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt"))
    assert gpt2.encode(text) == engine.encode(text).ids
    assert gpt2.decode(gpt2.encode(text)) == engine.decode(engine.encode(text).ids)


def test_its_one_special_piece_takes_every_part(gpt2: Tokenizer) -> None:
    end = gpt2.id_of("<|endoftext|>")
    assert gpt2.kind == "gpt2" and gpt2.eod_id == gpt2.pad_id == end
    assert gpt2.resolve("<eot>") == end
    assert end not in gpt2.encode("<|endoftext|>")
    assert gpt2.decode([*gpt2.encode("好"), end]) == "好"


def test_words_are_what_pairs_are_made_within(gpt2: Tokenizer, text: str) -> None:
    words = gpt2.words(text)
    assert "".join(words) == text
    assert [index for ids in gpt2.encode_words(words) for index in ids] == gpt2.encode(text)


def test_a_half_character_waits_for_the_rest(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("餮")
    assert len(ids) == 3  # no pair of its bytes was learnt
    stream = gpt2.stream()
    assert [stream.push(index) for index in ids] == ["", "", "餮"]
    stream.push(ids[0])
    assert stream.flush() == "�" == gpt2.decode(ids[:1])


def test_damaged_files_are_named(gpt2_folder: Path, tmp_path: Path) -> None:
    for name, content, words in (
        ("vocab.json", "{", "vocab.json is not readable JSON"),
        ("vocab.json", '{"a": 5}', "vocab.json"),
        ("merges.txt", "one two three\n", "line 1"),
        ("merges.txt", "q饕 w餮\n", "does not fit"),
    ):
        folder = tmp_path / str(abs(hash((name, content))))
        shutil.copytree(gpt2_folder, folder)
        (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            load_tokenizer(folder)
