"""Rows of JSON, JSON lines and parquet, and the text that a field or a template of fields makes of one."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pangu_lab.errors import InputError, nearest

CHUNK = 1 << 20  # characters of a JSON file read at once
LARGEST = 1 << 28  # characters of a single row at most: a file that never ends a row is not held in memory whole
_DECODER = json.JSONDecoder(strict=False)  # tabs and the like may stand in a string as they are
_GAP = re.compile(r"[\s,]*")


class BadRow(Exception):
    """A row that gives no text; its message is the reason, the same for all rows of its kind."""


class RowText:
    """From a row to its text.

    Args:
        field: the field that holds it; None takes ``text``.
        template: several fields, such as ``《{title}》{paragraphs}``; lists are joined by line ends, ``{a.b}`` is
            field b of field a, ``\\n`` a line end, ``{{`` a brace.

    Raises:
        InputError: both are given, or the template is not one.
    """

    def __init__(self, field: str | None = None, template: str | None = None):
        if field is not None and template is not None:
            raise InputError("give a field or a template, not both")
        self.parts = [("", field or "text")] if template is None else _parts(template)

    def of(self, row: Any) -> str:
        """The text of a row.

        Raises:
            BadRow: it is no object, lacks a field, or holds something else than text there.
        """
        if isinstance(row, str) and self.parts == [("", "text")]:
            return _clean(row)
        if not isinstance(row, dict):
            raise BadRow("not an object with fields")
        return _clean("".join(before + ("" if name is None else _value(row, name)) for before, name in self.parts))

    def check_first(self, row: Any, where: str) -> None:
        """Refuse a whole file whose first row lacks a field, naming those it has."""
        if not isinstance(row, dict):
            return
        for _, name in self.parts:
            if name is not None and name.split(".")[0] not in row:
                there = ", ".join(str(key) for key in row)[:200]
                raise InputError(
                    f"{where}: has no field '{name}'{nearest(name, map(str, row))}; its fields are {there}: "
                    "name one with --field, or several with --template '《{title}》{paragraphs}'"
                )


def _parts(template: str) -> list[tuple[str, str | None]]:
    template = template.replace("\\n", "\n").replace("\\t", "\t")
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template '{template}': {error}; write {{{{ for a brace") from None
    for _, name, form, conversion in parsed:
        if name == "" or form or conversion or (name and re.search(r"[\[\]]", name)):
            raise InputError(f"template '{template}': a field is a name in braces, such as {{title}}, and nothing more")
    if not any(name for _, name, *_ in parsed):
        raise InputError(f"template '{template}' names no field: write one as {{title}}")
    return [(before, name) for before, name, *_ in parsed]


def _value(row: dict[str, Any], name: str) -> str:
    value: Any = row
    for key in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise BadRow(f"no field '{name}'")
        value = value[key]
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"'{name}' is {'null' if value is None else 'no text'}")
    return value


def _clean(text: str) -> str:
    if "\0" in text:
        raise BadRow("a zero character in the text")
    if re.search("[\ud800-\udfff]", text):
        raise BadRow("half a surrogate pair in the text")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise BadRow("empty")
    return text


def json_lines(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(``line 3``, row) of every line that is not blank; the row is a ``BadRow`` where it is not JSON."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"line {number}", _DECODER.decode(line.strip())
            except (ValueError, RecursionError):
                yield f"line {number}", BadRow("not JSON")


def json_rows(handle: IO[str]) -> Iterator[tuple[str, Any]]:
    """(``row 3``, row) of the array that a JSON file is, or of the values in it one after the other.

    Read piece by piece: the file may be larger than the memory. After something that is not JSON nothing can be
    told apart any more, and the rows end there with a ``BadRow``.
    """
    text, start, number, in_array, ended = "", 0, 0, None, False
    while True:
        start = _GAP.match(text, start).end() if in_array is not None else len(text) - len(text.lstrip())
        if in_array is None and start < len(text):
            in_array = text[start] == "["
            start += in_array
            continue
        if in_array and text[start : start + 1] == "]":
            return
        try:
            if start >= len(text):
                raise ValueError
            row, end = _DECODER.raw_decode(text, start)
            if end == len(text) and not ended:
                raise ValueError  # a number may go on in the next piece
        except RecursionError:
            yield f"row {number + 1}", BadRow("not JSON")
            return
        except ValueError:
            more = "" if ended else handle.read(CHUNK)
            if more and len(text) - start < LARGEST:
                text, start = text[start:] + more, 0
            elif not more and not ended:
                ended = True
            else:
                if start < len(text) or in_array:
                    yield f"row {number + 1}", BadRow("not JSON from there on")
                return
        else:
            number, start = number + 1, end
            yield f"row {number}", row
            if start > CHUNK:
                text, start = text[start:], 0


def parquet_rows(path: Path, wanted: RowText | None = None) -> Iterator[tuple[str, Any]]:
    """(``row 3``, row) of a parquet file, with the columns that ``wanted`` needs, or all."""
    parquet = _parquet(path)
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if wanted is not None:
            wanted.check_first(dict.fromkeys(columns), str(path))
            needed = {(name or "").split(".")[0] for _, name in wanted.parts}
            columns = [name for name in columns if name in needed]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def parquet_characters(path: Path) -> int:
    """About how many characters a parquet file holds: its uncompressed bytes, three a character."""
    parquet = _parquet(path)
    with parquet.ParquetFile(path) as file:
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        return sum(group.total_byte_size for group in groups) // 3


def _parquet(path: Path):
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs a package: pip install 'pangu-lab[corpus]'") from None
    return pyarrow.parquet
