"""The connections of the HTTP server: how many there may be, and how long each may take to say something.

uvicorn counts every open connection alike, and waits for a request's headers and body for ever: a few hundred clients
that say nothing would shut everybody out. Here only connections that are being answered count as sessions; one that is
not gives way, the longest silent first, when a newcomer needs its place. Headers, bodies, pauses between requests and
clients that do not read have their time limits. ``RESERVE`` connections more than the limits can be open, so that
``HEALTH`` is answered when everything else is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pangu_lab.serve.guard import address_of, answer
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.protocol import Refused

RESERVE = 16
HEALTH = ("/healthz", "/readyz", "/metrics")


class Connections:
    """The open connections of a server; only the event loop's thread uses it.

    Args:
        proxies: addresses of proxies, whose connections belong to many clients.
    """

    def __init__(self, limits: Limits, proxies: Iterable[str] = ()) -> None:
        self.limits, self.proxies = limits, {address_of(proxy) for proxy in proxies}
        self._open: dict[Connection, str] = {}  # with its client's address; the longest silent first

    def add(self, one: Connection) -> None:
        """Take a new connection; another that is silent gives way to it, or it is closed where none is."""
        address = address_of(one.client[0] if one.client else "")
        same = [other for other, theirs in self._open.items() if theirs == address]
        over = None
        if address not in self.proxies and len(same) >= self.limits.sessions_per_address + RESERVE:
            over = same
        elif len(self._open) >= self.limits.sessions + RESERVE:
            over = list(self._open)
        self._open[one] = address
        if over is not None:
            silent = next((other for other in over if not other.answering), one)
            self.remove(silent)
            silent.give_way()

    def remove(self, one: Connection) -> None:
        self._open.pop(one, None)

    def heard(self, one: Connection) -> None:
        """It is now the one that was silent for the shortest time."""
        if one in self._open:
            self._open[one] = self._open.pop(one)

    def refusal(self, one: Connection) -> Refused | None:
        """Why the request of this connection cannot be answered now; None if it can."""
        address = self._open.get(one)
        busy = [theirs for other, theirs in self._open.items() if other.answering]
        if len(busy) > self.limits.sessions:
            return Refused(
                503,
                f"this server answers {self.limits.sessions} connections already: try again in a moment",
                code="unavailable",
                kind="server_error",
            )
        if address not in self.proxies and busy.count(address) > self.limits.sessions_per_address:
            return Refused(
                429,
                f"{self.limits.sessions_per_address} connections from your address are answered "
                "already: try again in a moment",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
            )
        return None


class Connection(H11Protocol):
    """One connection. ``book`` holds all of them; the other arguments are uvicorn's."""

    def __init__(self, book: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._book, self._limits, self._whole_app = book, book.limits, self.app
        self._awaited: str | None = None  # what the client has to send next: "head" or "body" of a request
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.app = self._admitted

    @property
    def answering(self) -> bool:
        """Whether a request's headers have come and its answer is not finished."""
        return self.cycle is not None and not self.cycle.response_complete

    def give_way(self) -> None:
        """Close the connection, which is not being answered, for the sake of another."""
        if self.cycle is None:
            self.transport.abort()
        else:
            self.transport.close()

    async def _admitted(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["path"] in HEALTH else self._book.refusal(self)
        if refusal is None:
            return await self._whole_app(scope, receive, send)
        self.cycle.keep_alive = False

        async def send_last(message: Any) -> None:
            if (
                message["type"] == "http.response.start"
            ):  # uvicorn says nothing of it, and a client would ask again here
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await answer(send_last, refusal)

    # -------------------------------------------------------------------------------------------- uvicorn's calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(1, 0)  # so that pause_writing tells of every client that does not read
        self._book.add(self)
        self._await_more()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_more()

    def on_response_complete(self) -> None:
        self._book.heard(self)
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # the next request has come already, perhaps without its body
            self._await_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = _cancelled(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        self._book.remove(self)
        self._late, self._unread = _cancelled(self._late), _cancelled(self._unread)
        super().connection_lost(exc)

    # ------------------------------------------------------------------------------------------------- the limits

    def _await_more(self) -> None:
        """Start the clock of what the client has to send next; one that runs already goes on."""
        awaited = {h11.IDLE: "head", h11.SEND_BODY: "body"}.get(self.conn.their_state)
        if awaited == self._awaited:
            return
        self._awaited, self._late = awaited, _cancelled(self._late)
        if awaited is not None:
            seconds = self._limits.header_seconds if awaited == "head" else self._limits.body_seconds
            self._late = self.loop.call_later(seconds, self._too_late, seconds)

    def _too_late(self, seconds: float) -> None:
        half_a_head = self._awaited == "head" and self.conn.trailing_data[0]
        if half_a_head or self.answering and not self.cycle.response_started:
            self.transport.write(_timed_out(f"the {self._awaited} of the request did not come within {seconds:g} s"))
        if self.answering:
            self.cycle.disconnected = True  # its application may still be reading
        self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _timed_out(message: str) -> bytes:
    body = json.dumps(Refused(408, message, code="timeout", kind="timeout_error").body()).encode()
    return (
        b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    ) + body
