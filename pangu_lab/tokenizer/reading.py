"""Finding the user's text files and reading them right, or refusing them by name and byte.

A file is UTF-8 (with or without a byte-order mark), UTF-16 with its mark, or GBK / GB 18030; the encoding is determined
from the whole file before any work starts. A damaged UTF-8 file often happens to decode as GBK, into
nonsense; so GBK is accepted only if the bytes as a whole do not look like UTF-8 and the text looks Chinese.
Everything else is refused with the offset of the first bad byte.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Union

from pangu_lab.errors import InputError

Inputs = Union[str, Path, Iterable[Union[str, Path]]]
BLOCK = 1 << 20
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Characters that make up a tenth of any Chinese text, modern or classical, in both scripts.
COMMON = frozenset("的一是不了在人有我他她你這这個个上們们來来到時时大地為为子中說说生國国年著着就那和要出也得裡里後后"
                   "自以會会之其而於于者曰，。、：“”")


@dataclass(frozen=True)
class Source:
    """One text file, looked through to its end."""

    path: Path
    encoding: str
    size: int  # bytes
    characters: int
    sha256: str

    def open(self) -> IO[str]:
        """The text, all line ends as ``\\n``."""
        return open(self.path, encoding=self.encoding, newline=None)

    def check_unchanged(self) -> None:
        """Raise InputError if the file has another size than when it was looked through."""
        if self.path.stat().st_size != self.size:
            raise InputError(f"{self.path}: the file changed while it was being read: start again when it is complete")


def find_files(inputs: Inputs, pattern: str = "*.txt") -> list[Path]:
    """Files named by paths, glob patterns (``**`` goes into folders) and folders (all ``pattern`` files in them).

    Sorted by path, each file once, so that the result does not depend on the file system.

    Raises:
        InputError: something named does not exist, or nothing at all was named.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    found: dict[Path, Path] = {}
    for item in given:
        matches = _matches(str(item), pattern)
        if not matches:
            raise InputError(f"{item}: no such file" + (f" (looked for {pattern} in it)" if os.path.isdir(item) else ""))
        for path in matches:
            found.setdefault(path.resolve(), path)
    if not found:
        raise InputError("no input: name at least one text file")
    return sorted(found.values())


def _matches(item: str, pattern: str) -> list[Path]:
    if os.path.isdir(item):
        return [path for path in Path(item).rglob(pattern) if path.is_file()]
    if os.path.isfile(item):
        return [Path(item)]  # before any [ or * in its name is read as a pattern
    return [Path(path) for path in glob.glob(item, recursive=True) if os.path.isfile(path)]


def inspect(path: Path) -> Source:
    """Read a file to its end, find its encoding, and take its size and sha256.

    Raises:
        InputError: it cannot be read, or is not text in a known encoding; with the offset of the first bad byte.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(4)
            marked = next((encoding for mark, encoding in MARKS if head.startswith(mark)), None)
            encoding = marked or "utf-8"
            handle.seek(0)
            characters, bad = _decode_all(handle, encoding)
            if bad is not None and marked is None and _looks_like_gbk(handle, bad):
                handle.seek(0)
                encoding = "gb18030"
                characters, bad = _decode_all(handle, encoding)
            handle.seek(0)
            digest, size = _sha256(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if bad is not None:
        raise InputError(f"{path}: {_complaint(path, encoding, bad)}")
    return Source(Path(path), encoding, size, characters, digest)


def _complaint(path: Path, encoding: str, offset: int) -> str:
    with open(path, "rb") as handle:
        handle.seek(offset)
        byte = handle.read(1)
    if byte == b"\0" and encoding != "utf-16":
        return f"byte {offset} is zero: not a text file, or UTF-16 without its mark; save it as UTF-8"
    name = {"utf-8": "UTF-8 or GBK", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "gb18030": "UTF-8 or GBK"}[encoding]
    shown = f" (0x{byte.hex()})" if byte else ""
    return f"not readable as {name} text at byte {offset}{shown}: mend the file or save it as UTF-8"


def _sha256(handle: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while block := handle.read(BLOCK):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _decode_all(handle: IO[bytes], encoding: str) -> tuple[int, int | None]:
    """Characters decoded, and the offset of the first byte that is no text (None: all is well)."""
    characters = offset = 0
    if encoding == "utf-8-sig":
        offset = len(handle.read(len(codecs.BOM_UTF8)))
    decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))("strict")
    while True:
        block = handle.read(BLOCK)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return characters, offset - pending + error.start
        if "\0" in text:
            zero = block.find(b"\0\0" if encoding == "utf-16" else b"\0")
            return characters, offset + max(0, zero)
        characters += len(text)
        offset += len(block)
        if not block:
            return characters, None


def _looks_like_gbk(handle: IO[bytes], bad: int) -> bool:
    """Whether the bytes around the first that is not UTF-8 speak for GBK.

    Of a UTF-8 text with a damaged spot most bytes above 127 still form UTF-8 sequences; of a GBK text hardly any.
    """
    handle.seek(0 if bad < BLOCK // 2 else bad - BLOCK // 2)
    sample = handle.read(BLOCK)
    high = sum(byte > 127 for byte in sample)
    as_utf8 = sample.decode("utf-8", "ignore")
    if 2 * (len(as_utf8.encode("utf-8")) - sum(c < "\x80" for c in as_utf8)) > high:
        return False
    text = [c for c in sample.decode("gb18030", "ignore") if c > "\x7f"]
    if not text:
        return False
    simplified = len("".join(text).encode("gb2312", "ignore")) / (2 * len(text))
    common = sum(c in COMMON for c in text) / len(text)
    return simplified >= 0.95 or common >= 0.04
