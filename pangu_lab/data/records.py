"""Packing ids into records of one length, and records in and out of MindRecord files.

MindRecord notes: a file begins with a header of fixed size (16 MB by default) and grows by pages (32 MB), so small data
sets get small ones; the index lies beside the file in ``NAME.db`` and is made in memory at the end, 1.4 kB for a
record; files written the same way are byte-identical; a file cannot be renamed afterwards, but its folder can.
``MindDataset`` over a list of files numbers the rows in the order of the list and, with a ``SubsetSampler``, reads any
rows in any order at about 70 µs each, without reading the rest. Integers are stored packed: small ids take less than
four bytes. MindRecord keeps no checksums: a bit that flips on the disk gives other tokens, silently. So the CRC-32 of
each record is kept beside the files, and compared when the record has been read: 1 to 3 µs for one of 1025 tokens.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.errors import InputError

os.environ.setdefault("GLOG_v", "3")  # MindSpore logs errors only; read when it is first imported
FLUSH_BYTES = 4 << 20
READ_BYTES = 8 << 20
SPARE_BYTES = 4 << 20  # left free on the disk


class Packer:
    """Cuts a stream of ids into records; what does not fill the last one is left over, or filled with padding.

    Attributes:
        leftover, padding: ids left out, and ids of padding, both known after ``finish``.
    """

    def __init__(self, record_length: int, pad_id: int) -> None:
        self.record_length, self.pad_id = record_length, pad_id
        self.leftover = self.padding = 0
        self._rest = np.empty(0, np.int32)

    def add(self, tokens: np.ndarray) -> np.ndarray:
        """Take ids; returns the records that are complete now, (records, record_length) int32."""
        stream = np.concatenate([self._rest, tokens])
        whole = len(stream) // self.record_length * self.record_length
        self._rest = stream[whole:]
        return stream[:whole].reshape(-1, self.record_length)

    def finish(self, fill: bool) -> np.ndarray:
        """The last record, filled with padding, if ``fill`` and there is a rest; else none."""
        if fill and len(self._rest):
            self.padding = self.record_length - len(self._rest)
            return self.add(np.full(self.padding, self.pad_id, np.int32))
        self.leftover = len(self._rest)
        return np.empty((0, self.record_length), np.int32)


class WholeDocumentPacker:
    """Packs whole documents: one that fits into a record is never cut, and padding fills what stays free.

    Each document goes into the open record where it leaves the least room (best fit; Ding et al. 2024, "Fewer
    Truncations Improve Language Modeling"). A longer one gives full records and a rest that is packed like a document.
    Where none is open that has the room, the fullest is closed and a new one opened, so the order stays nearly that of
    the documents.
    """

    OPEN = 1024  # records that wait for a document that fits; more of them waste less and mix the order more

    def __init__(self, record_length: int, pad_id: int, eod_id: int) -> None:
        self.record_length, self.pad_id, self.eod_id = record_length, pad_id, eod_id
        self.leftover = self.padding = 0
        self._open: list[tuple[int, int]] = []  # the free room of each open record and its number, sorted
        self._pieces: dict[int, list[np.ndarray]] = {}
        self._number = 0

    def add(self, tokens: np.ndarray) -> np.ndarray:
        """Take ids of whole documents, each with its end; returns the records that are complete now."""
        complete: list[np.ndarray] = []
        for document in np.split(tokens, np.flatnonzero(tokens == self.eod_id) + 1):
            for start in range(0, len(document), self.record_length):
                self._place(document[start : start + self.record_length], complete)
        return self._stacked(complete)

    def finish(self, fill: bool = True) -> np.ndarray:
        """The records still open, filled with padding. ``fill``: for both packers alike; here there is no choice."""
        complete: list[np.ndarray] = []
        while self._open:
            self._close(*self._open.pop(0), complete)
        return self._stacked(complete)

    def _place(self, piece: np.ndarray, complete: list[np.ndarray]) -> None:
        best = bisect.bisect_left(self._open, (len(piece), 0))
        if best < len(self._open):
            free, number = self._open.pop(best)
        else:
            if len(self._open) == self.OPEN:
                self._close(*self._open.pop(0), complete)
            free, number = self.record_length, self._number
            self._number += 1
        self._pieces.setdefault(number, []).append(piece)
        if free > len(piece):
            bisect.insort(self._open, (free - len(piece), number))
        else:
            self._close(0, number, complete)

    def _close(self, free: int, number: int, complete: list[np.ndarray]) -> None:
        self.padding += free
        complete.append(np.concatenate([*self._pieces.pop(number), np.full(free, self.pad_id, np.int32)]))

    def _stacked(self, complete: list[np.ndarray]) -> np.ndarray:
        return np.stack(complete) if complete else np.empty((0, self.record_length), np.int32)


def checksums(records: np.ndarray) -> np.ndarray:
    """CRC-32 of each record, (records,) uint32."""
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(records, "<i4")], "<u4")


class RecordWriter:
    """Writes records to MindRecord files, in turn to each: record n is row n // shards of file n % shards."""

    def __init__(self, folder: Path, record_length: int, column: str, shards: int, expected_bytes: int) -> None:
        self.folder, self.record_length, self.column = folder, record_length, column
        self.paths = [folder / shard_name(number, shards) for number in range(shards)]
        self.rows = [0] * shards
        self.records = 0
        self._checksums: list[np.ndarray] = []
        self._digests = [hashlib.sha256() for _ in range(shards)]
        self._waiting: list[np.ndarray] = []
        self._waiting_bytes = 0
        self._page, self._header = _sizes(expected_bytes // shards, 4 * record_length)
        self._writers: list[Any] = []

    def write(self, records: np.ndarray) -> None:
        """Append records, (records, record_length) int32."""
        if len(records):
            self._waiting.append(records)
            self._checksums.append(checksums(records))
            self._waiting_bytes += records.nbytes
        if self._waiting_bytes >= FLUSH_BYTES:
            self._flush()

    def write_checksums(self, path: Path) -> None:
        """Write those of all records, in their order, four bytes each, little-endian."""
        path.write_bytes(b"".join(part.tobytes() for part in self._checksums))

    def close(self) -> None:
        """Complete the files, and read them back to see that the disk holds what was written.

        Raises:
            InputError: no record was written, or fewer than there are files, or the disk is full.
        """
        self._flush()
        if self.records < len(self.paths):
            raise InputError(
                f"{len(self.paths)} shards need as many records, but there are {self.records}: ask for fewer shards"
            )
        self._guard(self._commit, 0)
        self._guard(self._read_back, 0)

    def _commit(self) -> None:
        for writer, path in zip(self._writers, self.paths):
            writer.commit()
            for file in (path, path.with_name(path.name + ".db")):
                file.chmod(0o644)  # MindRecord makes them readable to their owner alone

    def _read_back(self) -> None:
        for path, rows, digest in zip(self.paths, self.rows, self._digests):
            found = hashlib.sha256()
            for block in read_in_order(path, rows, self.column):
                found.update(block)
            if found.digest() != digest.digest():
                raise InputError(f"{path.name}: reads back differently from what was written: check the disk")

    def _flush(self) -> None:
        if not self._waiting:
            return
        records = np.concatenate(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        if not self._writers:
            self._guard(self._open, self._header)
        shards = len(self.paths)
        for shard in range(shards):
            mine = records[(shard - self.records) % shards :: shards]
            if len(mine):
                raw = [{self.column: row} for row in mine]
                self._guard(lambda: self._writers[shard].write_raw_data(raw), mine.nbytes)
                self._digests[shard].update(np.ascontiguousarray(mine))
                self.rows[shard] += len(mine)
        self.records += len(records)

    def _open(self) -> None:
        from mindspore.mindrecord import FileWriter

        for path in self.paths:
            writer = FileWriter(str(path))
            writer.set_header_size(self._header)
            writer.set_page_size(self._page)
            writer.add_schema({self.column: {"type": "int32", "shape": [-1]}}, "token records")
            self._writers.append(writer)

    def _guard(self, action: Callable[[], Any], size: int) -> None:
        """Run one step of writing. MindRecord may report a full disk late or not at all, so look before."""
        free = shutil.disk_usage(self.folder).free
        if free < size + len(self.paths) * 2 * self._page + SPARE_BYTES:
            raise InputError(_full(self.folder, free))
        try:
            action()
        except RuntimeError as error:
            if shutil.disk_usage(self.folder).free < SPARE_BYTES:
                raise InputError(_full(self.folder, free)) from None
            raise InputError(f"{self.folder.parent}: MindRecord could not write ({_first_line(error)})") from error


def _full(folder: Path, free: int) -> str:
    return (
        f"{folder.parent}: the disk is full ({free / 1e6:,.0f} MB free): nothing was kept; make room or choose "
        f"another place for the data set"
    )


def _first_line(error: Exception) -> str:
    """The line of MindSpore's pages that says what happened."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Exception thrown", "Dataset Pipeline Error"))]
    marked = [line for line in lines if "ERROR" in line]
    return (marked or lines or [type(error).__name__])[0][:300]  # it may quote a file's content


def _sizes(expected_bytes: int, record_bytes: int) -> tuple[int, int]:
    """Page and header size for a file of about so many bytes: about 64 pages, which the header must list."""
    page = 1 << 16
    while page < min(expected_bytes // 64, 1 << 25) or page < 2 * record_bytes:
        page *= 2
    return page, (1 << 24 if expected_bytes > 1 << 32 else 1 << 20)


def shard_name(number: int, shards: int) -> str:
    return f"records-{number:05d}-of-{shards:05d}.mindrecord"


def read_in_order(path: Path, rows: int, column: str) -> Iterator[np.ndarray]:
    """All records of one file in blocks, (records, record_length) int32."""
    import mindspore.dataset as ds

    data = ds.MindDataset(str(path), columns_list=[column], shuffle=False, num_parallel_workers=1)
    size = data.get_dataset_size()
    if size != rows:
        raise InputError(f"{path.name}: holds {size} records instead of {rows}: the file is damaged")
    block: list[np.ndarray] = []
    for (row,) in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
        block.append(row)
        if len(block) * row.nbytes >= READ_BYTES:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


class RecordReader:
    """Reads any records of a data set, wherever they lie in its files."""

    def __init__(self, paths: list[Path], rows: list[int], column: str) -> None:
        self._files = [str(path) for path in paths]
        self._first_row = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64)
        self._column = column

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Records by their number, in the order asked for; (len(numbers), record_length) int32.

        Raises:
            InputError: MindRecord cannot read the files.
        """
        import mindspore.dataset as ds

        shards = len(self._files)
        rows, back = np.unique(self._first_row[numbers % shards] + numbers // shards, return_inverse=True)
        try:
            data = ds.MindDataset(
                self._files,
                columns_list=[self._column],
                num_parallel_workers=1,
                sampler=ds.SubsetSampler(rows.tolist()),
            )
            found = [row for (row,) in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]
        except RuntimeError as error:
            raise InputError(
                f"{Path(self._files[0]).parent}: MindRecord cannot read it ({_first_line(error)})"
            ) from error
        assert len(found) == len(rows)
        return np.stack(found)[back]  # asked for once each: MindRecord takes no more numbers than there are records
