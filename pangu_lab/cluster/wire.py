"""Messages between a distributed server's front end and its ranks: a line of JSON, then arrays as they lie in memory.

The connection is the standard library's. Its handshake is not, since that takes MD5 in Python 3.11: both sides prove
that they know a common key (HMAC-SHA256 of both sides' random numbers) before anything else is read. Nothing that
arrives is ever unpickled. Each side sends a heartbeat every few seconds; one that is silent for long counts as gone, as
does one whose connection ends. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from typing import Any

import numpy as np

from pangu_lab.errors import InputError

BEAT_SECONDS, SILENT_SECONDS = 2.0, 60.0
HANDSHAKE_SECONDS = 10.0
NONCE = 32  # bytes of each side's random number
PROOF = 32  # bytes of an HMAC-SHA256
KINDS = {"int32": np.int32, "float32": np.float32}
LARGEST = 1 << 30  # bytes of one message: 16 rows of logits, or a long prompt's, are far below


class Gone(Exception):
    """The other side has ended, or was silent for too long."""


class Link:
    """One authenticated connection; ``send`` may be called from several threads, ``receive`` from one.

    Attributes:
        heard: ``time.monotonic()`` of the last message.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self.heard = time.monotonic()
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()

    def send(self, kind: str, *arrays: np.ndarray, **facts: Any) -> None:
        """Send a message.

        Raises:
            Gone: nobody is there any more.
        """
        head = {"kind": kind, **facts, "arrays": [[array.dtype.name, list(array.shape)] for array in arrays]}
        content = b"".join([json.dumps(head).encode(), b"\n", *(array.tobytes() for array in arrays)])
        try:
            with self._sending:
                self._connection.send_bytes(content)
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from None

    def receive(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The next message that is no beat, as its facts and arrays.

        Raises:
            Gone: there will be none.
        """
        while True:
            try:
                if not self._connection.poll(max(self.heard + SILENT_SECONDS - time.monotonic(), 0.0)):
                    raise Gone(f"silent for {SILENT_SECONDS:.0f} s")
                content = self._connection.recv_bytes(LARGEST)
                self.heard = time.monotonic()
                head, arrays = unpacked(content)
            except (OSError, EOFError, ValueError) as error:
                raise Gone(str(error) or "the connection ended") from None
            if head["kind"] != "beat":
                return head, arrays

    def close(self) -> None:
        """End the connection: the other side sees it at once."""
        cut(self._connection)
        with self._sending:
            self._connection.close()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                self.send("beat")
            except Gone:
                return


def cut(connection: Connection) -> None:
    """End a connection that another thread may be reading: closing alone would not wake it."""
    try:
        with socket.socket(fileno=socket.dup(connection.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    except (OSError, ValueError):
        pass


def unpacked(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A message's facts and arrays.

    Raises:
        ValueError: it is none.
    """
    line, _, rest = content.partition(b"\n")
    try:
        head, arrays, start = json.loads(line), [], 0
        for name, shape in head.pop("arrays"):
            count = math.prod(shape)
            arrays.append(np.frombuffer(rest, KINDS[name], count, start).reshape(shape))
            start += count * arrays[-1].itemsize
        whole = start == len(rest) and isinstance(head["kind"], str)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        whole = False
    if not whole:
        raise ValueError("it sent something that is no message")
    return head, arrays


def _proof(key: bytes, side: bytes, own: bytes, other: bytes) -> bytes:
    """What shows that ``side`` knows the key; it serves for these random numbers and for this side alone."""
    return hmac.digest(key, side + own + other, "sha256")


@contextlib.contextmanager
def _in_time(connection: Connection) -> Iterator[None]:
    """Cut the connection if the block takes too long, and close it if the block fails."""
    late = threading.Timer(HANDSHAKE_SECONDS, cut, [connection])
    late.daemon = True
    late.start()
    try:
        yield
    except BaseException:
        connection.close()
        raise
    finally:
        late.cancel()


def authenticated(connection: Connection, key: bytes) -> Link:
    """The listening side's handshake.

    Raises:
        Gone: the other side does not know the key, or is too slow.
    """
    try:
        with _in_time(connection):
            mine = os.urandom(NONCE)
            connection.send_bytes(mine)
            said = connection.recv_bytes(NONCE + PROOF)
            theirs, proof = said[:NONCE], said[NONCE:]
            if not hmac.compare_digest(proof, _proof(key, b"rank", theirs, mine)):
                connection.send_bytes(b"")
                raise ValueError("it has another key")
            connection.send_bytes(_proof(key, b"front", mine, theirs))
    except (OSError, EOFError, ValueError) as error:
        raise Gone(str(error)) from None
    return Link(connection)


def _prove(connection: Connection, key: bytes) -> Link:
    """The connecting side's handshake.

    Raises:
        _OtherKey: the two sides have different keys.
        OSError, EOFError: the other side is no front, or has too much to do.
    """
    with _in_time(connection):
        theirs, mine = connection.recv_bytes(NONCE), os.urandom(NONCE)
        connection.send_bytes(mine + _proof(key, b"rank", mine, theirs))
        if not hmac.compare_digest(connection.recv_bytes(PROOF), _proof(key, b"front", theirs, mine)):
            raise _OtherKey
    return Link(connection)


class _OtherKey(Exception):
    """The two sides of a handshake have different keys."""


def connected(address: tuple[str, int], key: bytes, patience: float = 5.0) -> Link:
    """Connect to a front that listens, or soon will.

    Raises:
        InputError: it has another key.
        Gone: nobody listens there.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return _prove(Client(address), key)
        except _OtherKey:
            raise InputError(f"{address[0]}:{address[1]} has another key") from None
        except (OSError, EOFError) as error:
            if time.monotonic() > until:
                raise Gone(f"nobody answers at {address[0]}:{address[1]} ({error})") from None
        time.sleep(0.2)
