"""Text files in any encoding people have, read right or refused by name and byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pangu_lab.errors import InputError
from pangu_lab.tokenizer import reading

TEXT = "话说天下大势，分久必合，合久必分。这一天，他们来到了一个地方。\n“好！”他说。\r\nABC 123\r老式换行\n" * 8
PLAIN = TEXT.replace("\r\n", "\n").replace("\r", "\n")
TRADITIONAL = "這個時候，他們說著話，來到了國家圖書館，裡面的書真多。我們後來又見過幾次面。\n" * 5


def read(path: Path) -> str:
    with reading.inspect(path).open() as handle:
        return handle.read()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le-mark"])
def test_encodings_are_found(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    content = ("\ufeff" + TEXT).encode("utf-16-le") if encoding == "utf-16-le-mark" else TEXT.encode(encoding)
    path.write_bytes(content)
    source = reading.inspect(path)
    assert read(path) == PLAIN
    assert (source.size, source.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert source.characters == len(TEXT)


@pytest.mark.parametrize("text", ["好", "中文", "你好，世界", "联通", TRADITIONAL, "abc\n", "", "café 中文很好"])
def test_short_and_traditional_texts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode("utf-8"))
    assert read(path) == text
    if "é" not in text:
        path.write_bytes(text.encode("gbk"))
        assert read(path) == text


def test_blocks_do_not_tear_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 7)
    for encoding in ("utf-8", "gbk", "utf-16"):
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes(TEXT.encode(encoding))
        assert reading.inspect(path).characters == len(TEXT)
    damaged = bytearray(TEXT.encode("utf-8"))
    damaged[100] = 0xFF
    (tmp_path / "damaged.txt").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged.txt: not readable as UTF-8 or GBK text at byte (99|100|98)"):
        reading.inspect(tmp_path / "damaged.txt")


@pytest.mark.parametrize("offset", [0, 3, 300, 1998])
def test_a_damaged_utf8_file_is_refused_at_its_byte_and_not_read_as_gbk(offset: int, tmp_path: Path) -> None:
    content = bytearray(("好天气。" * 600).encode("utf-8"))
    content[offset] = 0xC1  # never part of UTF-8; a good first half of a GBK character
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken.txt: not readable as UTF-8 or GBK text at byte {offset} \(0xc1\)"):
        reading.inspect(path)


@pytest.mark.parametrize(("content", "words"), [
    ("好的，这是一个文件。".encode() + b"\0" + b"abc", "byte 30 is zero"),
    ("今天天气很好".encode("utf-16-le"), "byte"),
    ("caf\xe9 cr\xe8me br\xfbl\xe9e".encode("latin-1"), "at byte 3"),
    (TRADITIONAL.encode("big5"), "at byte 0"),
    ("日本語のテキストです。これはテストです。".encode("shift-jis"), "at byte"),
    (TEXT.encode("gbk") + b"\xff\xff", "at byte"),
    ("好好好".encode("utf-8")[:-1], "at byte 6"),
    (b"\xef\xbb\xbf" + "好".encode() + b"\xff", "not readable as UTF-8 text at byte 6 .0xff"),
])
def test_other_bytes_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other.txt: .*" + words):
        reading.inspect(path)


def test_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.json", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    def names(*inputs: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in reading.find_files([tmp_path / item for item in inputs])]

    assert names("*.txt") == ["a.txt", "b.txt", "odd[1].txt"]
    assert names("**/*.txt", "a.txt", "../" + tmp_path.name + "/a.txt") == ["a.txt", "b.txt", "deep/c.txt", "odd[1].txt"]
    assert names("") == ["a.txt", "b.txt", "deep/c.txt", "odd[1].txt"]
    assert names("odd[1].txt") == ["odd[1].txt"]
    with pytest.raises(InputError, match="nothing.*no such file"):
        names("a.txt", "nothing*")
    with pytest.raises(InputError, match="no input"):
        reading.find_files([])


def test_a_file_that_grows_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    source = reading.inspect(path)
    source.check_unchanged()
    path.write_text("xy")
    with pytest.raises(InputError, match="changed while it was being read"):
        source.check_unchanged()
