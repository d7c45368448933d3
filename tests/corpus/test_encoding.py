"""Text files in any encoding people have, read right or refused by name and byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pangu_lab.corpus import Corpus, Reading, encoding
from pangu_lab.corpus.corpus import inspect
from pangu_lab.errors import InputError

TEXT = "话说天下大势，分久必合，合久必分。这一天，他们来到了一个地方。\n“好！”他说。\r\nABC 123\r老式换行\n" * 8
PLAIN = TEXT.replace("\r\n", "\n").replace("\r", "\n")
TRADITIONAL = "這個時候，他們說著話，來到了國家圖書館，裡面的書真多。我們後來又見過幾次面。\n" * 5


def read(path: Path, **how: str) -> str:
    """All of a text but the line ends around it."""
    return "".join(Corpus(path, Reading("text", "file", **how)).documents())


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le-mark"])
def test_encodings_are_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = ("\ufeff" + TEXT).encode("utf-16-le") if name == "utf-16-le-mark" else TEXT.encode(name)
    path.write_bytes(content)
    source = inspect(path)
    assert read(path) == PLAIN.strip("\n")
    assert (source.size, source.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert source.characters == len(TEXT)


@pytest.mark.parametrize("text", ["好", "中文", "你好，世界", "联通", TRADITIONAL, "abc\n", "", "café 中文很好"])
def test_short_and_traditional_texts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("utf-8"))
    assert read(path) == text.strip("\n")
    if "é" not in text:
        path.write_bytes(text.encode("gbk"))
        assert read(path) == text.strip("\n")


def test_blocks_do_not_tear_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 7)
    for name in ("utf-8", "gbk", "utf-16"):
        path = tmp_path / f"{name}.txt"
        path.write_bytes(TEXT.encode(name))
        assert inspect(path).characters == len(TEXT)
    damaged = bytearray(TEXT.encode("utf-8"))
    damaged[100] = 0xFF
    (tmp_path / "damaged.txt").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged.txt: not readable as UTF-8 or GBK text at byte (99|100|98)"):
        inspect(tmp_path / "damaged.txt")


@pytest.mark.parametrize("offset", [0, 3, 300, 1998])
def test_a_damaged_utf8_file_is_refused_at_its_byte_and_not_read_as_gbk(offset: int, tmp_path: Path) -> None:
    content = bytearray(("好天气。" * 600).encode("utf-8"))
    content[offset] = 0xC1  # never part of UTF-8; a good first half of a GBK character
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken.txt: not readable as UTF-8 or GBK text at byte {offset} \(0xc1\)"):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("好的，这是一个文件。".encode() + b"\0" + b"abc", "byte 30 is zero"),
        ("今天天气很好".encode("utf-16-le"), "byte"),
        ("caf\xe9 cr\xe8me br\xfbl\xe9e".encode("latin-1"), "at byte 3"),
        (TRADITIONAL.encode("big5"), "at byte 0"),
        ("日本語のテキストです。これはテストです。".encode("shift-jis"), "at byte"),
        (TEXT.encode("gbk") + b"\xff\xff", "at byte"),
        ("好好好".encode()[:-1], "at byte 6"),
        (b"\xef\xbb\xbf" + "好".encode() + b"\xff", "not readable as UTF-8 text at byte 6 .0xff"),
    ],
)
def test_other_bytes_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other.txt: .*" + words):
        inspect(path)


def test_a_file_that_grows_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    source = inspect(path)
    source.check_unchanged()
    path.write_text("xy")
    with pytest.raises(InputError, match="changed while it was being read"):
        source.check_unchanged()


def test_a_byte_order_mark_inside_a_text_is_no_character_of_it(tmp_path: Path) -> None:
    path = tmp_path / "joined.txt"
    path.write_bytes(b"".join(("\ufeff" + line).encode() for line in ("一。\n", "二。\n")))
    assert list(Corpus(path).documents()) == ["一。", "二。"]


def test_the_euro_sign_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "price.txt"
    path.write_bytes((PLAIN + "价钱是").encode("gbk") + b"\x80" + "五".encode("gbk"))
    assert read(path) == PLAIN.lstrip("\n") + "价钱是€五"


@pytest.mark.parametrize(
    ("how", "expected"),
    [("skip", ["好天气。" * 50, "也好。"]), ("replace", ["好天气。" * 50, "坏\ufffd了。", "也好。"])],
)
def test_bad_bytes_are_skipped_or_replaced_when_asked(how: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(["好天气。" * 50, "坏#了。", "也好。"]).encode().replace(b"#", b"\xff"))
    corpus = Corpus(path, Reading(bad_bytes=how))
    assert list(corpus.documents()) == expected
    assert corpus.report.lines() == (
        [f"left out: 1 × bytes that are no text (first: {path}: line 2)"] if how == "skip" else []
    )
