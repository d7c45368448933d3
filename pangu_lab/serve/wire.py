"""Messages between a distributed server's front end and its ranks: a line of JSON, then arrays as they lie in memory.

The connection and its handshake are the standard library's: both sides prove that they know a common key (HMAC of a
random challenge) before anything else is read. Nothing that arrives is ever unpickled. Each side sends a heartbeat
every few seconds; one that is silent for long counts as gone, as does one whose connection ends.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

import numpy as np

from pangu_lab.errors import InputError

BEAT_SECONDS, SILENT_SECONDS = 2.0, 60.0
HANDSHAKE_SECONDS = 10.0
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
            except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise Gone(str(error) or "the connection ended") from None
            if head["kind"] != "beat":
                return head, arrays

    def close(self) -> None:
        """End the connection: the other side sees it at once."""
        try:  # another thread may wait in ``receive``, which closing alone would not wake
            with socket.socket(fileno=socket.dup(self._connection.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass
        with self._sending:
            self._connection.close()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                self.send("beat")
            except Gone:
                return


def unpacked(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A message's facts and arrays.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    line, _, rest = content.partition(b"\n")
    head, arrays, start = json.loads(line), [], 0
    for name, shape in head.pop("arrays"):
        count = math.prod(shape)
        arrays.append(np.frombuffer(rest, KINDS[name], count, start).reshape(shape))
        start += count * arrays[-1].itemsize
    if start != len(rest) or not isinstance(head["kind"], str):
        raise ValueError("a message of another length than it says")
    return head, arrays


def authenticated(connection: Connection, key: bytes) -> Link:
    """The listening side's handshake.

    Raises:
        Gone: the other side does not know the key, or is too slow.
    """
    late = threading.Timer(HANDSHAKE_SECONDS, connection.close)
    late.start()
    try:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
    except (OSError, EOFError, ValueError, AuthenticationError) as error:
        connection.close()
        raise Gone(str(error)) from None
    finally:
        late.cancel()
    return Link(connection)


def connected(address: tuple[str, int], key: bytes, patience: float = 5.0) -> Link:
    """Connect to a front that listens, or soon will.

    Raises:
        InputError: it has another key.
        Gone: nobody listens there.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return Link(Client(address, authkey=key))
        except AuthenticationError:
            raise InputError(f"{address[0]}:{address[1]} has another key") from None
        except (OSError, EOFError) as error:
            if time.monotonic() > until:
                raise Gone(f"nobody answers at {address[0]}:{address[1]} ({error})") from None
        time.sleep(0.2)
