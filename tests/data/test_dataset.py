"""Opening a data set and batches from it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.data import Batch, TokenDataset, open_dataset, prepare
from pangu_lab.data import dataset as dataset_module
from pangu_lab.data.dataset import document_positions, loss_weights
from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer, train_vocabulary

FIELDS = ("inputs", "labels", "positions", "weights", "samples")


def take(dataset: TokenDataset, count: int, **options: object) -> list[Batch]:
    return list(itertools.islice(dataset.batches(**{"batch_size": 8, "seed": 1, **options}), count))  # type: ignore


def same(a: Batch, b: Batch) -> bool:
    return a.weight_total == b.weight_total and all(np.array_equal(getattr(a, key), getattr(b, key)) for key in FIELDS)


def test_shapes_and_types(dataset: TokenDataset) -> None:
    batch = take(dataset, 1)[0]
    for key in ("inputs", "labels", "positions"):
        assert getattr(batch, key).shape == (8, 32) and getattr(batch, key).dtype == np.int32
    assert batch.weights.shape == (8, 32) and batch.weights.dtype == np.float32
    assert batch.samples.tolist() == list(range(8)) and batch.samples.dtype == np.int32
    assert isinstance(batch.weight_total, float) and batch.weight_total == batch.weights.sum()
    assert all(getattr(batch, key).flags.c_contiguous for key in FIELDS)


def test_labels_are_the_inputs_one_step_later(dataset: TokenDataset) -> None:
    for batch in take(dataset, 3):
        assert np.array_equal(batch.inputs[:, 1:], batch.labels[:, :-1])


def test_each_epoch_holds_every_record_once_in_another_order(dataset: TokenDataset) -> None:
    size = len(dataset)
    everything = dataset.records(np.arange(size))
    epochs = []
    for epoch in range(2):
        batches = take(dataset, size // 10 + 1, batch_size=10, start=epoch * size)
        rows = np.concatenate([batch.inputs for batch in batches])[:size]
        assert sorted(map(tuple, rows)) == sorted(map(tuple, everything[:, :-1]))
        epochs.append(rows)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], everything[:, :-1])


def test_a_batch_goes_on_over_the_end_of_an_epoch(dataset: TokenDataset) -> None:
    size = len(dataset)
    whole = np.concatenate([batch.inputs for batch in take(dataset, size, batch_size=3)])  # three epochs
    across = take(dataset, 1, batch_size=12, start=size - 5)[0]
    assert np.array_equal(across.inputs, whole[size - 5 : size + 7])
    assert across.samples.tolist() == list(range(size - 5, size + 7))
    assert take(dataset, 1, batch_size=2 * size + 2)[0].inputs.shape == (2 * size + 2, 32)


@pytest.mark.parametrize("start", [0, 1, 13, 200, 10_000])
def test_it_resumes_at_any_record(start: int, dataset: TokenDataset) -> None:
    resumed = take(dataset, 5, start=start)
    straight = np.concatenate([batch.inputs for batch in take(dataset, (start + 40) // 8 + 1)])
    assert np.array_equal(np.concatenate([batch.inputs for batch in resumed]), straight[start : start + 40])
    assert resumed[0].samples[0] == start


def test_reading_in_small_chunks_changes_nothing(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = take(dataset, 60)
    monkeypatch.setattr(dataset_module, "CHUNK", 1)
    assert all(same(a, b) for a, b in zip(before, take(dataset, 60), strict=True))


def test_ranks_share_each_batch(dataset: TokenDataset) -> None:
    whole = take(dataset, 3)
    slices = [take(dataset, 3, rank=rank, ranks=4) for rank in range(4)]
    for step in range(3):
        for key in FIELDS:
            joined = np.concatenate([getattr(slices[rank][step], key) for rank in range(4)])
            assert np.array_equal(joined, getattr(whole[step], key))
        assert {slices[rank][step].weight_total for rank in range(4)} == {whole[step].weight_total}
    assert len({slices[rank][0].weights.sum() for rank in range(4)}) > 1  # the total is not the rank's own


def test_unshuffled_and_finite_reading_fills_the_last_batch_with_nothing(dataset: TokenDataset) -> None:
    size = len(dataset)
    batches = list(dataset.batches(10, seed=0, shuffle=False, epochs=1))
    rows = np.concatenate([batch.inputs for batch in batches])
    assert len(batches) == -(-size // 10) and size % 10  # else the test tests nothing
    assert np.array_equal(rows[:size], dataset.records(np.arange(size))[:, :-1])
    last = batches[-1]
    assert (last.weights[size % 10 :] == 0).all() and last.weights[: size % 10].sum() == last.weight_total > 0
    assert list(dataset.batches(10, seed=0, epochs=1, start=size)) == []


def slow_positions(row: np.ndarray, eod: int) -> list[int]:
    result, position = [], 0
    for index in row:
        result.append(position)
        position = 0 if index == eod else position + 1
    return result


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4))
def test_positions_and_weights_by_their_definition(rows: list[list[int]]) -> None:
    """eod 2, pad 3: positions restart after 2; a label counts unless padding or the start of the next document."""
    records = np.array(rows, np.int32)
    inputs, labels = records[:, :-1], records[:, 1:]
    positions = document_positions(inputs, 2, True)
    assert positions.tolist() == [slow_positions(row, 2) for row in inputs]
    assert positions.dtype == np.int32
    assert document_positions(inputs, 2, False).tolist() == [list(range(5))] * len(rows)
    weights = loss_weights(records, 2, 3, True)
    expected = [[float(b != 3 and a not in (2, 3)) for a, b in zip(x, y)] for x, y in zip(inputs, labels)]
    assert weights.tolist() == expected
    expected = [[float(b != 3 and a != 3) for a, b in zip(x, y)] for x, y in zip(inputs, labels)]
    assert loss_weights(records, 2, 3, False).tolist() == expected


def test_positions_say_which_keys_belong_to_the_same_document(dataset: TokenDataset) -> None:
    batch = take(dataset, 1)[0]
    for row, positions in zip(batch.inputs, batch.positions):
        document = np.concatenate([[0], np.cumsum(row == dataset.eod_id)[:-1]])
        for query in range(len(row)):
            seen = np.arange(len(row))
            allowed = (seen >= query - positions[query]) & (seen <= query)
            assert np.array_equal(allowed, (document == document[query]) & (seen <= query))


def test_one_piece_for_end_and_padding_still_teaches_the_end() -> None:
    records = np.array([[5, 7, 6, 8, 6, 6, 6]], np.int32)  # "5 7" end, "8" end, two paddings
    assert loss_weights(records, 6, 6, False).tolist() == [[1, 1, 1, 1, 0, 0]]
    assert loss_weights(records, 6, 6, True).tolist() == [[1, 1, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 8, "ranks": 3}, "divided"),
        ({"batch_size": 0}, "divided"),
        ({"rank": 2, "ranks": 2}, "rank=2"),
        ({"start": -1}, "start=-1"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: dict, words: str, dataset: TokenDataset) -> None:
    with pytest.raises(InputError, match=words):
        dataset.batches(**{"batch_size": 8, "seed": 1, **options})


def test_records_outside_are_refused(dataset: TokenDataset) -> None:
    for bad in (-1, len(dataset)):
        with pytest.raises(InputError, match=f"records 0 to {len(dataset) - 1}"):
            dataset.records(np.array([0, bad]))


def test_a_moved_data_set_opens(dataset: TokenDataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.folder, tmp_path / "copy")
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    moved = open_dataset(tmp_path / "moved", column="input_ids")
    moved.verify()
    assert all(same(a, b) for a, b in zip(take(dataset, 3), take(moved, 3), strict=True))


def test_a_wrong_column_is_named(dataset: TokenDataset) -> None:
    with pytest.raises(InputError, match="no column 'text': its column is 'input_ids'"):
        open_dataset(dataset.folder, column="text")


def test_another_tokenizer_is_named(dataset: TokenDataset, pangu: Tokenizer, text_file: Path, tmp_path: Path) -> None:
    dataset.check_tokenizer(pangu)
    dataset.check_tokenizer(dataset.load_tokenizer())
    other = train_vocabulary(text_file, tmp_path / "v", 60)
    with pytest.raises(InputError, match="made with another tokenizer: pangu .*40000.*sentencepiece .*60 pieces"):
        dataset.check_tokenizer(other)
    with pytest.raises(InputError, match=r"tokenizer.eod=9 \('<eot>'\), not 8 \('<eod>'\)"):
        dataset.check_tokenizer(load_tokenizer("pangu", eod="<eod>"))
    with pytest.raises(InputError, match="tokenizer.pad=6"):
        dataset.check_tokenizer(load_tokenizer("pangu", pad="<mask>"))


def test_the_historical_pieces_go_into_the_data_set(text_file: Path, tmp_path: Path) -> None:
    prepare(text_file, tmp_path / "set", load_tokenizer("pangu", eod=6, pad=6), record_length=33, pad_last=True)
    made = open_dataset(tmp_path / "set")
    assert (made.eod_id, made.pad_id, made.load_tokenizer().eod_id) == (6, 6, 6)
    assert 6 in made.records(np.arange(1)) and 9 not in made.records(np.arange(len(made)))


@pytest.mark.parametrize("suffix", ["", ".db"])
def test_damage_is_named(suffix: str, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(dataset.folder, tmp_path / "set")
    file = next(path for path in sorted((tmp_path / "set").iterdir()) if path.name.endswith(".mindrecord" + suffix))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file.name}: its content is not what was written"):
        open_dataset(tmp_path / "set")
    monkeypatch.setattr(dataset_module, "HASHED", 10)  # a large one is opened by size, but for its index
    with pytest.raises(InputError, match=f"{file.name}: its content is not what was written"):
        open_dataset(tmp_path / "set").verify()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{file.name}: has {len(content) - 1} bytes instead of {len(content)}"):
        open_dataset(tmp_path / "set")
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name}: missing"):
        open_dataset(tmp_path / "set")


def test_what_is_no_data_set_is_refused(tmp_path: Path, dataset: TokenDataset) -> None:
    with pytest.raises(InputError, match="no such data set"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="description is not there"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="not the description of a data set"):
        open_dataset(tmp_path)
    said = json.loads((dataset.folder / "dataset.json").read_text(encoding="utf-8"))
    (tmp_path / "dataset.json").write_text(json.dumps({key: said[key] for key in said if key != "rows"}))
    with pytest.raises(InputError, match="says nothing of rows"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**said, "version": 99}))
    with pytest.raises(InputError, match="version 99, expected 1"):
        open_dataset(tmp_path)


@pytest.fixture
def large(dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a data set whose files count as too large to be hashed at the opening."""
    monkeypatch.setattr(dataset_module, "HASHED", 10)
    return Path(shutil.copytree(dataset.folder, tmp_path / "set"))


