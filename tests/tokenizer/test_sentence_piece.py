"""PanGu's released vocabulary: ids, marks, and what comes back."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer, native, segment
from pangu_lab.tokenizer.load import released_vocabulary
from pangu_lab.tokenizer.sentence_piece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def pangu() -> SentencePieceTokenizer:
    tokenizer = load_tokenizer("pangu")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.fixture(scope="module", params=["native", "portable"])
def either(request: pytest.FixtureRequest, pangu: SentencePieceTokenizer) -> Iterator[SentencePieceTokenizer]:
    """The same tokenizer with and without the C code."""
    if request.param == "native":
        if pangu._native is None:
            pytest.skip("no C compiler on this machine")
        yield pangu
    else:
        tokenizer = SentencePieceTokenizer(pangu.model)
        tokenizer._native = None
        yield tokenizer


def whole_text_ids(tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    """The definition: words, marks, one space between, SentencePiece over the whole."""
    marks = str.maketrans(" \n", "▂▃")
    text = re.sub("[▁▂▃]", "▄", text)  # a text's own are no marks
    joined = " ".join(word.translate(marks) for word in segment.portable().words(text))
    return tokenizer._processor.encode(joined)


def test_the_released_vocabulary_is_the_published_file(pangu: SentencePieceTokenizer) -> None:
    assert pangu.model_sha256.startswith("18857e86") and pangu.model_sha256.endswith("7a3a")
    assert (pangu.kind, pangu.vocab_size) == ("pangu", 40000)
    assert [pangu.piece(index) for index in range(10)] == [
        "<unk>",
        "<s>",
        "</s>",
        "▃",
        "▂",
        "<sep>",
        "<pad>",
        "<mask>",
        "<eod>",
        "<eot>",
    ]
    assert (pangu.eod_id, pangu.pad_id) == (9, 6)


def test_known_ids(either: SentencePieceTokenizer) -> None:
    assert either.encode("今天 天气不错，好的\n") == [465, 13, 4, 2786, 1123, 10, 70, 11, 13, 3]


def test_ids_of_words_are_the_ids_of_the_text(either: SentencePieceTokenizer) -> None:
    pieces = st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [
                "　",
                "\xa0",
                "\u200b",
                "▁",
                "▂▃",
                "か\u3099",
                "e\u0301",
                "´",
                "ﷺ",
                "㍿",
                "\r\n",
                "\0",
                "<eot>",
                "中文",
                " ",
                "\n",
                "ｱﾞ",
                "\ufeff",
                "①",
                "…",
                "½",
                "ﬁ",
            ]
        ),
    )

    @settings(max_examples=500, deadline=None)
    @given(st.lists(pieces, max_size=8).map("".join))
    def equal(text: str) -> None:
        assert either.encode(text) == whole_text_ids(either, text)

    equal()


def test_ids_around_every_common_character(either: SentencePieceTokenizer) -> None:
    codes = [*range(0x20, 0x3400), *range(0xF900, 0x10000), *range(0x1F300, 0x1F700)]
    text = "".join(f"中{chr(code)} 文{chr(code)}a" for code in codes if code != 0x2581)
    assert either.encode(text) == whole_text_ids(either, text)


def test_ids_of_real_text(either: SentencePieceTokenizer, data_folder: Path) -> None:
    for path in sorted((data_folder / "corpus").glob("*.txt")):
        text = path.read_text(encoding="utf-8")[:100_000]
        ids = either.encode(text)
        assert ids == whole_text_ids(either, text)
        decoded = either._processor.decode(ids)
        assert either.decode(ids) == decoded.replace(" ", "").replace("▂", " ").replace("▃", "\n").replace("▁", "")


def test_documents_encoded_together_are_documents_encoded_apart(either: SentencePieceTokenizer) -> None:
    for documents in (["今天", "", "好\n吗？", "a\r"], ["zero \0 byte", "x"], ["▁", "y"], []):
        expected = [index for document in documents for index in [*either.encode(document), either.eod_id]]
        found = either.encode_documents(documents)
        assert found.dtype == np.int32 and found.tolist() == expected


def test_decoding_normalises_and_never_shows_a_mark(pangu: Tokenizer) -> None:
    text = "他说，  “好”。\n\nA b　c"
    decoded = pangu.decode(pangu.encode(text))
    assert decoded == "他说,  “好”。\n\nA bc"
    everything = pangu.decode(range(pangu.vocab_size))
    assert not set("▁▂▃") & set(everything)


def test_marks_that_a_person_typed_stay_blocks(either: SentencePieceTokenizer) -> None:
    for mark in "▁▂▃":
        assert either.decode(either.encode(f"春{mark}天")) == "春▄天"


def test_the_unknown_piece_is_known_as_such(pangu: Tokenizer) -> None:
    assert pangu.unknown_ids == (0,)


def test_special_pieces_are_silent_unless_asked_for(pangu: Tokenizer) -> None:
    ids = [465, 9, 6, 8, 1, 2, 5, 7, 70]
    assert pangu.decode(ids) == "今天好"
    assert pangu.decode(ids, special=True) == "今天<eot><pad><eod><s></s><sep><mask>好"
    assert pangu.decode([0]) == "⁇"


def test_special_names_in_a_text_stay_text(pangu: Tokenizer) -> None:
    ids = pangu.encode("<eot><pad>▃")
    assert not {6, 9} & set(ids)


def test_eod_and_pad_can_be_chosen_by_name_or_id() -> None:
    tokenizer = load_tokenizer("pangu", eod=6, pad=6)
    assert (tokenizer.eod_id, tokenizer.pad_id) == (6, 6)
    assert tokenizer.encode_documents(["好"]).tolist() == [70, 6]
    assert load_tokenizer("pangu", eod="<eod>").eod_id == 8
    assert load_tokenizer("pangu", eod="39999").eod_id == 39999  # no piece is spelled so
    assert tokenizer.fingerprint == load_tokenizer("pangu").fingerprint
    assert load_tokenizer("pangu", eod=465).decode([465, 70]) == "好"


@pytest.mark.parametrize(
    ("eod", "words"),
    [
        (40000, "0 to 39999"),
        (-1, "0 to 39999"),
        ("<end>", "no piece '<end>'"),
        ("40000", "0 to 39999"),
        (True, "outside"),
    ],
)
def test_pieces_outside_the_vocabulary_are_refused(eod: object, words: str) -> None:
    with pytest.raises(InputError, match="tokenizer.eod.*" + words):
        load_tokenizer("pangu", eod=eod)  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_refused(pangu: Tokenizer) -> None:
    for bad in (-1, 40000):
        with pytest.raises(InputError, match="outside the vocabulary"):
            pangu.decode([bad])
        with pytest.raises(InputError, match="outside the vocabulary"):
            pangu.piece(bad)
    assert pangu.id_of("▁今天") == 465 and pangu.id_of("no such piece") is None


def test_broken_surrogates_are_taken_as_the_replacement_character(either: SentencePieceTokenizer) -> None:
    assert either.encode("好\ud83d") == either.encode("好\ufffd")
    assert either.encode("\ud83d\ude00") == either.encode("😀")


def test_threads_may_share_a_tokenizer(pangu: SentencePieceTokenizer) -> None:
    tokenizer = SentencePieceTokenizer(pangu.model)
    texts = [f"第{number}章，{chr(0x4E00 + 7 * number)}{chr(0x5E00 + number)}说了一句话。" * 30 for number in range(40)]
    expected = [pangu.encode(text) for text in texts]
    found: list[list[list[int]]] = []
    threads = [
        threading.Thread(target=lambda: found.append([tokenizer.encode(text) for text in texts])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_remembered_words_are_bounded(pangu: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "REMEMBERED", 50)
    monkeypatch.setattr("pangu_lab.tokenizer.sentence_piece.REMEMBERED", 50)
    texts = ["".join(chr(0x4E00 + 41 * a + b) for b in range(40)) for a in range(20)]
    for quick in (True, False):
        tokenizer = SentencePieceTokenizer(pangu.model)
        tokenizer._native = tokenizer._native if quick else None
        assert [tokenizer.encode(text) for text in texts] == [pangu.encode(text) for text in texts]
        if tokenizer._native:
            assert tokenizer._native._size <= 50
        else:
            assert len(tokenizer._ids_of) <= 50


def test_a_vocabulary_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'pcl-pangu"):
        released_vocabulary()
