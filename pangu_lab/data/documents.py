"""From files to documents: the definition of a document for each format that can be prepared.

Line ends arrive here as ``\\n`` whatever the file had. A document is never empty, and its text is untouched
except where a format's own clean-up is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from pangu_lab.errors import InputError, nearest
from pangu_lab.tokenizer.reading import Source

FORMATS = ("text", "wiki", "lambada")
UNITS = ("line", "block", "file")
PATTERNS = {"text": "*.txt", "wiki": "*.txt", "lambada": "*.json*"}  # what counts in a folder given as input


def check_format(text_format: str, documents: str) -> None:
    """Raise InputError for a format or a unit that does not exist."""
    if text_format not in FORMATS:
        raise InputError(f"format '{text_format}' is not known{nearest(text_format, FORMATS)}: {', '.join(FORMATS)}")
    if documents not in UNITS:
        raise InputError(f"documents='{documents}' is not known{nearest(documents, UNITS)}: {', '.join(UNITS)}")


def read_documents(source: Source, text_format: str, unit: str) -> Iterator[str]:
    """The documents of one file, in order.

    Args:
        text_format: ``text``; ``wiki``, WikiText's paragraphs with its spacing undone and headings left out;
            ``lambada``, JSON lines with a ``text``, typographic quotes made plain and outer periods stripped.
        unit: what a document of plain text is: a ``line``, a ``block`` of lines between blank ones, or the
            whole ``file``. The other formats have their own.

    Raises:
        InputError: a line of JSON cannot be used.
    """
    if text_format == "wiki":
        cleaned = (clean_wikitext(block) for block in _blocks(source))
        return (block for block in cleaned if block.strip() and not block.lstrip().startswith("="))
    if text_format == "lambada":
        return _lambada(source)
    return {"line": _lines, "block": _blocks, "file": _whole}[unit](source)


def _lines(source: Source) -> Iterator[str]:
    with source.open() as handle:
        for line in handle:
            if line.strip():
                yield line.rstrip("\n")


def _blocks(source: Source) -> Iterator[str]:
    block: list[str] = []
    with source.open() as handle:
        for line in handle:
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block).rstrip("\n")
                block = []
    if block:
        yield "".join(block).rstrip("\n")


def _whole(source: Source) -> Iterator[str]:
    with source.open() as handle:
        text = handle.read()
    if text.strip():
        yield text.strip("\n")


def _lambada(source: Source) -> Iterator[str]:
    with source.open() as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                text = _json_text(line, f"{source.path}: line {number}")
                text = text.replace("“", '"').replace("”", '"').strip().strip(".")
                if text.strip():
                    yield text


def _json_text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f'{where}: must be JSON with a "text", such as {{"text": "…"}}') from None
    if not isinstance(text, str):
        raise InputError(f'{where}: "text" must be a string')
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        raise InputError(f"{where}: the text holds a zero character or half a surrogate pair")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# WikiText was published in pieces set apart by spaces; these undo it.
_BRACKETS = tuple(re.compile(pattern) for pattern in (
    r"(\()\s*([^)]*?)\s*(\))", r"(\[)\s*([^\]]*?)\s*(\])", r"(\{)\s*([^}]*?)\s*(\})",
    r'(")\s*([^"]*?)\s*(")', r"(')\s*([^']*?)\s*(')"))


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