def flip(file: Path, place: int, bit: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_of_a_large_file_never_gives_other_tokens(dataset: TokenDataset, large: Path) -> None:
    numbers, random = np.arange(len(dataset)), np.random.default_rng(1)
    expected = dataset.records(numbers)
    file = next(path for path in sorted(large.iterdir()) if path.suffix == ".mindrecord")
    used = np.flatnonzero(np.fromfile(file, np.uint8))  # pages are filled up with zeros
    noticed = 0
    for place in random.choice(used[used > 1 << 20], 24):  # the header has a mebibyte
        bit = int(random.integers(8))
        flip(file, int(place), bit)
        try:
            assert np.array_equal(open_dataset(large).records(numbers), expected)
        except InputError as error:
            noticed += 1
            assert "\n" not in str(error)
        flip(file, int(place), bit)
    assert noticed > 5, "some of the bits belong to records"


def test_the_damaged_record_is_named_and_the_others_are_read(dataset: TokenDataset, large: Path) -> None:
    said = json.loads((large / "dataset.json").read_text(encoding="utf-8"))
    sums = np.fromfile(large / "records.crc32", "<u4")
    sums[5] ^= 1 << 7
    sums.tofile(large / "records.crc32")  # as if the record had changed
    opened = open_dataset(large)
    assert np.array_equal(opened.records(np.arange(5)), dataset.records(np.arange(5)))
    with pytest.raises(InputError, match="records-00001-of-00002.mindrecord: record 2 is not what was written"):
        opened.records(np.array([4, 5, 6]))
    with pytest.raises(InputError, match="records-00001-of-00002.mindrecord: record 2"):
        list(opened.batches(8, seed=1, epochs=1))
    with pytest.raises(InputError, match="records.crc32: its content is not what was written"):
        opened.verify()
    said["checksums"]["size"] += 4
    (large / "dataset.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="bytes of checksums for"):
        open_dataset(large)


def test_a_data_set_of_before_there_were_checksums_opens_as_it_did(dataset: TokenDataset, large: Path) -> None:
    said = json.loads((large / "dataset.json").read_text(encoding="utf-8"))
    del said["checksums"]
    (large / "dataset.json").write_text(json.dumps(said))
    (large / "records.crc32").unlink()
    assert np.array_equal(open_dataset(large).records(np.arange(9)), dataset.records(np.arange(9)))


@pytest.mark.parametrize(
    "changes",
    [
        {"records": 10**18},
        {"records": -1},
        {"records": "many"},
        {"records": True},
        {"rows": [10**18, 1]},
        {"rows": 7},
        {"rows": []},
        {"rows": [1, 1]},
        {"files": {}},
        {"files": [1]},
        {"files": [{"name": "../x", "size": 1, "sha256": "0" * 64}]},
        {"files": []},
        {"column": 5},
        {"column": None},
        {"record_length": 10**12},
        {"record_length": 1.5},
        {"eod_id": -1},
        {"eod_id": 10**9},
        {"pad_id": "<pad>"},
        {"tokenizer": "pangu"},
        {"tokenizer": {}},
        {"vocab_size": 10**18},
        {"tokens": None},
        {"checksums": "none"},
        {"version": [1]},
        {"format": {}},
    ],
    ids=str,
)
def test_a_description_of_another_shape_is_refused_in_one_line(changes: dict, large: Path) -> None:
    said = json.loads((large / "dataset.json").read_text(encoding="utf-8"))
    (large / "dataset.json").write_text(json.dumps({**said, **changes}))
    with pytest.raises(InputError, match="set") as caught:
        open_dataset(large)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_records_of_another_length_than_told_are_refused(large: Path) -> None:
    said = json.loads((large / "dataset.json").read_text(encoding="utf-8"))
    (large / "dataset.json").write_text(json.dumps({**said, "record_length": 17}))
    with pytest.raises(InputError, match="its records hold 33 tokens instead of 17"):
        open_dataset(large).records(np.arange(3))


def test_a_column_that_is_no_name_is_refused_in_one_short_line(
    text_file: Path, pangu: Tokenizer, tmp_path: Path
) -> None:
    prepare(text_file, tmp_path / "set", pangu, record_length=33)
    described = tmp_path / "set" / "dataset.json"
    described.write_text(described.read_text("utf-8").replace('"input_ids"', '"' + "x" * 4000 + '"'), "utf-8")
    with pytest.raises(InputError, match="column") as told:
        open_dataset(tmp_path / "set")
    assert len(str(told.value)) < 300 and "\n" not in str(told.value)
