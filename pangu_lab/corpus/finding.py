"""Which files are taken, and what each of them holds.

In a folder or an archive the ending decides, upper or lower case: prose (``.txt``, ``.md``, or none, as ``wiki_00``), rows
(``.json``, ``.jsonl``, ``.ndjson``, ``.parquet``), each perhaps compressed, and archives. The rest is left out and counted. A file
that is named by itself is taken whatever its ending. What it holds is then decided by its content.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pangu_lab.errors import InputError

Inputs = str | Path | Iterable[str | Path]
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz")
ROWS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
PROSE = (".txt", ".text", ".md", "")
_TABLES = {".csv": "CSV", ".tsv": "TSV", ".html": "HTML", ".htm": "HTML", ".xml": "XML"}


def find_files(inputs: Inputs) -> tuple[list[Path], list[Path]]:
    """Files named by paths, glob patterns (``**`` goes into folders) and folders.

    Returns:
        The files to read, sorted by path and each once, so that the result does not depend on the file system; and
        those of folders that are left out.

    Raises:
        InputError: something named does not exist or holds nothing to read, or nothing at all was named.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    found: dict[Path, Path] = {}
    left_out: dict[Path, Path] = {}
    for item in given:
        taken, others = _matches(str(item))
        if not taken:
            there = f": none of the {len(others)} files in it is text" if others else ""
            raise InputError(
                f"{item}: " + ("an empty folder" if Path(item).is_dir() and not others else f"no such file{there}")
            )
        for path in taken:
            found.setdefault(path.resolve(), path)
        for path in others:
            left_out.setdefault(path.resolve(), path)
    if not found:
        raise InputError("no input: name at least one text file")
    return sorted(found.values()), sorted(path for real, path in left_out.items() if real not in found)


def _matches(item: str) -> tuple[list[Path], list[Path]]:
    if os.path.isdir(item):
        files = [path for path in Path(item).rglob("*") if path.is_file()]
        visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(item).parts)]
        return (
            [path for path in visible if is_taken(path.name)],
            [path for path in visible if not is_taken(path.name)],
        )
    if os.path.isfile(item):
        return [Path(item)], []  # before any [ or * in its name is read as a pattern
    return [Path(path) for path in glob.glob(item, recursive=True) if os.path.isfile(path)], []


def is_taken(name: str) -> bool:
    """Whether a file of a folder or an archive is read."""
    return ending(name) in (*PROSE, *ROWS, *ARCHIVES)


def ending(name: str) -> str:
    """``.json`` of ``A.JSON.gz``; empty without one."""
    name = name.rsplit("/", 1)[-1].lower()
    stem, last = os.path.splitext(name)
    return os.path.splitext(stem)[1] if last in COMPRESSED else last


def kind_of(name: str, head: bytes) -> str:
    """What a file holds, by its ending and its first bytes: prose, wikiextractor, jsonl, json or parquet.

    Raises:
        InputError: a table or a page, which nobody means as prose.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "ignore").lstrip()
    known = ROWS.get(ending(name))
    if known in ("json", "jsonl"):
        return "jsonl" if known == "jsonl" or _is_json_lines(text) else "json"
    if text.startswith("<doc "):
        return "wikiextractor"
    if text.startswith("{") and _is_json_lines(text):
        return "jsonl"
    if re.match(r"\[\s*[{\"]|\{\s*\"", text):
        return "json"
    what = _TABLES.get(ending(name)) or (
        "HTML"
        if re.match(r"<!doctype html|<html", text, re.IGNORECASE)
        else "XML"
        if text.startswith("<?xml")
        else None
    )
    if what:
        raise InputError(
            f"is {what}, not prose: turn it into text or JSON lines, or take it as it is with --format text"
        )
    return "prose"


def _is_json_lines(text: str) -> bool:
    """Whether the first line is a JSON object by itself, and so is the second as far as it is here."""
    first, _, rest = text.partition("\n")
    try:
        if not isinstance(json.loads(first), dict):
            return False
    except (ValueError, RecursionError):
        return False
    return not rest.strip() or rest.lstrip().startswith("{")
