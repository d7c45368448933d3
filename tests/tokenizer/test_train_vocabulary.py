"""Training a vocabulary: the same special pieces, exact round trips, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer, train_vocabulary

SPECIAL = ["<unk>", "<s>", "</s>", "▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]


def test_special_pieces_and_ids_are_pangus(trained: Tokenizer) -> None:
    assert [trained.piece(index) for index in range(10)] == SPECIAL
    assert (trained.kind, trained.vocab_size, trained.eod_id, trained.pad_id) == ("sentencepiece", 160, 9, 6)


def test_text_comes_back_exactly(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text  # full-width punctuation, double spaces, line ends

    @settings(max_examples=200, deadline=None)
    @given(st.text(alphabet=sorted(set(text)), max_size=40))
    def exact(made_up: str) -> None:
        assert trained.decode(trained.encode(made_up)) == made_up

    exact()


def test_unseen_characters_are_unknown_and_harm_nothing_else(trained: Tokenizer) -> None:
    assert trained.decode(trained.encode("今天饕餮好")) == "今天⁇好"  # a run of unknown ones is one piece


def test_with_byte_fallback_unseen_characters_survive(text_file: Path, tmp_path: Path) -> None:
    tokenizer = train_vocabulary(text_file, tmp_path / "bytes", 420, byte_fallback=True)
    assert [tokenizer.piece(index) for index in range(10)] == SPECIAL
    unseen = "饕餮😀 ñ\t\r㍿"
    ids = tokenizer.encode(unseen)
    assert tokenizer.decode(ids) == unseen
    stream = tokenizer.stream()
    shown = [stream.push(index) for index in ids]
    assert "".join(shown) + stream.flush() == unseen and "�" not in "".join(shown)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_same_text_gives_the_same_vocabulary(kind: str, text_file: Path, tmp_path: Path) -> None:
    made = [train_vocabulary(text_file, tmp_path / name, 80, kind) for name in "ab"]
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].fingerprint != train_vocabulary(text_file, tmp_path / "c", 79, kind).fingerprint


def test_a_small_vocabulary_keeps_the_frequent_characters(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("常常" * 200 + "".join(map(chr, range(0x4E00, 0x5200))), encoding="utf-8")
    tokenizer = train_vocabulary(source, tmp_path / "v", 512)
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(tokenizer.encode("常")) == "常"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_many_pieces_name_the_largest_number(kind: str, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"too short for a vocabulary of 900: it supports at most (\d+) pieces"
    ) as info:
        train_vocabulary(text_file, tmp_path / "v", 900, kind)
    largest = int(str(info.value).split("at most ")[1].split()[0])
    assert not (tmp_path / "v").exists()
    assert train_vocabulary(text_file, tmp_path / "v", largest, kind).vocab_size == largest


def test_refusals(text_file: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(InputError, match="too small: 10 pieces are special, give 18 or more"):
        train_vocabulary(text_file, tmp_path / "v", 17)
    with pytest.raises(InputError, match="one of bpe, unigram"):
        train_vocabulary(text_file, tmp_path / "v", 100, "words")
    with pytest.raises(InputError, match="no text to learn from"):
        train_vocabulary(blank, tmp_path / "v", 100)
    with pytest.raises(InputError, match="exists already"):
        train_vocabulary(text_file, tmp_path, 100)
    with pytest.raises(InputError, match="no such file"):
        train_vocabulary(tmp_path / "nothing.txt", tmp_path / "v", 100)


def test_progress_is_told(text_file: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    train_vocabulary(text_file, tmp_path / "v", 120, progress=lambda *news: told.append(news))
    assert told[-1][0] == told[-1][1] and told[-1][2] == "saving"
    assert "training" in [text for _, _, text in told]


def test_the_shipped_sample_trains_the_tiny_preset(tmp_path: Path) -> None:
    from pangu_lab.data import sample_files

    files = sample_files("train")
    tokenizer = train_vocabulary(files, tmp_path / "v", 4096)
    assert tokenizer.vocab_size == 4096
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert load_tokenizer(tmp_path / "v").fingerprint == tokenizer.fingerprint
