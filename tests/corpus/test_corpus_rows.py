"""Rows of JSON, JSON lines and parquet: their text by a field or a template, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pangu_lab.corpus import Corpus, Reading
from pangu_lab.corpus.rows import BadRow, RowText
from pangu_lab.errors import InputError

POEMS = [
    {
        "title": "春晓",
        "author": "孟浩然",
        "paragraphs": ["春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"],
        "id": 5,
    },
    {
        "title": "登鹳雀楼",
        "author": "王之涣",
        "paragraphs": ["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。"],
        "id": 6,
    },
]
WRITTEN = [
    "《春晓》春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。",
    "《登鹳雀楼》白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。",
]


def read(path: Path, content: str | bytes, **how: object) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(Corpus(path, Reading(**how)).documents())


def lines_of(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("form", ["array", "pretty", "lines", "values", "gbk", "utf-16"])
def test_rows_in_every_form_give_the_same_text(form: str, tmp_path: Path) -> None:
    content = {
        "array": json.dumps(POEMS),
        "pretty": json.dumps(POEMS, indent=2, ensure_ascii=False),
        "lines": lines_of(POEMS),
        "values": "\n".join(json.dumps(poem, indent=1) for poem in POEMS),
        "gbk": lines_of(POEMS).encode("gbk"),
        "utf-16": lines_of(POEMS).encode("utf-16"),
    }[form]
    assert read(tmp_path / "a.json", content, template="《{title}》{paragraphs}") == WRITTEN
    assert read(tmp_path / "a.txt", content, field="title") == ["春晓", "登鹳雀楼"]


def test_parquet_gives_the_same_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(POEMS), tmp_path / "a.parquet")
    corpus = Corpus(tmp_path / "a.parquet", Reading(template="《{title}》{paragraphs}"))
    assert list(corpus.documents()) == WRITTEN
    assert 0 < corpus.read <= corpus.characters
    with pytest.raises(InputError, match="has no field 'text'; its fields are title, author, paragraphs, id"):
        list(Corpus(tmp_path / "a.parquet").documents())


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path: Path) -> None:
    texts = ["一\u2028二", "三\x85四", "五\x1c六", "七\r\n八"]
    content = "".join(f'{{"text": "{text}"}}\n' if "\r" not in text else json.dumps({"text": text}) for text in texts)
    assert read(tmp_path / "a.jsonl", content) == [*texts[:3], "七\n八"]


def test_rows_of_no_use_are_counted_by_reason_with_the_first_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        '{"text": "好"}',
        "no json",
        '{"text": null}',
        '{"text": 5}',
        '{"text": ["a", 1]}',
        '{"txt": "a"}',
        '["a"]',
        "{",
        '""',
        '{"text": "\\ud83d"}',
        '{"text": "\\u0000"}',
        '{"text": "  "}',
        "[" * 100_000,
        '{"text": "也好"}',
    ]
    path.write_text("\n".join(rows))
    corpus = Corpus(path)
    assert list(corpus.documents()) == ["好", "5", "也好"]
    assert corpus.report.left_out == {
        "not JSON": 3,
        "'text' is null": 1,
        "'text' is no text": 1,
        "no field 'text'": 1,
        "not an object with fields": 1,
        "half a surrogate pair in the text": 1,
        "a zero character in the text": 1,
        "empty": 2,
    }
    assert corpus.report.lines()[0] == f"left out: 3 × not JSON (first: {path}: line 2)"
    with pytest.raises(InputError, match="a.jsonl: line 2: not JSON: mend it, or read on without --strict"):
        list(Corpus(path, Reading(strict=True)).documents())


def test_a_broken_array_gives_the_rows_before_the_break(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "一"}, {"text": "二"}, {"text": ')
    corpus = Corpus(path)
    assert list(corpus.documents()) == ["一", "二"]
    assert corpus.report.lines() == [f"left out: 1 × not JSON from there on (first: {path}: row 3)"]


def test_long_arrays_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pangu_lab.corpus.rows.CHUNK", 7)
    numbers = [{"text": f"第{number}行" * (number % 5 + 1)} for number in range(60)]
    for indent in (None, 2):
        assert read(tmp_path / "a.json", json.dumps(numbers, indent=indent)) == [row["text"] for row in numbers]


def test_the_first_row_without_the_field_is_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"line 1: has no field 'text'; its fields are title, author, paragraphs, id: name "
        r"one with --field, or several with --template",
    ):
        read(tmp_path / "a.jsonl", lines_of(POEMS))
    with pytest.raises(InputError, match=r"has no field 'titel' \(did you mean 'title'\?\)"):
        read(tmp_path / "a.jsonl", lines_of(POEMS), field="titel")
    with pytest.raises(InputError, match="is prose and has no fields"):
        read(tmp_path / "a.txt", "从前", field="title")


def test_fields_in_fields_numbers_and_braces() -> None:
    row = {"meta": {"title": "甲"}, "n": 3, "a.b": "whole", "list": ["x", "y"]}
    assert RowText(None, r"{{{meta.title}}} {n}\n{list}|{a.b}").of(row) == "{甲} 3\nx\ny|whole"
    with pytest.raises(BadRow, match="no field 'meta.author'"):
        RowText(None, "{meta.author}").of(row)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("no field", "names no field"),
        ("{", "write {{ for a brace"),
        ("{}", "a name in braces"),
        ("{a!r}", "a name in braces"),
        ("{a:>9}", "a name in braces"),
        ("{a[0]}", "a name in braces"),
    ],
)
def test_templates_that_are_none_are_refused(template: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Reading(template=template)


def test_a_field_and_a_template_are_one_too_many() -> None:
    with pytest.raises(InputError, match="a field or a template, not both"):
        Reading(field="a", template="{a}")


def test_traditional_characters_become_simplified(tmp_path: Path) -> None:
    pytest.importorskip("opencc")
    assert read(tmp_path / "a.txt", "皇后與後宮，頭髮和發現。", simplified=True) == ["皇后与后宫，头发和发现。"]
