"""Clients that say nothing, say it slowly, leave in the middle or do not read: nobody else is kept out by them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from pangu_lab.errors import InputError
from pangu_lab.serve import Limits, parse_limits
from pangu_lab.serve.connections import RESERVE
from pangu_lab.serve.guard import address_of
from pangu_lab.serve.server import _listen, _start
from tests.serve.running import running

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n"


class Serving:
    """An application over the connections of a server.

    Attributes:
        open: set to let it finish its answers.
        left: how many answers were begun and ended without their client.
    """

    def __init__(self, limits: Limits, proxies=()) -> None:
        self.open, self.asked, self.left = threading.Event(), 0, 0
        self.open.set()
        listening = _listen("127.0.0.1", 0)
        self.address = listening.getsockname()
        self.runner, self.thread = _start(self, listening, limits, proxies, None, None)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        self.asked += scope["path"] == "/hold"
        while scope["method"] == "POST":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            if not message["more_body"]:
                break
        while scope["path"] == "/hold" and not self.open.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000 if scope["path"] == "/long" else 1):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.left += scope["path"] == "/long"

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)

    def get(self, path: str, timeout: float = 30) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.address[1]}{path}", timeout=timeout, trust_env=False)

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[list[httpx.Response]]:
        """So many connections that are being answered; the answers are in the list when the block has ended."""
        self.open.clear()
        answers, before = [], self.asked
        threads = [threading.Thread(target=lambda: answers.append(self.get("/hold"))) for _ in range(count)]
        for thread in threads:
            thread.start()
        wait_for(lambda: self.asked == before + count)
        try:
            yield answers
        finally:
            self.open.set()
            for thread in threads:
                thread.join()


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.01)


@pytest.fixture
def serving():
    """Makes servers; they end with the test."""
    made = []

    def make(proxies=(), **limits) -> Serving:
        made.append(Serving(Limits(**limits), proxies))
        return made[-1]

    yield make
    for one in made:
        one.open.set()
        one.runner.should_exit = True
        one.thread.join(15)
        assert not one.thread.is_alive()


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def drip(connection: socket.socket, content: bytes) -> bytes:
    """Send byte for byte until the other side has enough; what it says."""
    connection.settimeout(0.02)
    for number in range(len(content)):
        with contextlib.suppress(TimeoutError):
            connection.sendall(content[number : number + 1])
            return connection.recv(1) + everything(connection)
    raise AssertionError("all was taken")


# ------------------------------------------------------------------------------------------------------ time limits


def test_a_connection_that_says_nothing_is_closed_without_a_word(serving):
    with serving(header_seconds=0.2).connect() as connection:
        assert everything(connection) == b""


def test_headers_that_come_byte_for_byte_are_ended_with_the_reason(serving):
    server = serving(header_seconds=0.4)
    with server.connect() as connection:
        said = drip(connection, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and json.loads(body)["error"]["code"] == "timeout"
    with server.connect() as connection:  # nor in the second request of a connection
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        seen = b""
        while not seen.endswith(b"\r\n0\r\n\r\n"):
            seen += connection.recv(65536)
        assert b"408" in drip(connection, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000)
    assert server.get("/a").status_code == 200


@pytest.mark.parametrize("how", ["silent", "byte for byte", "chunked"])
def test_a_body_that_does_not_come_is_ended_with_the_reason_and_its_application_too(serving, how):
    server = serving(body_seconds=0.4)
    with server.connect() as connection:
        connection.sendall(
            HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
            if how == "chunked"
            else HEAD.replace(b"100", b"1000")
        )
        parts = (b"1\r\nx\r\n" if how == "chunked" else b"x") * 900
        said = everything(connection) if how == "silent" else drip(connection, parts)
    assert said.startswith(b"HTTP/1.1 408 ") and b"the body of the request did not come within 0.4 s" in said
    wait_for(lambda: server.left == 1)


def test_the_time_of_a_body_runs_for_a_request_that_came_together_with_another_one(serving):
    server = serving(body_seconds=0.3)
    with server.connect() as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD)
        assert b"408" in everything(connection)


def test_an_idle_connection_is_closed_after_the_time_that_was_set(serving):
    for seconds in (0.2, 60):
        with serving(keep_alive_seconds=seconds).connect() as connection:
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            if seconds == 0.2:
                assert everything(connection).endswith(b"0\r\n\r\n")
            else:
                connection.recv(1000)
                connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert everything(connection).count(b"HTTP/1.1 200") == 1


def test_a_client_that_does_not_read_is_left(serving):
    server = serving(send_seconds=0.3)
    with server.connect() as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.left == 1)  # its application has ended, though 100 MB are not read
    with server.connect() as connection:
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert len(everything(connection)) > 100_000_000  # who reads gets all


def test_small_pieces_of_an_answer_are_sent_at_once(serving):
    server = serving()
    with server.connect() as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1)
        [one] = server.runner.server_state.connections
        assert one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ------------------------------------------------------------------------------------------------------- how many


def test_silent_connections_give_way_and_those_that_are_answered_do_not(serving):
    server = serving(sessions=4, sessions_per_address=4)
    with contextlib.ExitStack() as held:
        with server.holding(4) as answers:
            silent = [held.enter_context(server.connect()) for _ in range(3 * RESERVE)]
            assert server.get("/healthz").status_code == server.get("/metrics").status_code == 200
            refused = server.get("/a")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["message"].startswith("this server answers 4 connections already")
            assert everything(silent[0]) == b""  # the oldest
        assert [answer.status_code for answer in answers] == [200] * 4
        assert server.get("/a").status_code == 200


def test_one_address_gets_no_more_than_its_part_unless_it_is_a_proxy(serving):
    server = serving(sessions=8, sessions_per_address=2)
    with server.holding(2):
        assert server.get("/a").status_code == 429 and server.get("/healthz").status_code == 200
    assert server.get("/a").status_code == 200
    behind = serving(("127.0.0.1",), sessions=8, sessions_per_address=2)
    with behind.holding(8):
        assert behind.get("/a").status_code == 503


def test_no_more_can_be_open_than_there_are_places(serving):
    server = serving(sessions=2, sessions_per_address=2)
    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(server.connect())
        wait_for(lambda: server.get("/a").status_code == 200)
        assert len(server.runner.server_state.connections) <= 2 + RESERVE
        with server.holding(2), contextlib.ExitStack() as more:
            health = [more.enter_context(server.connect()) for _ in range(RESERVE)]
            for connection in health:  # all of the reserve is being asked, and a last one finds no place
                connection.sendall(HEAD.replace(b"/v1/completions", b"/healthz"))
            wait_for(lambda: sum(one.answering for one in server.runner.server_state.connections) == 2 + RESERVE)
            with server.connect() as last:
                assert everything(last) == b""


@pytest.mark.parametrize(
    "host, address",
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_is_that_of_one_client(host, address):
    assert address_of(host) == address


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_limit_without_an_end_is_refused(value):
    with pytest.raises(InputError, match=f"the limit header_seconds={value} must be"):
        parse_limits([f"header_seconds={value}"])


# ----------------------------------------------------------------------------------------------- a real server process


def test_three_hundred_silent_connections_keep_nobody_out_and_who_leaves_leaves_no_traceback(debug_bundle):
    with running(debug_bundle, "--no-page", "--quick", PANGU_LAB_TOKEN="key") as server:
        port = int(server.url.rpartition(":")[2])
        with contextlib.ExitStack() as held:
            for number in range(300):
                connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                with contextlib.suppress(OSError):
                    connection.sendall((b"", HEAD[:-20], b"\x16\x03\x01")[number % 3])
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
                http.headers["authorization"] = "Bearer key"
                assert http.get("/healthz").status_code == http.get("/metrics").status_code == 200
                for sent in (HEAD, HEAD + b'{"prompt": ', HEAD[:-4], HEAD.replace(b"100", b"11") + b'{"prompt": '):
                    with socket.create_connection(("127.0.0.1", port), timeout=30) as leaving:
                        leaving.sendall(sent.replace(b"Host", b"Authorization: Bearer key\r\nHost"))
                answer = http.post("/v1/completions", json={"prompt": "春天", "max_tokens": 2})
                assert answer.status_code == 200
                wait_for(lambda: re.search(r'route="/v1/completions",status="499"} 2', http.get("/metrics").text))
        server.signal(signal.SIGTERM)
        code, out, err = server.end()
        assert code == 0 and "Traceback" not in err and "Exception" not in err, err
