"""``Corpus``: files looked through once, then read as documents in a fixed order.

Looking through finds what each file is and how it is encoded, before any work starts. Reading streams: neither memory
nor disk space grows with the files. What cannot be used is left out and counted by reason, with the first place of
each, unless ``strict`` asks for an error.
"""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pangu_lab.corpus import encoding as encodings
from pangu_lab.corpus.containers import head_of, members, reading
from pangu_lab.corpus.documents import UNITS, clean_lambada, documents_of
from pangu_lab.corpus.finding import Inputs, ending, find_files, is_taken, kind_of
from pangu_lab.corpus.rows import BadRow, RowText, json_lines, json_rows, parquet_characters, parquet_rows
from pangu_lab.errors import InputError, nearest
from pangu_lab.files import sha256_file
from pangu_lab.progress import Progress, silent

FORMATS = ("auto", "text", "json", "jsonl", "parquet", "wiki", "wikiextractor", "lambada")
ROW_KINDS = ("json", "jsonl", "lambada", "parquet")
BAD_BYTES = ("refuse", "replace", "skip")
MARK = "\ufeff"  # a byte-order mark; inside a text it is left from files that were put together
REPLACED = "\ufffd"


@dataclass(frozen=True)
class Reading:
    """How files become documents.

    Attributes:
        text_format: ``auto`` by ending and content, or one of ``FORMATS`` for all of them. ``lambada`` is JSON lines with
            the published clean-up of the English data set: plain quotes, no outer periods.
        documents: what a document of plain text is: a ``line``, a ``block`` between blank lines, or the whole ``file``.
            A row, an article and a paragraph of the other formats are a document each.
        field, template: what text a row gives, see ``rows.RowText``.
        simplified: traditional characters become simplified ones (OpenCC).
        bad_bytes: what to do with bytes that are no text: ``refuse`` the file, ``replace`` them by U+FFFD, or ``skip`` the lines
            that have them.
        strict: a row that cannot be used is an error, and not left out.
    """

    text_format: str = "auto"
    documents: str = "line"
    field: str | None = None
    template: str | None = None
    simplified: bool = False
    bad_bytes: str = "refuse"
    strict: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.text_format, FORMATS),
            ("documents", self.documents, UNITS),
            ("bad_bytes", self.bad_bytes, BAD_BYTES),
        ):
            if value not in known:
                sign = f"{name} '{value}'" if name == "format" else f"{name}='{value}'"
                raise InputError(f"{sign} is not known{nearest(str(value), known)}: {', '.join(known)}")
        RowText(self.field, self.template)  # refuses what makes no sense

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not as by default."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != item.default
        }


