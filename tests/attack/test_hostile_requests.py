"""Hostile requests at the real server, and after them the same text as before.

Drawn from a seed: wrong values in every field of a request, damaged JSON, damaged HTTP, paths that look for files, streams
and uploads that are cut, silence, and clients that leave. None may end the server, leave a traceback in its log, or change
what the next client gets.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.running import running

ASKED = {"prompt": "春天来了，", "max_tokens": 12, "temperature": 0.8, "seed": 7}
FIELDS = (
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "stop",
    "stream",
    "logprobs",
    "echo",
    "model",
    "suffix",
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "user",
    "instances",
    "unknown",
)
VALUES = (
    None,
    True,
    -1,
    0,
    10**400,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 30_000,
    "\ud800",
    "\0",
    "\u202e",
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [None],
    ["x"] * 5000,
    {str(index): 100 for index in range(3000)},
    [10**9],
    "9" * 5000,
)
PATHS = (
    "/v1/completions",
    "/v1/models",
    "/v1/models/../../etc/passwd",
    "/v1/chat/completions",
    "/v1/models/debug:predict",
    "/healthz",
    "/metrics",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/run/predict",
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/\x7f",
    "/" + "a" * 9000,
    "//",
    "/static/../../x",
    "/gradio_api/queue/data?session_hash=x",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW")


class Attacker:
    """Sends one hostile request after the other to a server."""

    def __init__(self, url: str, seed: int):
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.draw = random.Random(seed)

    def attack(self) -> None:
        kind = self.draw.choice(
            (self.values, self.values, self.json, self.http, self.path, self.cut_stream, self.cut_upload)
        )
        with contextlib.suppress(OSError):  # the server may close at any time; it may not die
            kind()

    def values(self) -> None:
        """Wrong values in some fields."""
        body = dict(ASKED)
        for _ in range(self.draw.randint(1, 3)):
            body[self.draw.choice(FIELDS)] = self.draw.choice(VALUES)
        self.post(json.dumps(body).encode())

    def json(self) -> None:
        """JSON with damaged bytes."""
        body = bytearray(json.dumps({**ASKED, "stop": ["。", "\n"]}, ensure_ascii=False).encode())
        for _ in range(self.draw.randint(1, 6)):
            body[self.draw.randrange(len(body))] = self.draw.randrange(256)
        self.post(bytes(body) + self.draw.choice((b"", b"[" * 5000, b"{}", b"\0" * 100)))

    def http(self) -> None:
        """What is hardly HTTP."""
        self.send(
            self.draw.choice(
                (
                    b"\x16\x03\x01\x02\x00\x01\x00",
                    b"GET\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
                    self.draw.randbytes(300),
                )
            )
        )

    def path(self) -> None:
        """Any method on any path, with any host and origin."""
        headers = self.draw.choice(
            (
                "",
                "Host: evil.example\r\n",
                "Origin: http://[\r\n",
                "Cookie: \xff=1\r\n",
                "Authorization: Bearer \xc3\xa9\r\n",
                "X-Forwarded-For: " + "1.1.1.1, " * 500 + "\r\n",
            )
        )
        head = f"{self.draw.choice(METHODS)} {self.draw.choice(PATHS)} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: 2\r\n\r\n{{}}"
        self.send(head.encode("latin-1"))

    def cut_stream(self) -> None:
        """A stream whose reader leaves in the middle."""
        body = json.dumps({**ASKED, "max_tokens": 60, "stream": True}).encode()
        self.post(body, read=self.draw.randrange(400))

    def cut_upload(self) -> None:
        """A body that ends before its end, or never comes."""
        body = json.dumps(ASKED).encode()
        self.send(self.head(len(body) + 500) + body[: self.draw.randrange(len(body))], read=0)

    def post(self, body: bytes, read: int = 65536) -> None:
        self.send(self.head(len(body)) + body, read)

    @staticmethod
    def head(length: int) -> bytes:
        return (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
        ).encode()

    def send(self, content: bytes, read: int = 65536) -> None:
        with socket.create_connection(self.address, timeout=20) as connection:
            connection.settimeout(1.0)  # what waits for more than it was sent is left
            connection.sendall(content)
            while read > 0 and (got := connection.recv(read)):
                read -= len(got)


def text_of(url: str) -> str:
    """The text of a normal request."""
    answer = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("count", [100, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_after_hostile_requests_the_next_client_gets_the_same_text(debug_bundle, count):
    with running(debug_bundle) as server:
        expected, attacker = text_of(server.url), Attacker(server.url, count)
        for number in range(count):
            attacker.attack()
            assert server.process.poll() is None, f"attack {number} ended the server"
            if number % 50 == 0:
                assert text_of(server.url) == expected, f"after attack {number}"
        silent = [socket.create_connection(attacker.address) for _ in range(100)]
        assert httpx.get(f"{server.url}/healthz", timeout=20).status_code == 200
        assert text_of(server.url) == expected
        for connection in silent:
            connection.close()
        deadline = time.monotonic() + 30  # what was left behind is given back
        while "pangu_cache_slots_used 0.0" not in httpx.get(f"{server.url}/metrics").text:
            assert time.monotonic() < deadline, "something is still being written"
            time.sleep(0.1)
        server.signal()
        code, _, said = server.end()
    assert code == 0 and "Traceback" not in said, said[-3000:]
