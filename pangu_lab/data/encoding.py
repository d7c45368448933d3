"""Documents to ids on several cores, in order.

Documents travel in batches; each batch goes to one worker process (plain subprocesses speaking over pipes: safe
beside MindSpore's threads, in notebooks and in scripts without a main guard) and the answers are taken in the
order of the batches, so the number of workers cannot change the result. A worker that dies is an error at once.
"""

from __future__ import annotations

import collections
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pangu_lab
from pangu_lab.data.worker import read_frame, write_frame
from pangu_lab.errors import InputError
from pangu_lab.tokenizer import Tokenizer

BATCH_CHARACTERS = 100_000
AHEAD = 3  # batches read ahead per worker: bounds the memory


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch of documents, each document with its end."""

    tokens: np.ndarray  # (tokens,) int32
    documents: int
    characters: int


def encode_all(documents: Iterable[str], tokenizer: Tokenizer, folder: Path, workers: int) -> Iterator[Encoded]:
    """Encode every document once, in order.

    Args:
        folder: where ``tokenizer`` is saved, for the workers to load.
        workers: processes; 1 works in this one.

    Raises:
        InputError: a worker died.
    """
    batches = _batches(documents)
    if workers == 1:
        for batch in batches:
            yield _encoded(tokenizer.encode_documents(batch), batch)
        return
    with WorkerPool(folder, tokenizer.eod_id, workers) as pool:
        yield from pool.encode(batches)


def _encoded(tokens: np.ndarray, batch: list[str]) -> Encoded:
    return Encoded(tokens, len(batch), sum(map(len, batch)))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class WorkerPool:
    """Worker processes, and a thread each to talk to them."""

    def __init__(self, folder: Path, eod_id: int, workers: int) -> None:
        self.workers = [Worker(folder, eod_id, number) for number in range(1, workers + 1)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="prepare")

    def encode(self, batches: Iterator[list[str]]) -> Iterator[Encoded]:
        waiting: collections.deque[Future[Encoded]] = collections.deque()
        for batch in batches:
            waiting.append(self._threads.submit(self._encode_one, batch))
            if len(waiting) >= AHEAD * len(self.workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode_one(self, batch: list[str]) -> Encoded:
        worker = self._idle.get()
        try:
            return _encoded(worker.encode(batch), batch)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()  # first: a thread that waits for an answer gets none and ends
        self._threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.close()


class Worker:
    """One worker process."""

    def __init__(self, folder: Path, eod_id: int, number: int) -> None:
        self.number = number
        self._errors = tempfile.TemporaryFile()
        package = str(Path(pangu_lab.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pangu_lab.data.worker", str(folder), str(eod_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
        )

    def encode(self, documents: list[str]) -> np.ndarray:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            write_frame(self.process.stdin, "\0".join(documents).encode("utf-8"))
            answer = read_frame(self.process.stdout)
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise InputError(self._last_words())
        return np.frombuffer(answer, np.int32)

    def _last_words(self) -> str:
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if code < 0:
            reason = f"killed by signal {-code}" + (", perhaps for lack of memory" if code == -9 else "")
        else:
            reason = f"exit code {code}" + (f": {lines[-1]}" if lines else "")
        return f"worker {self.number} died ({reason}): nothing was written; try again with fewer workers"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            try:
                stream.close()  # type: ignore[union-attr]
            except BrokenPipeError:
                pass  # what was buffered for a dead worker
