"""What a document is, for each format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pangu_lab.data.documents import check_format, clean_wikitext, read_documents
from pangu_lab.errors import InputError
from pangu_lab.tokenizer.reading import inspect

TEXT = "\n一\n　二 \n\n \t\n三\r\n四\r\r五\n\n"


def documents(path: Path, content: str, *how: str) -> list[str]:
    path.write_bytes(content.encode("utf-8"))
    return list(read_documents(inspect(path), *how))


def test_a_line_a_block_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert documents(path, TEXT, "text", "line") == ["一", "　二 ", "三", "四", "五"]
    assert documents(path, TEXT, "text", "block") == ["一\n　二 ", "三\n四", "五"]
    assert documents(path, TEXT, "text", "file") == ["一\n　二 \n\n \t\n三\n四\n\n五"]
    for unit in ("line", "block", "file"):
        assert documents(path, " \n\n　\n", "text", unit) == []
        assert documents(path, "最后", "text", unit) == ["最后"]


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x0bc\x0cd\x85e\x1cf"
    assert documents(tmp_path / "a.txt", text, "text", "line") == [text]


def test_wiki_paragraphs_without_headings_and_spacing(tmp_path: Path) -> None:
    content = (" \n = Robert Boulter = \n \n Robert Boulter is an English actor ( born 1972 ) . He had a role \n"
               " = = Career = = \n \n In 2000 @-@ 01 , 1 @,@ 500 people 's \" choice \" ; 3 @.@ 5 ° N . \n")
    assert documents(tmp_path / "a.txt", content, "wiki", "line") == [
        "Robert Boulter is an English actor (born 1972). He had a role\n== Career ==",
        "In 2000-01, 1,500 people's \"choice\"; 3.5°N."]


def test_wikitext_clean_up() -> None:
    assert clean_wikitext("a , b . c ! d ? e : f ; g") == "a, b. c! d? e: f; g"
    assert clean_wikitext("[ x ] { y } ' z '") == "[x] {y} 'z'"


def test_lambada_lines(tmp_path: Path) -> None:
    content = '{"text": " he said “yes” ..", "more": 1}\n\n{"text": "..."}\n{"text": "a\\r\\nb"}\n'
    assert documents(tmp_path / "a.jsonl", content, "lambada", "line") == ['he said "yes" ', "a\nb"]


@pytest.mark.parametrize(("line", "words"), [
    ("not json", "line 2: must be JSON"), ('["text"]', "line 2: must be JSON"), ('{"txt": "a"}', "line 2: must be JSON"),
    ('{"text": 5}', "must be a string"), ('{"text": "\\ud83d"}', "half a surrogate"), ('{"text": "\\u0000"}', "zero")])
def test_lambada_lines_that_cannot_be_used_are_named(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"a.jsonl: line 2: .*|{words}") as info:
        documents(tmp_path / "a.jsonl", json.dumps({"text": "good"}) + "\n" + line, "lambada", "line")
    assert words in str(info.value)


def test_unknown_formats_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="format 'wikki'.*did you mean 'wiki'"):
        check_format("wikki", "line")
    with pytest.raises(InputError, match="documents='lines'.*did you mean 'line'"):
        check_format("text", "lines")
