"""A vocabulary of characters: one token each, equal to what SentencePiece itself makes of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.data import sample_files
from pangu_lab.tokenizer import Tokenizer, load_tokenizer, show, train_vocabulary
from pangu_lab.tokenizer.characters import CharacterTokenizer
from pangu_lab.tokenizer.sentence_piece import MARKS, encodable

LETTERS = st.text(st.one_of(st.sampled_from("的一是春天，。 \n▂a1"), st.characters()), max_size=30)


@pytest.fixture(scope="module", params=["plain", "with bytes"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("characters") / "tokenizer"
    train_vocabulary(sample_files("train"), folder, 1200, kind="char", byte_fallback=request.param != "plain")
    return load_tokenizer(folder)


def test_the_commonest_characters_are_pieces_and_nothing_is_longer(tokenizer):
    assert isinstance(tokenizer, CharacterTokenizer) and tokenizer.vocab_size == 1200 and tokenizer.longest_piece == 1
    assert all(tokenizer.id_of(character) is not None for character in "的一是不了，。")


def test_every_text_is_as_sentencepiece_encodes_it(tokenizer):
    @settings(max_examples=300, deadline=None)
    @given(LETTERS.filter(lambda text: "\0" not in text))
    def equal(text: str) -> None:
        if tokenizer.id_of("<0x00>") is not None or not set(tokenizer.unknown_ids) & set(tokenizer.encode(text)):
            assert tokenizer.encode(text) == tokenizer._processor.encode(encodable(text).translate(MARKS))
        assert tokenizer.encode(text) == [
            index for word in tokenizer.encode_words(tokenizer.words(text)) for index in word
        ]

    equal()


def test_known_text_comes_back_with_one_token_a_character(tokenizer):
    text = "天上来了，\n 的一是。"
    assert len(tokenizer.encode(text)) == len(text) and tokenizer.decode(tokenizer.encode(text)) == text
    (row,) = [row for row in show(tokenizer, text) if row.word == "↵"]
    assert row.pieces == ["▃"]


def test_what_it_lacks_is_unknown_or_bytes(tokenizer):
    ids = tokenizer.encode("天龘天")
    if tokenizer.id_of("<0x00>") is None:
        assert ids[1:-1] == list(tokenizer.unknown_ids)
    else:
        assert len(ids) == 5 and tokenizer.decode(ids) == "天龘天"


def test_documents_together_are_documents_apart(tokenizer):
    for documents in (["春", "", "好\n吗？"], ["零 \0 字符", "龘"], []):
        expected = [index for document in documents for index in [*tokenizer.encode(document), tokenizer.eod_id]]
        found = tokenizer.encode_documents(documents)
        assert found.dtype == np.int32 and found.tolist() == expected


def test_a_small_text_gives_as_many_pieces_as_it_has_characters(tmp_path: Path):
    (tmp_path / "a.txt").write_text("春眠不觉晓，处处闻啼鸟。\n", encoding="utf-8")
    made = train_vocabulary(tmp_path / "a.txt", tmp_path / "t", 1000, kind="char")
    assert made.vocab_size == 10 + len(set("春眠不觉晓，处处闻啼鸟。")) and made.decode(made.encode("晓鸟")) == "晓鸟"