@dataclass
class Report:
    """What was left out while documents were read: how many of each reason, and where the first was."""

    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    first: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        self.left_out[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """A line for each reason, the commonest first."""
        return [
            f"left out: {count:,} × {reason} (first: {self.first[reason]})"
            for reason, count in self.left_out.most_common()
        ]


@dataclass(frozen=True)
class Member:
    """A file in a file: its name in the archive (empty for the file itself), what it holds (empty: it is not read), and
    its size in characters."""

    name: str
    kind: str
    encoding: str = ""
    characters: int = 0


@dataclass(frozen=True)
class Source:
    """A file, looked through to its end."""

    path: Path
    size: int
    sha256: str
    members: tuple[Member, ...]

    @property
    def characters(self) -> int:
        return sum(member.characters for member in self.members)

    @property
    def encoding(self) -> str:
        """Of its texts; several are joined by commas."""
        return ", ".join(sorted({member.encoding for member in self.members if member.kind}))

    def check_unchanged(self) -> None:
        """Raise InputError if the file has another size than when it was looked through."""
        if self.path.stat().st_size != self.size:
            raise InputError(f"{self.path}: the file changed while it was being read: start again when it is complete")


class Corpus:
    """Documents of files, folders and archives.

    Args:
        inputs: paths, glob patterns (``**`` too) or folders; read in the order of their paths, each once.
        how: see ``Reading``.
        progress: called while files are looked through.

    Attributes:
        sources: the files.
        characters: in them all; of rows, with the syntax around their fields.
        read: characters read so far by the last ``documents``.
        report: what the last ``documents`` left out so far.

    Raises:
        InputError: a file is missing, damaged, no text, or of a kind that is not read.
    """

    def __init__(self, inputs: Inputs, how: Reading = Reading(), progress: Progress = silent):
        self.how, self.report, self.read = how, Report(), 0
        paths, self._others = find_files(inputs)
        self.sources: list[Source] = []
        for path in paths:
            progress(0, None, f"looking through {path.name}")
            self.sources.append(inspect(path, how))
        self._text = RowText(how.field, how.template)
        self._convert = simplifier() if how.simplified else None

    @property
    def characters(self) -> int:
        return sum(source.characters for source in self.sources)

    def notes(self) -> list[str]:
        """What a person should know of the files, a line each: what was not taken, and rows that stand in for prose."""
        names = [path.name for path in self._others]
        names += [member.name for source in self.sources for member in source.members if not member.kind]
        notes = []
        if names:
            endings = collections.Counter(ending(name) or "without an ending" for name in names)
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(endings.items()))
            notes.append(f"not read: {len(names)} other file{'s' * (len(names) > 1)} ({kinds})")
        for source in self.sources:
            kinds = {member.kind for member in source.members}
            if kinds & {"json", "jsonl"} and ending(source.path.name) not in (
                ".json",
                ".jsonl",
                ".ndjson",
                ".zip",
                ".tar",
                ".tgz",
            ):
                notes.append(
                    f"{source.path}: read as {'/'.join(sorted(kinds))}, because that is what it holds "
                    "(--format text takes it as it is)"
                )
        return notes

    def documents(self) -> Iterator[str]:
        """Every document once, in order; none is empty.

        Raises:
            InputError: a file cannot be read, its first row lacks the field, or with ``strict`` any row is of no use.
        """
        self.report, self.read = Report(), 0
        for source in self.sources:
            for where, text in self._texts(source):
                if self._convert is not None:
                    text = self._convert(text)
                if text.strip():
                    yield text
                else:
                    self._skip("empty", where)

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(where it is, row) of every row of JSON, JSON lines and parquet files, whatever its fields; other files are skipped.

        Raises:
            InputError: a file cannot be read.
        """
        self.report, self.read = Report(), 0
        for source in self.sources:
            for name, kind, content in self._members(source):
                if kind not in ROW_KINDS:
                    self._skip(f"{kind}, which has no rows", name)
                    continue
                for where, row in content:
                    if isinstance(row, BadRow):
                        self._skip(str(row), f"{name}: {where}")
                    else:
                        yield f"{name}: {where}", row

    def check_unchanged(self) -> None:
        """Raise InputError if a file has another size than when it was looked through."""
        for source in self.sources:
            source.check_unchanged()

    def _texts(self, source: Source) -> Iterator[tuple[str, str]]:
        """(where it is, text)"""
        for name, kind, content in self._members(source, self._text):
            if kind in ROW_KINDS:
                for where, text in self._of_rows(name, content):
                    yield where, clean_lambada(text) if kind == "lambada" else text
            else:
                for text in documents_of(content, kind, self.how.documents):
                    yield name, text

    def _members(self, source: Source, wanted: RowText | None = None) -> Iterator[tuple[str, str, Iterator[Any]]]:
        """(name, kind, content) of every text in a file; the content are lines, or (where, row) of the kinds with rows.

        ``wanted``: the fields that are needed; None for all.
        """
        if [member.kind for member in source.members] == ["parquet"]:
            yield str(source.path), "parquet", self._measured(parquet_rows(source.path, wanted))
            return
        for (_, stream), member in zip(members(source.path), source.members):
            if member.kind:
                name = f"{source.path}: {member.name}" if member.name else str(source.path)
                handle = _decoded(stream, member.encoding, self.how.bad_bytes)
                with reading(source.path):
                    lines = self._lines(handle, name)
                    yield (
                        name,
                        member.kind,
                        (
                            json_rows(_Counted(handle, self))
                            if member.kind == "json"
                            else json_lines(lines)
                            if member.kind in ROW_KINDS
                            else lines
                        ),
                    )

    def _measured(self, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Rows that were not read as text, for ``read``."""
        for where, row in rows:
            self.read = min(
                self.read + sum(len(value) for value in row.values() if isinstance(value, (str, list))), self.characters
            )
            yield where, row

    def _lines(self, handle: IO[str], name: str) -> Iterator[str]:
        for number, line in enumerate(handle, 1):
            self.read += len(line)
            if MARK in line:
                line = line.replace(MARK, "")
            if REPLACED in line and self.how.bad_bytes == "skip":
                self._skip("bytes that are no text", f"{name}: line {number}")
                continue
            yield line

    def _of_rows(self, name: str, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
        first = True
        for where, row in rows:
            where = f"{name}: {where}"
            try:
                if isinstance(row, BadRow):
                    raise row
                if first:
                    self._text.check_first(row, where)
                    first = False
                text = self._text.of(row)
                if REPLACED in text and self.how.bad_bytes == "skip":
                    raise BadRow("bytes that are no text")
            except BadRow as problem:
                self._skip(str(problem), where)
                continue
            yield where, text

    def _skip(self, reason: str, where: str) -> None:
        if self.how.strict:
            raise InputError(f"{where}: {reason}: mend it, or read on without --strict")
        self.report.skip(reason, where)


class _Counted:
    """A text handle whose reading is counted."""

    def __init__(self, handle: IO[str], corpus: Corpus):
        self.handle, self.corpus = handle, corpus

    def read(self, size: int) -> str:
        text = self.handle.read(size)
        self.corpus.read += len(text)
        return text


def inspect(path: Path, how: Reading = Reading()) -> Source:
    """Read a file to its end, and find what it holds and how its texts are encoded.

    Raises:
        InputError: it cannot be read, or is not text; with the offset of the first bad byte.
    """
    found: list[Member] = []
    for name, stream in members(path):
        where = f"{path}: {name}" if name else str(path)
        with reading(path):
            if name and not is_taken(name):
                found.append(Member(name, ""))
                continue
            head = head_of(stream)
            kind = _kind(where, name or path.name, head, how)
            if kind == "parquet":
                if name:
                    raise InputError(f"{where}: parquet inside an archive is not read: unpack it first")
                found.append(Member(name, kind, "utf-8", parquet_characters(path)))
                continue
            result = encodings.find_encoding(iter(lambda stream=stream: stream.read(encodings.BLOCK), b""))
        if result.bad is not None and how.bad_bytes == "refuse":
            raise InputError(f"{where}: {result.complaint}")
        found.append(Member(name, kind, result.encoding, result.characters))
    if not any(member.kind for member in found):
        raise InputError(f"{path}: holds no text that can be read")
    return Source(Path(path), path.stat().st_size, sha256_file(path), tuple(found))


def _kind(where: str, name: str, head: bytes, how: Reading) -> str:
    if how.text_format != "auto":
        return "prose" if how.text_format == "text" else how.text_format
    try:
        kind = kind_of(name, head)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if (how.field or how.template) and kind in ("prose", "wikiextractor"):
        raise InputError(f"{where}: is prose and has no fields: leave out --field and --template")
    return kind


def _decoded(stream: IO[bytes], encoding: str, bad_bytes: str) -> IO[str]:
    """The text of a stream, all line ends as ``\\n``."""
    errors = encodings.EURO if bad_bytes == "refuse" else encodings.EURO_OR_MARK
    return io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline=None)


def simplifier() -> Callable[[str], str]:
    """Traditional characters to simplified ones.

    Raises:
        InputError: OpenCC is not installed.
    """
    try:
        import opencc
    except ImportError:
        raise InputError("simplified characters need OpenCC: pip install 'pangu-lab[corpus]'") from None
    return opencc.OpenCC("t2s").convert
