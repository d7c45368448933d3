"""A real ``pangu-lab serve`` process, and an engine that writes what it is told, as slowly as it is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pangu_lab.config import SamplingConfig
from pangu_lab.generate import Engine
from tests.generate.fakes import CharacterTokenizer, TableRunner, script

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A server in a process of its own.

    Args:
        within: words before the command, to run it on another host.

    Attributes:
        url: without a slash at its end.
    """

    def __init__(self, bundle: Path, *arguments: str, within: Sequence[str] = (), **environment: str) -> None:
        command = [
            *within,
            sys.executable,
            "-m",
            "pangu_lab.cli",
            "serve",
            "--bundle",
            str(bundle),
            "--port",
            "0",
            "--json",
            *arguments,
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self.ready = self._ready()
        self.url, self.pid = self.ready["url"].rstrip("/"), self.ready["pid"]

    def _ready(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError(self.process.stderr.read())

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, and what it still said on both streams."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextlib.contextmanager
def running(bundle: Path, *arguments: str, within: Sequence[str] = (), **environment: str) -> Iterator[Process]:
    server = Process(bundle, *arguments, within=within, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def scripted(text: str = "abc" * 8, seconds: float = 0.0, slots: int = 256, **settings) -> Engine:
    """Greedy after a prompt of two letters it writes ``text``, a token in ``seconds``."""
    tokenizer = CharacterTokenizer()
    written = script(tokenizer.vocab_size, [tokenizer.id_of(letter) for letter in text], 2)

    def logits_of(sequence):
        time.sleep(seconds)
        return written(sequence)

    config = SamplingConfig(**(settings or {"temperature": 0, "max_new_tokens": 16}))
    return Engine(TableRunner(logits_of, tokenizer.vocab_size, slots=slots), tokenizer, config, "scripted")
