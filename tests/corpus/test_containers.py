"""Compressed files and archives are read as streams; damaged ones are named."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pangu_lab.corpus import Corpus
from pangu_lab.errors import InputError

TEXT = "话说天下大势，分久必合，合久必分。\n这一天，他们来到了一个地方。\n"
LINES = TEXT.splitlines()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
FILES = {
    "b.txt": TEXT.encode("gbk"),
    "a.jsonl": '{"text": "春"}\n'.encode(),
    "c.pdf": b"%PDF",
    "__MACOSX/b.txt": b"x",
    "d/e.json": '[{"text": "夏"}, {"text": "秋"}]'.encode(),
}
TEXTS = [*LINES, "春", "夏", "秋"]


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("passwd.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return content.getvalue()


def documents(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return list(Corpus(path).documents())


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_texts_are_read(ending: str, tmp_path: Path) -> None:
    pack = COMPRESS[ending]
    assert documents(tmp_path / f"a.txt{ending}", pack(TEXT.encode())) == LINES
    assert documents(tmp_path / "without_ending", pack(TEXT.encode("gbk"))) == LINES
    assert documents(tmp_path / f"two{ending}", pack(LINES[0].encode() + b"\n") + pack(LINES[1].encode())) == LINES
    assert documents(tmp_path / f"a.jsonl{ending}", pack(b'{"text": "a"}\n')) == ["a"]


def test_archives_are_read_in_their_order(tmp_path: Path) -> None:
    assert documents(tmp_path / "a.zip", zipped(FILES)) == TEXTS
    for name, pack in {"a.tar": bytes, "a.tgz": gzip.compress, "a.tar.zst": COMPRESS[".zst"]}.items():
        assert documents(tmp_path / name, pack(tarred(FILES))) == TEXTS
    assert Corpus(tmp_path / "a.zip").notes() == ["not read: 1 other file (1 .pdf)"]


@pytest.mark.parametrize("ending", [*COMPRESS, ".zip", ".tgz"])
def test_files_cut_short_or_damaged_are_named(ending: str, tmp_path: Path) -> None:
    many = os.urandom(30_000).hex().encode()
    content = {".zip": lambda: zipped({"a.txt": many}), ".tgz": lambda: gzip.compress(tarred({"a.txt": many}))}.get(
        ending, lambda: COMPRESS[ending](many)
    )()
    for number, wrong in enumerate((content[: len(content) // 2], content[:5000] + b"\0" * 100 + content[5100:])):
        path = tmp_path / f"{number}{ending}"
        with pytest.raises(InputError, match=f"{number}{ending}: (damaged or cut short|a.txt: byte)"):
            documents(path, wrong)


def test_an_encrypted_archive_and_an_office_document_are_refused(tmp_path: Path) -> None:
    secret = bytearray(zipped({"a.txt": b"x"}))
    for start in (secret.find(b"PK\x03\x04") + 6, secret.find(b"PK\x01\x02") + 8):
        secret[start] |= 1
    with pytest.raises(InputError, match="a.txt is encrypted: unpack it first"):
        documents(tmp_path / "a.zip", bytes(secret))
    with pytest.raises(InputError, match="is an Office document"):
        documents(tmp_path / "a.docx", zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}))


def test_memory_does_not_grow_with_what_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl.gz"
    line = b'{"text": "' + "春眠不觉晓，".encode() * 500 + b'"}\n'
    with gzip.open(path, "wb", compresslevel=1) as handle:
        for _ in range(300):
            handle.write(line * 50)  # 135 MB in all
    code = (
        "import resource, sys\nfrom pangu_lab.corpus import Corpus\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = used()\n"
        "assert sum(1 for _ in Corpus(sys.argv[1]).documents()) == 15000\nprint(used() - before)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert int(out) < 40_000  # kB
