"""What a document is, for each format."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_lab.corpus import Corpus, Reading
from pangu_lab.corpus.documents import clean_wikitext
from pangu_lab.errors import InputError

TEXT = "\n一\n　二 \n\n \t\n三\r\n四\r\r五\n\n"


def documents(path: Path, content: str, *how: str) -> list[str]:
    path.write_bytes(content.encode("utf-8"))
    return list(Corpus(path, Reading(*how)).documents())


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
    content = (
        " \n = Robert Boulter = \n \n Robert Boulter is an English actor ( born 1972 ) . He had a role \n"
        ' = = Career = = \n \n In 2000 @-@ 01 , 1 @,@ 500 people \'s " choice " ; 3 @.@ 5 ° N . \n'
    )
    assert documents(tmp_path / "a.txt", content, "wiki", "line") == [
        "Robert Boulter is an English actor (born 1972). He had a role\n== Career ==",
        'In 2000-01, 1,500 people\'s "choice"; 3.5°N.',
    ]


def test_wikitext_clean_up() -> None:
    assert clean_wikitext("a , b . c ! d ? e : f ; g") == "a, b. c! d? e: f; g"
    assert clean_wikitext("[ x ] { y } ' z '") == "[x] {y} 'z'"


def test_lambada_lines(tmp_path: Path) -> None:
    content = '{"text": " he said “yes” ..", "more": 1}\n\n{"text": "..."}\n{"text": "a\\r\\nb"}\n'
    assert documents(tmp_path / "a.jsonl", content, "lambada", "line") == ['he said "yes" ', "a\nb"]


def test_articles_of_wikiextractor(tmp_path: Path) -> None:
    content = (
        '<doc id="1" url="u" title="数学">\n数学\n\n数学是研究数量的&lt;学科&gt;。\n</doc>\n'
        '<doc id="2" url="u" title="空">\n\n</doc>\n<doc id="3" url="u" title="诗">\n诗\n</doc>\n'
    )
    assert documents(tmp_path / "wiki_00", content) == ["数学\n\n数学是研究数量的<学科>。", "诗"]


def test_unknown_formats_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="format 'wikki'.*did you mean 'wiki'"):
        Reading("wikki")
    with pytest.raises(InputError, match="documents='lines'.*did you mean 'line'"):
        Reading("text", "lines")
