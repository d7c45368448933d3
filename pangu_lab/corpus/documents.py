"""Lines of prose to documents: what a document is in plain text, in WikiText and in WikiExtractor's output.

A document is never empty, and its text is untouched except where a format's own clean-up is named.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

UNITS = ("line", "block", "file")


def documents_of(lines: Iterable[str], kind: str, unit: str) -> Iterator[str]:
    """The documents of a text, in order.

    Args:
        lines: with their line ends, each ``\\n``.
        kind: ``prose``; ``wiki``, WikiText's paragraphs with its spacing undone and headings left out; or
            ``wikiextractor``, the articles between ``<doc …>`` and ``</doc>``.
        unit: what a document of prose is: a ``line``, a ``block`` of lines between blank ones, or the whole ``file``.
    """
    if kind == "wiki":
        cleaned = (clean_wikitext(block) for block in _blocks(lines))
        return (block for block in cleaned if block.strip() and not block.lstrip().startswith("="))
    if kind == "wikiextractor":
        return _articles(lines)
    return {"line": _lines, "block": _blocks, "file": _whole}[unit](lines)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\n") for line in lines if line.strip())


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block).rstrip("\n")
            block = []
    if block:
        yield "".join(block).rstrip("\n")


def _whole(lines: Iterable[str]) -> Iterator[str]:
    text = "".join(lines)
    if text.strip():
        yield text.strip("\n")


def _articles(lines: Iterable[str]) -> Iterator[str]:
    article: list[str] = []
    for line in lines:
        tag = line.rstrip("\n")
        if tag.startswith("<doc ") and tag.endswith(">") or tag == "</doc>":
            text = html.unescape("".join(article)).strip("\n")
            if text.strip():
                yield text
            article = []
        else:
            article.append(line)
    text = html.unescape("".join(article)).strip("\n")
    if text.strip():
        yield text


def clean_lambada(text: str) -> str:
    """The published clean-up of the English data set: plain quotes, no outer periods."""
    return text.replace("“", '"').replace("”", '"').strip().strip(".")


# WikiText was published in pieces set apart by spaces; these undo it.
_BRACKETS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(\()\s*([^)]*?)\s*(\))",
        r"(\[)\s*([^\]]*?)\s*(\])",
        r"(\{)\s*([^}]*?)\s*(\})",
        r'(")\s*([^"]*?)\s*(")',
        r"(')\s*([^']*?)\s*(')",
    )
)


def clean_wikitext(text: str) -> str:
    """Undo WikiText's spacing around punctuation, numbers, brackets, quotes and heading marks."""
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for pattern in _BRACKETS:
        text = pattern.sub(r"\1\2\3", text)
    for count in (4, 3, 2):
        text = text.replace(" ".join("=" * count), "=" * count)
    text = text.replace(" ° ", "°").replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" 's", "'s").strip(" ")
