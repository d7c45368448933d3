"""Opening a prepared data set, and batches for training from it.

Batches are numpy arrays computed from a running record number: record ``n`` is entry ``n % len`` of epoch ``n // len``.
There is no other state, so training resumes at any number, and any rank computes its own slice of the same
global batch. Attention knows the documents only through ``positions``: query i of a row may see the keys j with
i − positions[i] ≤ j ≤ i, from which the model builds its mask on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pangu_lab.data.order import shuffled
from pangu_lab.data.preparation import FORMAT, METADATA, TOKENIZER_FOLDER, VERSION
from pangu_lab.data.records import RecordReader, checksums
from pangu_lab.errors import InputError
from pangu_lab.files import sha256_file
from pangu_lab.ranges import shown
from pangu_lab.reading import checked, read_json
from pangu_lab.schema import Count, FileName, Positive, Schema, Sha256
from pangu_lab.tokenizer import Tokenizer, load_tokenizer

CHUNK = 256  # minimum records per read: a read costs 3 ms plus 70 µs per record
AGAIN = "prepare the data set again"
HASHED = 64 << 20  # files up to this size are compared by content when a data set is opened; of larger ones each record
# is when it is read, but their index in whole at once: MindRecord crashes on a damaged one. It has 44 bytes a record


class _File(Schema):
    name: FileName
    size: Count
    sha256: Sha256


class _MadeWith(Schema):
    kind: str
    fingerprint: str
    vocab_size: Positive


class _Description(Schema):
    """``dataset.json``, as ``prepare`` writes it."""

    column: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
    record_length: Annotated[int, Field(ge=2, le=1 << 24)]
    records: Positive
    rows: list[Positive]
    files: list[_File]
    characters: Count | None = None  # of the text; data sets made by other means may not know
    tokens: Count
    vocab_size: Annotated[int, Field(ge=1, le=1 << 31)]
    eod_id: Count
    pad_id: Count
    tokenizer: _MadeWith
    checksums: _File | None = None  # of each record; data sets of before there were any have none


@dataclass(frozen=True)
class Batch:
    """One rank's slice (b rows) of a global batch; s = record length − 1.

    Attributes:
        inputs, labels: (b, s) int32; labels are the inputs one step later.
        positions: (b, s) int32, starting again at 0 after each end of document when ``eod_reset``.
        weights: (b, s) float32, 1 where the label counts in the loss, else 0.
        samples: (b,) int32, the running number of each record.
        weight_total: sum of the weights over the global batch of all ranks.
    """

    inputs: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    samples: np.ndarray
    weight_total: float

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Several batches as one."""
        if len(batches) == 1:
            return batches[0]
        rows = [
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("inputs", "labels", "positions", "weights", "samples")
        ]
        return cls(*rows, weight_total=sum(batch.weight_total for batch in batches))


