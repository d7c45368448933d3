"""Files that hold texts: plain, compressed (gz, bz2, xz, zst) and archives (zip, tar, tar.gz …), read as streams.

What a file is, its first bytes say and not its name. Nothing is unpacked onto the disk, and memory does not grow with
the size of a file or of what is packed in it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pangu_lab.errors import InputError

HEAD = 1 << 16  # bytes that are looked at to see what a stream is
_PACKED = 1 << 10  # bytes unpacked at once: a thousand of them may become 32 MB
_TAR_MAGIC = 257  # where "ustar" stands
_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"SQLite format 3", "a database"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
)


def head_of(stream: io.BufferedReader) -> bytes:
    """The first bytes of a stream, which stay to be read."""
    return stream.peek(HEAD)


def members(path: Path) -> Iterator[tuple[str, io.BufferedReader]]:
    """The files in a file, as (name, stream): itself as ("", stream), or those of an archive in its order.

    A stream may be read, inside ``reading``, until the next is asked for. Folders, links and what systems hide in
    archives are left out.

    Raises:
        InputError: it cannot be read, is damaged, cut short or encrypted, or is no text but a document or a picture.
    """
    with reading(path), open(path, "rb") as stream:
        head = stream.peek(HEAD)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _of_zip(path, stream)
            return
        _refuse_foreign(path, head)
        unpacked = _decompressed(path, stream, head)
        if _is_tar(unpacked.peek(_TAR_MAGIC + 5)):
            yield from _of_tar(unpacked)
        else:
            yield "", unpacked


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads a stream of ``members``: what goes wrong becomes one line that names the file."""
    try:
        yield
    except OSError as error:
        why = f"cannot be read ({error.strerror})" if error.strerror else f"damaged or cut short ({error})"
        raise InputError(f"{path}: {why}") from None
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"{path}: damaged or cut short ({error})") from None


def _refuse_foreign(path: Path, head: bytes) -> None:
    what = next((what for magic, what in _FOREIGN if head.startswith(magic)), None)
    if what:
        raise InputError(f"{path}: is {what}, not text: save or unpack it as text first")


def _decompressed(path: Path, stream: IO[bytes], head: bytes) -> io.BufferedReader:
    if head.startswith(b"\x1f\x8b"):
        return _buffered(gzip.GzipFile(fileobj=stream))
    if head.startswith(b"BZh"):
        return _buffered(bz2.BZ2File(stream))
    if head.startswith(b"\xfd7zXZ"):
        return _buffered(lzma.LZMAFile(stream))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _buffered(_Zstandard(path, stream))
    return stream


def _buffered(stream: IO[bytes]) -> io.BufferedReader:
    return io.BufferedReader(stream, HEAD)


def _is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar"


def _of_zip(path: Path, stream: IO[bytes]) -> Iterator[tuple[str, io.BufferedReader]]:
    with zipfile.ZipFile(stream) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_hidden(entry.filename)]
        if any(entry.filename == "[Content_Types].xml" for entry in entries):
            raise InputError(f"{path}: is an Office document, not text: save it as text first")
        for entry in entries:
            if entry.flag_bits & 1:
                raise InputError(f"{path}: {entry.filename} is encrypted: unpack it first")
            try:
                opened = archive.open(entry)
            except NotImplementedError as error:
                raise InputError(f"{path}: {entry.filename} cannot be read ({error}): unpack it first") from None
            with opened:
                yield entry.filename, _buffered(opened)


def _of_tar(stream: IO[bytes]) -> Iterator[tuple[str, io.BufferedReader]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            content: IO[bytes] | None = archive.extractfile(entry) if entry.isfile() else None
            if content is not None and not _is_hidden(entry.name):
                yield entry.name, _buffered(_Forward(content))


class _Forward(io.RawIOBase):
    """A member of a tar file that is read as a stream: ``tarfile`` gives it methods to seek that fail."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard, one after the other. The package's own reader takes a file that is cut short for whole."""

    def __init__(self, path: Path, stream: IO[bytes]):
        try:
            import zstandard
        except ImportError:
            raise InputError(f"{path}: reading .zst needs a package: pip install 'pangu-lab[corpus]'") from None
        self._new, self._error = zstandard.ZstdDecompressor, zstandard.ZstdError
        self._stream, self._frame, self._packed, self._ready = stream, None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._packed = self._packed or self._stream.read(_PACKED)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._unpack()
        content, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)

    def _unpack(self) -> None:
        frame = self._frame or self._new().decompressobj()
        try:
            self._ready = memoryview(frame.decompress(self._packed))
        except self._error as error:
            raise OSError(str(error)) from None
        self._packed = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") or part == "__MACOSX" for part in name.split("/"))
