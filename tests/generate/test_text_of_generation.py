"""Stop strings and bad words, however tokens and characters fall."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.generate.text import BadWords, TextWriter, written_forms
from tests.generate.fakes import CharacterTokenizer

TOKENIZER = CharacterTokenizer()


def write(ids, stop=(), may_stop_from=0):
    writer = TextWriter(TOKENIZER.stream(), stop)
    pieces = []
    for number, index in enumerate(ids):
        if writer.stopped:
            break
        pieces.append(writer.push(index, number >= may_stop_from))
    return writer, [*pieces, writer.end()]


tokens = st.lists(st.integers(2, TOKENIZER.vocab_size - 1), max_size=20)
words = st.lists(st.text("abc春天。", min_size=1, max_size=4), max_size=3)


@given(tokens, words)
def test_what_is_shown_is_the_text_before_the_first_stop_string(ids, stop):
    writer, pieces = write(ids, stop)
    shown = "".join(pieces)
    assert shown == writer.text
    assert not any(word in shown for word in stop)
    assert TOKENIZER.decode(ids).startswith(shown)
    if not writer.stopped:
        assert shown == TOKENIZER.decode(ids) and writer.kept == len(ids)


@given(tokens, words)
def test_nothing_shown_is_ever_taken_back(ids, stop):
    writer = TextWriter(TOKENIZER.stream(), stop)
    shown = ""
    for index in ids:
        shown += writer.push(index)
        assert writer.text.startswith(shown)
        if writer.stopped:
            break


def test_a_stop_string_over_several_tokens_is_held_back_until_it_is_decided():
    ids = [TOKENIZER.id_of(letter) for letter in ("x", "a", "b", "y", "a", "b", "c")]
    _, pieces = write(ids, ["abc"])
    assert pieces == ["x", "", "", "aby", "", "", "", ""]


def test_a_stop_string_that_begins_inside_a_token_leaves_the_beginning_of_that_token():
    ids = [TOKENIZER.id_of(piece) for piece in ("x", "cde", "y")]
    writer, pieces = write(ids, ["de"])
    assert (writer.text, writer.kept, "".join(pieces)) == ("xc", 2, "xc")
    writer, _ = write(ids, ["cd"])
    assert (writer.text, writer.kept) == ("x", 1)


def test_halves_of_a_character_are_shown_together_and_a_lost_half_at_the_end():
    first, second = TOKENIZER.vocab_size - 2, TOKENIZER.vocab_size - 1
    assert write([first, second])[1] == ["", "é", ""]
    assert write([first])[1] == ["", "�"]


def test_a_stop_string_inside_the_least_length_does_not_stop_then_or_later():
    ids = [TOKENIZER.id_of(letter) for letter in "a。bcd。e"]
    writer, _ = write(ids, ["。", "xxxxx"], may_stop_from=3)
    assert writer.text == "a。bcd"


@pytest.mark.parametrize("word", ["春天", "abc", "。好的", "é"])
def test_a_bad_word_is_banned_however_it_is_cut_into_tokens(word):
    bad = BadWords(TOKENIZER, [word])
    pieces = [(piece, index) for index, piece in enumerate(TOKENIZER.pieces) if piece]
    for before, (piece, index) in itertools.product(
        (b"", b"a", b"ab", "春".encode(), "。".encode(), "。好".encode(), "é".encode()[:1]), pieces
    ):
        completes = word.encode() in before + piece
        assert (index in bad.banned(before)) == completes, (before, piece)


def test_the_end_of_the_text_is_enough_to_know_what_is_banned():
    bad = BadWords(TOKENIZER, ["春天"])
    ids = [TOKENIZER.id_of(letter) for letter in "abcabc春"]
    assert bad.tail(TOKENIZER, ids) == "c春".encode() or bad.tail(TOKENIZER, ids).endswith("春".encode())
    assert TOKENIZER.id_of("天") in bad.banned(bad.tail(TOKENIZER, ids))


def test_both_ways_to_write_a_stop_string_count():
    class Normalising(CharacterTokenizer):
        def decode(self, ids):
            return super().decode(ids).replace("，", ",")

    assert written_forms(Normalising(), ["好，", "a"]) == ("好，", "a", "好,")