class TokenDataset:
    """A prepared data set. ``len()`` is its number of records."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata
        self.column: str = metadata["column"]
        self.record_length: int = metadata["record_length"]
        self.seq_length = self.record_length - 1
        self.vocab_size: int = metadata["vocab_size"]
        self.eod_id: int = metadata["eod_id"]
        self.pad_id: int = metadata["pad_id"]
        self.tokens: int = metadata["tokens"]
        self.fingerprint: str = metadata["tokenizer"]["fingerprint"]
        self._paths = _record_files(folder, metadata)
        self._reader = RecordReader(self._paths, metadata["rows"], self.column)
        named = metadata.get("checksums")
        self._checksums = np.memmap(folder / named["name"], "<u4", "r") if named else None

    def __len__(self) -> int:
        return self.metadata["records"]

    @property
    def characters_per_token(self) -> float | None:
        """Characters of the text for each token, ends of documents included; None where it was not recorded."""
        characters = self.metadata.get("characters")
        return characters / self.tokens if characters and self.tokens else None

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that made the data set, ready for ``load_tokenizer``."""
        return self.folder / TOKENIZER_FOLDER

    def load_tokenizer(self) -> Tokenizer:
        """That tokenizer, with the end of document and padding of this data set."""
        return load_tokenizer(self.tokenizer_folder, eod=self.eod_id, pad=self.pad_id)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise InputError if the data set was made with another tokenizer, end of document or padding."""
        mine = self.metadata["tokenizer"]
        if tokenizer.fingerprint != self.fingerprint:
            raise InputError(
                f"{self.folder} was made with another tokenizer: {mine['kind']} {self.fingerprint[:12]} "
                f"({mine['vocab_size']} pieces) there, {tokenizer.kind} {tokenizer.fingerprint[:12]} "
                f"({tokenizer.vocab_size} pieces) here; use {self.tokenizer_folder} or prepare the data again"
            )
        for role, there, here in (("eod", self.eod_id, tokenizer.eod_id), ("pad", self.pad_id, tokenizer.pad_id)):
            if there != here:
                raise InputError(
                    f"{self.folder} was made with tokenizer.{role}={there} "
                    f"('{tokenizer.piece(there)}'), not {here} ('{tokenizer.piece(here)}'): "
                    f"set it to {there} or prepare the data again"
                )

    def verify(self) -> None:
        """Compare every file with the sha256 taken when it was written; reads all of it.

        Raises:
            InputError: naming the first file that differs.
        """
        for item in _files(self.metadata):
            _check_file(self.folder / item["name"], item, hashed=True)

    def records(self, numbers: np.ndarray) -> np.ndarray:
        """Records by their number in the data set (not shuffled); (len(numbers), record_length) int32.

        Raises:
            InputError: there is no such record, or one is not what was written; names the file and its row.
        """
        numbers = np.asarray(numbers, np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise InputError(f"{self.folder} has the records 0 to {len(self) - 1}")
        records = self._reader.read(numbers)
        if records.shape[1:] != (self.record_length,):
            raise InputError(
                f"{self.folder}: its records hold {records.shape[-1]} tokens instead of {self.record_length}: {AGAIN}"
            )
        if self._checksums is not None:
            self._check_records(numbers, records)
        return records

    def _check_records(self, numbers: np.ndarray, records: np.ndarray) -> None:
        wrong = numbers[checksums(records) != self._checksums[numbers]]
        if len(wrong):
            shards = len(self._paths)
            raise InputError(
                f"{self._paths[wrong[0] % shards]}: record {wrong[0] // shards} is not what was written "
                f"(its checksum differs): the file was changed, or the disk fails: {AGAIN}"
            )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        start: int = 0,
        eod_reset: bool = True,
        rank: int = 0,
        ranks: int = 1,
        epochs: int | None = None,
    ) -> Iterator[Batch]:
        """Batches from the running record number ``start`` on.

        Args:
            batch_size: records of the global batch; each of ``ranks`` gets an equal, contiguous slice.
            seed: with the epoch's number chooses the order, the same on every rank.
            start: where to begin: records consumed so far, over all epochs and ranks.
            epochs: how often to go through the data; None never ends. A batch may reach over the end of an
                epoch; the very last one is filled up with rows of weight 0.

        Raises:
            InputError: the batch cannot be divided among the ranks, or a number makes no sense.
        """
        if batch_size < 1 or ranks < 1 or batch_size % ranks:
            raise InputError(f"a batch of {batch_size} records cannot be divided among {ranks} ranks")
        if not 0 <= rank < ranks or start < 0 or (epochs is not None and epochs < 1):
            raise InputError(f"rank={rank} of {ranks}, start={start}, epochs={epochs} make no sense together")
        end = None if epochs is None else epochs * len(self)
        return self._generate(
            batch_size,
            seed if shuffle else None,
            start,
            end,
            eod_reset,
            slice(rank * (batch_size // ranks), (rank + 1) * (batch_size // ranks)),
        )

    def _generate(
        self, batch_size: int, seed: int | None, start: int, end: int | None, eod_reset: bool, mine: slice
    ) -> Iterator[Batch]:
        chunk = -(-CHUNK // batch_size) * batch_size
        while end is None or start < end:
            stop = start + chunk if end is None else min(start + chunk, end)
            numbers = np.arange(start, stop, dtype=np.int64)
            records = self.records(self._where(numbers, seed))
            for first in range(0, len(numbers), batch_size):
                rows = _filled(records[first : first + batch_size], batch_size, self.pad_id)
                samples = np.arange(start + first, start + first + batch_size, dtype=np.int64)
                valid = max(0, min(batch_size, stop - start - first))
                yield _batch(rows, samples, valid, self.eod_id, self.pad_id, eod_reset, mine)
            start = stop

    def _where(self, numbers: np.ndarray, seed: int | None) -> np.ndarray:
        """Running numbers to numbers in the data set."""
        places, epochs = numbers % len(self), numbers // len(self)
        if seed is None:
            return places
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = shuffled(places[chosen], len(self), seed, int(epoch))
        return result


def _filled(records: np.ndarray, rows: int, pad_id: int) -> np.ndarray:
    if len(records) == rows:
        return records
    return np.concatenate([records, np.full((rows - len(records), records.shape[1]), pad_id, np.int32)])


def _batch(
    records: np.ndarray, samples: np.ndarray, valid: int, eod_id: int, pad_id: int, eod_reset: bool, mine: slice
) -> Batch:
    """``valid``: rows that are records; the rest fills the batch and weighs nothing."""
    weights = loss_weights(records, eod_id, pad_id, eod_reset)
    weights[valid:] = 0
    own = records[mine]
    return Batch(
        inputs=np.ascontiguousarray(own[:, :-1]),
        labels=np.ascontiguousarray(own[:, 1:]),
        positions=document_positions(own[:, :-1], eod_id, eod_reset),
        weights=weights[mine],
        samples=samples[mine].astype(np.int32),
        weight_total=float(weights.sum(dtype=np.float64)),
    )


def document_positions(inputs: np.ndarray, eod_id: int, eod_reset: bool) -> np.ndarray:
    """Position of each token in its document, (rows, s) int32; the token after an end of document is at 0."""
    index = np.arange(inputs.shape[1], dtype=np.int32)
    if not eod_reset:
        return np.broadcast_to(index, inputs.shape).copy()
    begins = np.zeros(inputs.shape, np.int32)
    begins[:, 1:] = np.where(inputs[:, :-1] == eod_id, index[1:], 0)
    return index - np.maximum.accumulate(begins, axis=1)


def loss_weights(records: np.ndarray, eod_id: int, pad_id: int, eod_reset: bool) -> np.ndarray:
    """1 where the label counts, (rows, record_length − 1) float32.

    Not counted: padding; and with ``eod_reset`` the label of an end of document, which belongs to the next one.
    Where one piece serves as both, a label counts unless two follow each other: the first ended a document.
    """
    inputs, labels = records[:, :-1], records[:, 1:]
    if pad_id == eod_id:
        dead = (inputs == pad_id) & (labels == pad_id)
    else:
        dead = (inputs == pad_id) | (labels == pad_id)
    if eod_reset:
        dead |= inputs == eod_id
    return (~dead).astype(np.float32)


def open_dataset(folder: str | Path, column: str | None = None) -> TokenDataset:
    """Open a data set made by ``prepare``, and check that its files are the ones that were written.

    Args:
        column: the column to read; None takes the one there is.

    Raises:
        InputError: not a data set, no such column, or a file is missing or damaged; each by its name.
    """
    folder = Path(folder)
    metadata = _description(folder)
    where = str(folder / METADATA)
    _check_counts(folder, metadata, where)
    if column is not None and column != metadata["column"]:
        raise InputError(f"{folder} has no column '{column}': its column is '{metadata['column']}' (data.column)")
    for item in _files(metadata):
        _check_file(folder / item["name"], item, hashed=item["size"] <= HASHED or item["name"].endswith(".db"))
    return TokenDataset(folder, metadata)


def vocabulary_of(folder: str | Path) -> int | None:
    """How many pieces the tokenizer of a data set has; None where there is no data set that can be opened."""
    with contextlib.suppress(InputError):
        return _description(Path(folder))["vocab_size"]
    return None


def _description(folder: Path) -> dict[str, Any]:
    """What ``dataset.json`` says; its files are not looked at."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such data set: make it with `pangu-lab prepare`")
    metadata = read_json(folder / METADATA, "the data set's description", fix=AGAIN)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{folder / METADATA}: not the description of a data set of this project")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{folder}: made by another version of this program (data set version "
            f"{shown(metadata.get('version'), repr)}, expected {VERSION}): prepare it again"
        )
    return checked(metadata, _Description, str(folder / METADATA), AGAIN)


