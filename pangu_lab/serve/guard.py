"""The guard before every route: who may connect, from where, and with how much data.

Written directly against ASGI: the framework's own middleware classes hide a client's disconnect from the routes,
which must free its part of the cache. In this order: a foreign ``Origin`` or ``Host`` is refused (a page of another
site must not use this server through a visitor's browser), then a missing key (401; wrong ones are answered ever more
slowly), then a body that is too large (413; it is counted as it arrives, whatever its header says).
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from pangu_lab.errors import InputError
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.protocol import IGNORED, Refused

API = ("/v1/", "/model/", "/query", "/metrics")  # everything else belongs to the page, which asks for its own password
HEALTH = "/healthz"
LOGIN = "/login"  # of the page


class Guard:
    """ASGI middleware.

    Args:
        app: the application it guards.
        secret: bearer token of the API, or password of basic authentication; None disables authentication.
        hosts: host names under which the server may be reached; None allows any.
        names: of these, the ones that a proxy may pass on without the port that its visitors use.
        origins: of other sites, whose pages may use the API.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        secret: str | None = None,
        hosts: Sequence[str] | None = None,
        on_answer: Callable[[str, int], None] = lambda route, code: None,
        names: Sequence[str] = (),
        origins: Sequence[str] = (),
    ):
        self.app, self.limits, self.on_answer = app, limits, on_answer
        self.secrets = None if secret is None else _spellings(secret)
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.names, self.origins = {name.lower() for name in names}, {origin_of(origin) for origin in origins}
        self.failures = FailedLogins()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # not used here
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        watched = self._watched(scope, headers, send)
        try:
            self._check_host(scope["path"], headers)
            self._check_origin(scope["path"], headers)
            if self._is_shared(scope["path"], headers) and "access-control-request-method" in headers:
                return await _allow(headers, watched)
            if scope["path"].startswith(API):
                self._check_secret(headers)
            if (
                headers.get("content-length", "0").isdecimal()
                and int(headers.get("content-length", "0")) > self.limits.body_bytes
            ):
                raise self._too_large()
            await self.app(scope, self._counted(receive), watched)
        except Refused as error:
            await answer(watched, error)

    def _watched(self, scope: Any, headers: dict[str, str], send: Any) -> Any:
        """``send``, and what every answer needs: a count, a pause after a wrong key, and a word to the browser."""
        path, more = scope["path"], []
        if self.origins and path.startswith(API):
            more.append((b"vary", b"Origin"))
        if self._is_shared(path, headers):
            more += [
                (b"access-control-allow-origin", headers["origin"].encode("latin-1")),
                (b"access-control-expose-headers", f"{IGNORED}, Retry-After".encode()),
            ]

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                if _was_wrong(scope, headers, message["status"]):
                    await asyncio.sleep(self.failures.pause(scope["client"][0] if scope["client"] else ""))
                if path.startswith(API):
                    self.on_answer(path.split("?")[0], message["status"])
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return watched

    def _check_host(self, path: str, headers: dict[str, str]) -> None:
        if "host" not in headers and path == HEALTH:  # of HTTP/1.0, as some load balancers ask
            return
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(403, f"this server is not called '{host[:100]}'", code="wrong_host")

    def _check_origin(self, path: str, headers: dict[str, str]) -> None:
        origin, host = headers.get("origin", "").lower(), headers.get("host", "").lower()
        if not origin or self._is_shared(path, headers):
            return
        if origin == "null":
            raise Refused(403, "pages without an origin may not use this server", code="foreign_origin")
        place = origin.partition("://")[2]
        if not place or place != host and not (host in self.names and _name(place) == host):
            raise Refused(403, "pages of other sites may not use this server", code="foreign_origin")

    def _is_shared(self, path: str, headers: dict[str, str]) -> bool:
        """Whether the request comes from a page of another site that may use the API, and means the API."""
        return path.startswith(API) and headers.get("origin", "").lower() in self.origins

    def _check_secret(self, headers: dict[str, str]) -> None:
        if self.secrets is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        key = _password(given) if kind.lower() == "basic" else given.encode("latin-1")
        if not any([hmac.compare_digest(key, secret) for secret in self.secrets]):
            raise Refused(
                401,
                "this server needs its key: send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                kind="authentication_error",
            )

    def _counted(self, receive: Any) -> Any:
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limits.body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"the request is larger than this server's {self.limits.body_bytes} bytes: send less",
            code="request_too_large",
        )


class FailedLogins:
    """How long a wrong key waits for its answer: twice as long each time, for each client address.

    A right key never waits, not even from the same address. Of more than ``MOST`` addresses the oldest are forgotten.
    """

    FIRST, LONGEST, FORGOTTEN, MOST = 0.05, 5.0, 600.0, 4096  # seconds, and addresses

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address → failures, time of the last

    def pause(self, client: str) -> float:
        """Note a failure; seconds to wait before it is answered."""
        address, now = address_of(client), self._clock()
        count, last = self._known.pop(address, (0, now))
        count = min(count, 30) + 1 if now - last < self.FORGOTTEN else 1
        self._known[address] = (count, now)
        if len(self._known) > self.MOST:
            self._known.popitem(last=False)
        return min(self.FIRST * 2 ** (count - 1), self.LONGEST)


def _was_wrong(scope: Any, headers: dict[str, str], status: int) -> bool:
    """Whether an answer says that a key or a password was wrong, and not only missing."""
    if scope["method"] == "POST" and scope["path"].endswith(LOGIN):
        return status in (400, 401)
    return status == 401 and "authorization" in headers


def address_of(host: str) -> str:
    """A client's address, as it counts for limits: of IPv6 the network of 64 bits, which one client has to itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def loopback_names() -> list[str]:
    return ["localhost", "127.0.0.1", "[::1]", "::1"]


def origin_of(text: str) -> str:
    """An origin as browsers write it.

    Raises:
        InputError: it is none.
    """
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and text.isascii()
            and parts.path in ("", "/")
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        good = False
    if not good:
        raise InputError(f"--allow-origin {text}: write scheme, name and port, such as https://example.com:8443")
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[: host.find("]") + 1].lower()
    name = host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()
    try:
        return "127.0.0.1" if ipaddress.ip_address(name).is_loopback else name
    except ValueError:
        return name


def _spellings(secret: str) -> list[bytes]:
    """The secret in the bytes that clients send for it: UTF-8, or Latin-1 as Python's own client does."""
    spelled = [secret.encode("utf-8", "surrogateescape")]
    try:
        return [*spelled, secret.encode("latin-1")]
    except UnicodeEncodeError:
        return spelled


def _password(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True).partition(b":")[2]
    except ValueError:
        return b""


async def _allow(headers: dict[str, str], send: Any) -> None:
    """Answer a browser that asks whether a page of another site may send a request."""
    asked = headers.get("access-control-request-headers", "authorization, content-type")
    allowed = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-max-age", b"600"),
        (b"access-control-allow-headers", asked.encode("latin-1")),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


async def answer(send: Any, error: Refused) -> None:
    """Send an error body over ASGI."""
    body = json.dumps(error.body(), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status in (429, 503):
        headers.append((b"retry-after", b"1"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
