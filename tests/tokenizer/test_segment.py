"""Words equal jieba's, on every text, from both engines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.tokenizer import lexicon, native, segment

Cut = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def reference() -> Cut:
    import jieba

    jieba.setLogLevel(logging.ERROR)
    tokenizer = jieba.Tokenizer()  # of its own: user words added elsewhere in the process do not count
    return lambda text: list(tokenizer.cut(text))


def engines() -> list:
    found = native.segmenter()
    missing = pytest.mark.skipif(found is None, reason="no C compiler on this machine")
    return [
        pytest.param(segment.portable().words, id="portable"),
        pytest.param(found and found.words, id="native", marks=missing),
    ]


HAN = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天"
    "结婚的和尚未结婚的研究生命起源工信处女干事每月经过下属科室都要亲口交代技术性器件的安装邓颖超生前杭研大厦饕餮鼗"
)
RUNS = st.text(alphabet=HAN, min_size=1, max_size=12)
MIXED = st.text(
    alphabet="abcXYZ019+#&._%- \t\r\n，。！？“”（）·—…、《》①㈱　\u200b\xa0éñЖあア가😀\u9fd5\u9fd6\u4dff" + HAN[:8],
    max_size=12,
)
KNOWN = st.sampled_from(
    [
        "T恤",
        "AA制",
        "C++",
        "c#",
        "iPhone15-Pro",
        "3.14%",
        "1.2.3",
        "50%",
        "v1.0",
        "a_b-c",
        "江大桥参加",
        "南京市长江大桥",
        "隔行如隔山",
        "B超",
        "卡拉OK",
        "\r\n",
        "\r\r\n",
        "x.5%",
        ".5",
        "5.",
        "%%",
        "--",
    ]
)
TEXTS = st.lists(st.one_of(RUNS, MIXED, KNOWN, st.text(max_size=6)), max_size=8).map("".join)


@pytest.mark.parametrize("cut", engines())
def test_words_equal_jieba_on_any_text(cut: Cut, reference: Cut) -> None:
    @settings(max_examples=600, deadline=None)
    @given(TEXTS)
    def equal(text: str) -> None:
        assert cut(text) == reference(text)

    equal()


@pytest.mark.parametrize("cut", engines())
def test_words_equal_jieba_on_runs_the_dictionary_does_not_know(cut: Cut, reference: Cut) -> None:
    """Rare characters go through the character model, where ties are frequent."""
    rare = st.text(alphabet=st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5), max_size=30)

    @settings(max_examples=400, deadline=None)
    @given(rare)
    def equal(text: str) -> None:
        assert cut(text) == reference(text)

    equal()


@pytest.mark.parametrize("cut", engines())
def test_words_equal_jieba_around_every_character(cut: Cut, reference: Cut) -> None:
    text = "".join(f"中{chr(code)}a文{chr(code)}" for code in range(0x3100) if not 0xD800 <= code < 0xE000)
    assert cut(text) == reference(text)


@pytest.mark.parametrize("cut", engines())
def test_words_equal_jieba_on_real_text(cut: Cut, reference: Cut, data_folder: Path) -> None:
    books = sorted((data_folder / "corpus").glob("*.txt"))
    mixed = sorted((data_folder / "eval").glob("*/*.json"))
    assert books and mixed
    for path in books + mixed:
        text = path.read_text(encoding="utf-8")
        text = text[:60_000] + text[-60_000:]
        assert cut(text) == reference(text), path.name


@pytest.mark.parametrize("cut", engines())
def test_words_joined_are_the_text(cut: Cut) -> None:
    text = "half \ud83d a pair，\r\n空　格 and 𠮷\n" * 3
    assert "".join(cut(text)) == text
    assert cut("") == []


def test_every_dictionary_word_reaches_the_native_table(reference: Cut) -> None:
    """The C reader of the dictionary and the Python one agree on every word and frequency."""
    found = native.segmenter()
    if found is None:
        pytest.skip("no C compiler on this machine")
    import numpy as np

    dictionary = lexicon.dictionary_bytes()
    words, ends, counts = (np.empty(len(dictionary), kind) for kind in (np.uint32, np.int64, np.int64))
    number = found.library.dictionary_parse(
        dictionary, len(dictionary), words.ctypes.data, ends.ctypes.data, counts.ctypes.data
    )
    text = words[: ends[number - 1]].tobytes().decode("utf-32-le")
    stops = ends[:number].tolist()
    parsed = {text[begin:end]: count for begin, end, count in zip([0, *stops], stops, counts[:number].tolist())}
    assert parsed == lexicon.frequencies(dictionary)
    assert int(counts[:number].sum()) == lexicon.total_frequency(dictionary)


def test_very_long_texts_are_cut_in_parts_at_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "今天天气不错。\r\n我们去公园走走，好吗？\n" * 20
    whole = segment.portable().words(text)
    monkeypatch.setattr(native, "LONGEST", 64)
    assert len(native.parts(text)) > 5 and "".join(native.parts(text)) == text
    if found := native.segmenter():
        assert found.words(text) == whole


def test_without_the_native_library_the_portable_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANGU_LAB_NATIVE", "0")
    native.segmenter.cache_clear()
    segment.engine.cache_clear()
    try:
        assert native.segmenter() is None
        assert segment.words("南京市长江大桥") == ["南京市", "长江大桥"]
    finally:
        native.segmenter.cache_clear()
        segment.engine.cache_clear()
