"""Which files of a folder are taken, and what each is seen to hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_lab.corpus import Corpus, find_files
from pangu_lab.corpus.finding import kind_of
from pangu_lab.errors import InputError


def test_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "A.TXT",
        "deep/c.txt",
        "d.JSON",
        "wiki/AA/wiki_00",
        "odd[1].txt",
        "e.jsonl.gz",
        "f.pdf",
        ".hidden.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")

    def names(*inputs: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_files([tmp_path / item for item in inputs])[0]]

    assert names("*.txt") == ["b.txt", "odd[1].txt"]
    assert names("**/*.txt", "b.txt", "../" + tmp_path.name + "/b.txt") == ["b.txt", "deep/c.txt", "odd[1].txt"]
    assert names("") == ["A.TXT", "b.txt", "d.JSON", "deep/c.txt", "e.jsonl.gz", "odd[1].txt", "wiki/AA/wiki_00"]
    assert find_files(tmp_path)[1] == [tmp_path / "f.pdf"]
    assert names("odd[1].txt") == ["odd[1].txt"]
    with pytest.raises(InputError, match="nothing.*no such file"):
        names("b.txt", "nothing*")
    with pytest.raises(InputError, match="no input"):
        find_files([])


def test_a_folder_without_text_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an empty folder$"):
        find_files(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(InputError, match="none of the 1 files in it is text"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.txt", "从前有座山。", "prose"),
        ("wiki_00", "从前", "prose"),
        ("a.txt", '{"text":"\\u6625"}\n{"text":"a"}\n', "jsonl"),
        ("a.json", '{"text":"a"}\n{"text":"b"}\n', "jsonl"),
        ("a.json", '[\n {"text": "a"}]', "json"),
        ("a.dat", '[{"text": "a"}]', "json"),
        ("a.txt", '{\n "text": "a"\n}', "json"),
        ("a.jsonl", "not json", "jsonl"),
        ("wiki_00", '<doc id="1" url="" title="">', "wikiextractor"),
        ("a.txt", "{他说}\n", "prose"),
        ("a.txt", "[一]\n", "prose"),
        ("A.JSONL.GZ", '{"text": "a"}', "jsonl"),
    ],
)
def test_what_a_file_holds_is_seen(name: str, head: str, kind: str) -> None:
    assert kind_of(name, head.encode()) == kind
    assert kind_of(name, "\ufeff".encode() + head.encode()) == kind


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"a,b\n1,2\n", "is CSV, not prose"),
        ("a.txt", b"<!DOCTYPE html><html>", "is HTML, not prose"),
        ("a.txt", b"%PDF-1.7 ...", "is a PDF document"),
        ("a.txt", b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Office document"),
    ],
)
def test_files_of_another_kind_are_never_taken_for_prose(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {words}"):
        Corpus(tmp_path / name)
