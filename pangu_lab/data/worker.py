"""A process that turns documents into ids for ``prepare``: ``python -m pangu_lab.data.worker TOKENIZER EOD``.

It reads frames from standard input and answers each on standard output until the input ends, so it never outlives
the process that started it. A frame is its length (8 bytes) and that many bytes: documents in UTF-8 with a zero
byte between them one way, ids as int32 (each document followed by its end) the other way.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import BinaryIO

from pangu_lab.tokenizer import load_tokenizer

LENGTH = struct.Struct("<Q")


def write_frame(stream: BinaryIO, content: bytes) -> None:
    stream.write(LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame; None when the stream ends, whether between frames or inside one."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    length = LENGTH.unpack(head)[0]
    content = stream.read(length)
    return content if len(content) == length else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not land between the frames
    tokenizer = load_tokenizer(sys.argv[1], eod=int(sys.argv[2]))
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        write_frame(answers, tokenizer.encode_documents(frame.decode("utf-8").split("\0")).tobytes())


if __name__ == "__main__":
    main()
