"""Text to MindRecord beside the plain recipe: jieba and SentencePiece document by document in a pool of processes.

Both use two processes at most and write every record; the peer's pool is started, and its words are loaded, before the
clock runs. Ours starts each round with a tokenizer that remembers no word. The text is the corpus of the optional data
folder, else the shipped sample ten times. ``prepare-portable`` is ours without the C code.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

RECORD_LENGTH = 1025
PROCESSES = 2


def texts() -> list[str]:
    """The files to prepare; the sample ten times over where there is no data folder."""
    from pangu_lab.data import sample_files

    root = Path(__file__).resolve().parents[2]
    corpus = Path(os.environ.get("PANGU_LAB_DATA", root.parent / "shared" / "data")) / "corpus"
    found = sorted(map(str, corpus.glob("*.txt")))
    if found:
        return found
    folder = Path(tempfile.mkdtemp(prefix="pangu-lab-bench-"))
    for number in range(10):
        for path in sample_files("train"):
            shutil.copy(path, folder / f"{number}-{path.name}")
    return sorted(map(str, folder.glob("*.txt")))


def ours(kind: str, *files: str) -> None:
    if kind == "portable":
        os.environ["PANGU_LAB_NATIVE"] = "0"
    import mindspore.dataset
    import mindspore.mindrecord  # noqa: F401

    from pangu_lab.data import prepare
    from pangu_lab.tokenizer import load_tokenizer, native
    from tests.benchmarks.turns import serve

    native.segmenter()
    folder = Path(tempfile.mkdtemp(prefix="pangu-lab-bench-"))

    def work() -> float:
        tokenizer = load_tokenizer("pangu")
        try:
            return prepare(
                list(files), folder / "set", tokenizer, record_length=RECORD_LENGTH, workers=PROCESSES
            ).seconds
        finally:
            shutil.rmtree(folder / "set", ignore_errors=True)

    serve(work, native=native.segmenter() is not None, workers_at_most=PROCESSES)
    shutil.rmtree(folder, ignore_errors=True)


_peer_model = None  # one for each process of the pool


def _peer_start(model: str) -> None:
    global _peer_model
    import jieba
    import sentencepiece

    jieba.setLogLevel(60)
    jieba.initialize()
    _peer_model = sentencepiece.SentencePieceProcessor(model_file=model)


def _peer_encode(line: str) -> list[int]:
    import jieba

    marks = str.maketrans(" \n", "\u2582\u2583")
    return [*_peer_model.encode(" ".join(word.translate(marks) for word in jieba.cut(line))), 9]


def _peer_write(path: str, stream: list[int]) -> None:
    import numpy as np
    from mindspore.mindrecord import FileWriter

    rows = np.array(stream[: len(stream) // RECORD_LENGTH * RECORD_LENGTH], np.int32).reshape(-1, RECORD_LENGTH)
    writer = FileWriter(path)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "records")
    for begin in range(0, len(rows), 1000):
        writer.write_raw_data([{"input_ids": row} for row in rows[begin : begin + 1000]])
    writer.commit()


def peer(*files: str) -> None:
    from pangu_lab.tokenizer.load import released_vocabulary
    from tests.benchmarks.turns import serve

    pool = multiprocessing.get_context("fork").Pool(PROCESSES, _peer_start, (str(released_vocabulary()),))
    pool.map(_peer_encode, ["准备好"] * 100)
    import jieba
    import mindspore.mindrecord  # noqa: F401  after the pool was forked

    folder = Path(tempfile.mkdtemp(prefix="pangu-lab-bench-"))

    def work() -> None:
        lines = [line.rstrip("\n") for name in files for line in open(name, encoding="utf-8") if line.strip()]
        stream = [index for ids in pool.imap(_peer_encode, lines, chunksize=200) for index in ids]
        _peer_write(str(folder / "records.mindrecord"), stream)
        for path in folder.iterdir():
            path.unlink()

    serve(work, jieba=jieba.__version__, processes=PROCESSES)
    pool.terminate()
    shutil.rmtree(folder, ignore_errors=True)


def run(rounds: int = 5) -> dict:
    """Seconds for the whole text, ours and the peer's in turn; characters a second beside them."""
    from tests.benchmarks.turns import Program, compare

    files = texts()
    characters = sum(len(Path(name).read_text(encoding="utf-8")) for name in files)
    results = {}
    for kind in ("native", "portable"):
        found = compare(
            Program("prepare", __spec__.name, "ours", kind, *files),
            Program("peer", __spec__.name, "peer", *files),
            rounds,
        )
        found["characters"] = characters
        found["ours_characters_per_second"] = round(characters / found["ours_seconds"])
        found["peer_characters_per_second"] = round(characters / found["peer_seconds"])
        results["prepare" if kind == "native" else f"prepare-{kind}"] = found
    return results


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        ours(*sys.argv[2:])
    else:
        peer(*sys.argv[2:])
