"""From text to a data set: everything once, the same whoever does the work, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from numbered import lines

from pangu_lab.data import encoding, open_dataset, preparation, prepare, records, sample_files
from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def stream(folder: Path) -> list[int]:
    dataset = open_dataset(folder)
    return dataset.records(np.arange(len(dataset))).ravel().tolist()


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_document_is_there_once_in_order(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    made = prepare(text_file, tmp_path / "set", pangu, record_length=33)
    expected = [index for line in lines(200) for index in [*pangu.encode(line), pangu.eod_id]]
    assert stream(tmp_path / "set") == expected[: len(expected) // 33 * 33]
    assert (made.documents, made.tokens, made.records) == (200, len(expected), len(expected) // 33)
    assert made.leftover_tokens == len(expected) % 33 > 0 and made.padding_tokens == 0
    assert made.characters == sum(map(len, lines(200)))


def test_the_last_record_can_be_filled(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    made = prepare(text_file, tmp_path / "set", pangu, record_length=33, pad_last=True)
    found = stream(tmp_path / "set")
    assert made.leftover_tokens == 0 and made.padding_tokens > 0
    assert found[-made.padding_tokens :] == [pangu.pad_id] * made.padding_tokens
    assert found[-made.padding_tokens - 1] == pangu.eod_id
    assert len(found) == made.tokens + made.padding_tokens == made.records * 33


def documents_of(folder: Path) -> list[list[list[int]]]:
    """The documents of each record: what its ends divide, without the padding behind the last."""
    dataset = open_dataset(folder)
    made = []
    for record in dataset.records(np.arange(len(dataset))):
        pieces = np.split(record, np.flatnonzero(record == dataset.eod_id) + 1)
        made.append([piece.tolist() for piece in pieces if (piece != dataset.pad_id).any()])
    return made


def test_whole_documents_are_never_cut_where_they_fit_into_a_record(
    text_file: Path, pangu: Tokenizer, tmp_path: Path
) -> None:
    longest = max(len(pangu.encode(line)) + 1 for line in lines(200))
    made = prepare(text_file, tmp_path / "set", pangu, record_length=longest, whole_documents=True)
    found = documents_of(tmp_path / "set")
    expected = [[*pangu.encode(line), pangu.eod_id] for line in lines(200)]
    assert sorted(piece for record in found for piece in record) == sorted(expected)
    assert any(len(record) > 1 for record in found)
    assert made.leftover_tokens == 0 and made.records * longest == made.tokens + made.padding_tokens
    at_least = -(-made.tokens // longest)  # records, if nothing stayed free
    assert made.records <= 1.2 * at_least + 1


def test_a_document_longer_than_a_record_gives_full_ones_and_a_rest(pangu: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("".join(lines(40)), encoding="utf-8")
    prepare(tmp_path / "long.txt", tmp_path / "set", pangu, record_length=33, whole_documents=True)
    found = [index for record in documents_of(tmp_path / "set") for piece in record for index in piece]
    assert found == [*pangu.encode("".join(lines(40))), pangu.eod_id]


def test_a_packer_with_many_open_records_packs_as_well_as_the_sizes_allow() -> None:
    sizes = [5, 3] * 3000  # of documents with their ends: two of a kind leave room, one of each fills a record of 8
    packer = records.WholeDocumentPacker(8, pad_id=0, eod_id=9)
    made = [packer.add(np.array([7] * (size - 1) + [9], np.int32)) for size in sizes] + [packer.finish()]
    assert sum(map(len, made)) == 3000 and packer.padding == 0


def test_whole_documents_are_the_same_for_any_number_of_workers(
    tmp_path: Path, text_file: Path, pangu: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "WORKER_SECONDS", 1e-9)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 500)
    for workers in (1, 2):
        prepare(text_file, tmp_path / f"set{workers}", pangu, record_length=33, workers=workers, whole_documents=True)
    assert content(tmp_path / "set1") == content(tmp_path / "set2")


def test_the_result_is_the_same_for_any_number_of_workers(
    tmp_path: Path, pangu: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "WORKER_SECONDS", 1e-9)  # start them for this little text
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 500)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines(60 + number)), encoding="utf-8")
    made = {}
    for workers in (1, 2, 3):
        prepare(f"{tmp_path}/*.txt", tmp_path / f"set{workers}", pangu, record_length=33, workers=workers, shards=2)
        made[workers] = content(tmp_path / f"set{workers}")
    assert made[1] == made[2] == made[3]
    assert "dataset.json" in made[1] and "tokenizer/vocab.model" in made[1]


def test_the_records_do_not_depend_on_the_number_of_files(
    text_file: Path, pangu: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = []
    monkeypatch.setattr("pangu_lab.data.preparation.SHARD_RECORDS", 20)
    for shards in (1, 2, 5, None):
        prepare(text_file, tmp_path / f"set{shards}", pangu, record_length=33, shards=shards)
        found = len(list((tmp_path / f"set{shards}").glob("*.mindrecord")))
        assert found == shards if shards is not None else found > 1  # one for every 20 records
        streams.append(stream(tmp_path / f"set{shards}"))
    assert all(each == streams[0] for each in streams)


def test_any_mindrecord_reader_can_read_it(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    from mindspore.mindrecord import FileReader

    prepare(text_file, tmp_path / "set", pangu, record_length=33, column="tokens")
    reader = FileReader(str(tmp_path / "set" / "records-00000-of-00001.mindrecord"))
    rows = [row["tokens"] for row in reader.get_next()]
    reader.close()
    assert rows[0].dtype == np.int32 and rows[0].shape == (33,)
    assert np.concatenate(rows).tolist() == stream(tmp_path / "set")


def test_the_description_says_what_was_made(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    made = prepare(text_file, tmp_path / "set", pangu, record_length=33, documents="line")
    said = json.loads((tmp_path / "set" / "dataset.json").read_text(encoding="utf-8"))
    assert said["inputs"] == [
        {
            "name": str(text_file),
            "size": text_file.stat().st_size,
            "encoding": "utf-8",
            "sha256": hashlib.sha256(text_file.read_bytes()).hexdigest(),
        }
    ]
    for key in ("documents", "characters", "tokens", "records", "leftover_tokens", "padding_tokens"):
        assert said[key] == getattr(made, key)
    assert (said["eod_id"], said["pad_id"], said["vocab_size"], said["column"]) == (9, 6, 40000, "input_ids")
    assert said["tokenizer"]["fingerprint"] == pangu.fingerprint
    assert load_tokenizer(tmp_path / "set" / "tokenizer").fingerprint == pangu.fingerprint


def test_gbk_and_marked_files_enter_as_their_text(pangu: Tokenizer, tmp_path: Path) -> None:
    text = "\n".join(lines(50))
    for name, code in (("u", "utf-8"), ("b", "utf-8-sig"), ("g", "gbk"), ("w", "utf-16")):
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", "\r\n").encode(code))
        prepare(tmp_path / f"{name}.txt", tmp_path / name, pangu, record_length=33)
    assert stream(tmp_path / "u") == stream(tmp_path / "b") == stream(tmp_path / "g") == stream(tmp_path / "w")


def test_the_shipped_sample_is_prepared_by_blocks(pangu: Tokenizer, tmp_path: Path) -> None:
    made = prepare(sample_files("heldout"), tmp_path / "set", pangu, record_length=129, documents="block")
    assert made.documents > 2 and made.records > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"record_length": 1}, "too short"),
        ({"column": "a-b"}, "column 'a-b'"),
        ({"column": "列"}, "column"),
        ({"shards": 0}, "shards=0"),
        ({"workers": 0}, "workers=0"),
        ({"text_format": "html"}, "format 'html'"),
        ({"documents": "page"}, "documents='page'"),
        ({"record_length": 100_000}, "gives only"),
        ({"shards": 900}, "shards"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_left(
    options: dict, words: str, text_file: Path, pangu: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        prepare(text_file, tmp_path / "set", pangu, **{"record_length": 33, **options})
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_by_name_and_nothing_is_left(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("好天气。".encode() * 9 + b"\xff" + "好".encode())
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for inputs, words in (
        ([text_file, bad], "bad.txt: .*byte 108"),
        (empty, "no document in the input: .*empty.txt"),
        (tmp_path / "none*.txt", "no such file"),
        ([], "no input"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(inputs, tmp_path / "out" / "set", pangu, record_length=33)
        assert not (tmp_path / "out" / "set").exists() and not list(tmp_path.glob("out/.*"))


def test_an_existing_folder_is_refused_and_untouched(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        prepare(text_file, tmp_path, pangu, record_length=33)
    assert (tmp_path / "keep").read_text() == "mine"


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_worker_that_dies_ends_everything(
    when: str, pangu: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "WORKER_SECONDS", 1e-9)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 2000)
    source = tmp_path / "a.txt"
    source.write_text("\n".join(lines(3000)), encoding="utf-8")
    started: list[encoding.Worker] = []
    true_init = encoding.Worker.__init__

    def init(self: encoding.Worker, *args: object) -> None:
        true_init(self, *args)  # type: ignore[arg-type]
        started.append(self)
        if when == "before" and len(started) == 2:
            os.kill(self.process.pid, signal.SIGKILL)

    def killer(done: int, total: int | None, text: str) -> None:
        if when == "while" and done:
            started[0].process.kill()

    monkeypatch.setattr(encoding.Worker, "__init__", init)
    with pytest.raises(InputError, match=r"worker \d died \(killed by signal 9"):
        prepare(source, tmp_path / "set", pangu, record_length=33, workers=2, progress=killer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]
    assert all(worker.process.poll() is not None for worker in started)


def test_a_worker_that_fails_tells_why(tmp_path: Path, pangu: Tokenizer) -> None:
    pangu.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocab.model").write_bytes(b"damaged")
    with encoding.WorkerPool(tmp_path / "tokenizer", 9, 1) as pool:
        with pytest.raises(InputError, match="worker 1 died .exit code 1: .*vocab.model.*sha256 differs"):
            list(pool.encode(iter([["好"]])))


def test_workers_end_when_the_process_that_prepares_is_killed(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n".join(lines(3000)), encoding="utf-8")
    code = (
        "import sys; from pangu_lab.data import prepare, preparation, encoding\n"
        "from pangu_lab.tokenizer import load_tokenizer\n"
        "import os, signal\n"
        "preparation.WORKER_SECONDS = 1e-9; encoding.BATCH_CHARACTERS = 2000\n"
        "workers = []; init = encoding.Worker.__init__\n"
        "def noted(self, *args):\n    init(self, *args); workers.append(self.process.pid)\n"
        "encoding.Worker.__init__ = noted\n"
        "def kill(done, total, text):\n    if not done: return\n    sys.stdout.write(' '.join(map(str, workers))); sys.stdout.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare({str(source)!r}, {str(tmp_path / 'set')!r}, load_tokenizer(), record_length=33, workers=2, "
        "progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "set").exists()  # what is left has a name that nothing takes for a data set
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_is_named_and_nothing_is_left(
    text_file: Path, pangu: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(records.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 3_000_000))
    with pytest.raises(InputError, match=r"the disk is full \(3 MB free\)"):
        prepare(text_file, tmp_path / "set", pangu, record_length=33)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file.*cannot be made .*Not a directory"):
        prepare(text_file, tmp_path / "file" / "set", pangu, record_length=33)


def test_a_write_that_fails_is_an_error_and_nothing_is_left(pangu: Tokenizer, tmp_path: Path) -> None:
    """A real one: files may not grow past 1 MB."""
    source = tmp_path / "a.txt"
    source.write_text("\n".join(lines(6000)), encoding="utf-8")
    code = (
        "import resource, signal, sys; from pangu_lab.data import prepare\n"
        "from pangu_lab.errors import InputError; from pangu_lab.tokenizer import load_tokenizer\n"
        "import mindspore.mindrecord\n"
        "tokenizer = load_tokenizer(); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_100_000, 1_100_000))\n"
        "try:\n"
        f"    prepare({str(source)!r}, {str(tmp_path / 'set')!r}, tokenizer, record_length=33)\n"
        "except InputError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_an_interruption_leaves_nothing(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    def interrupt(*news: object) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        prepare(text_file, tmp_path / "set", pangu, record_length=33, progress=interrupt)
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == threads


def test_progress_counts_characters_and_tells_the_speed(text_file: Path, pangu: Tokenizer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    prepare(text_file, tmp_path / "set", pangu, record_length=33, progress=lambda *news: told.append(news))
    total = len(text_file.read_text(encoding="utf-8"))
    assert told[0] == (0, None, "looking through a.txt")
    assert all(0 < done <= total == of for done, of, _ in told[1:]) and told[-1][0] == total
    assert told[1][2].endswith("tokens/s")


def test_what_the_vocabulary_lacks_is_counted_and_named(tmp_path: Path, pangu: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("春天来了。\n" * 30 + "𠮷𠮷𠮷龘龘。\n", encoding="utf-8")
    made = prepare(tmp_path / "a.txt", tmp_path / "data", pangu, record_length=9)
    assert made.unknown_characters == {"𠮷": 3, "龘": 2} and made.unknown_tokens > 0
    assert made.warnings()[-1].endswith(
        "unknown characters, most often 𠮷×3 龘×2; train a vocabulary on this text, or one with --byte-fallback"
    )
    metadata = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert metadata["unknown_characters"] == {"𠮷": 3, "龘": 2}


def test_rows_left_out_and_files_not_read_are_told(tmp_path: Path, pangu: Tokenizer) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.jsonl").write_text('{"text": "春天来了。春天来了。"}\n{"text": null}\n' * 9, encoding="utf-8")
    (texts / "b.pdf").write_bytes(b"%PDF")
    made = prepare(texts, tmp_path / "data", pangu, record_length=9)
    assert made.documents == 9 and made.left_out == {"'text' is null": 9}
    assert made.notes == (
        "not read: 1 other file (1 .pdf)",
        f"left out: 9 × 'text' is null (first: {texts / 'a.jsonl'}: line 2)",
    )