def _record_files(folder: Path, metadata: dict[str, Any]) -> list[Path]:
    return [folder / item["name"] for item in metadata["files"] if not item["name"].endswith(".db")]


def _files(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file of the data set but its description and its tokenizer."""
    return [*metadata["files"], *([metadata["checksums"]] if metadata.get("checksums") else [])]


def _check_counts(folder: Path, metadata: dict[str, Any], where: str) -> None:
    """What several entries say together: rows and files, and that no number is more than the files can hold."""
    records, rows, shards = metadata["records"], metadata["rows"], len(_record_files(folder, metadata))
    if len(rows) != shards or rows != [(records - shard + shards - 1) // shards for shard in range(shards)]:
        raise InputError(f"{where}: rows does not tell how {records} records lie in {shards} files: {AGAIN}")
    if records > sum(item["size"] for item in metadata["files"]):
        raise InputError(f"{where}: {records} records are more than its files can hold: {AGAIN}")
    if metadata.get("checksums") and metadata["checksums"]["size"] != 4 * records:
        raise InputError(
            f"{where}: there are {metadata['checksums']['size']} bytes of checksums for {records} records: {AGAIN}"
        )
    for role in ("eod_id", "pad_id"):
        if metadata[role] >= metadata["vocab_size"]:
            raise InputError(
                f"{where}: {role} is {metadata[role]}, outside the vocabulary of "
                f"{metadata['vocab_size']} pieces: {AGAIN}"
            )


def _check_file(path: Path, item: dict[str, Any], hashed: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing from the data set: prepare it again")
    size = path.stat().st_size
    if size != item["size"]:
        raise InputError(f"{path}: has {size} bytes instead of {item['size']}: prepare the data set again")
    if hashed and sha256_file(path) != item["sha256"]:
        raise InputError(f"{path}: its content is not what was written (sha256 differs): prepare the data set again")
