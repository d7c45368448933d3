"""The guard before every route: who may connect, from where, and with how much data.

Written directly against ASGI: the framework's own middleware classes hide a client's disconnect from the routes,
which must free its part of the cache. In this order: a foreign ``Origin`` or ``Host`` is refused (a page of another
site must not use this server through a visitor's browser), then a missing key (401), then a body that is too large
(413; it is counted as it arrives, whatever its header says).
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
from collections.abc import Callable, Sequence
from typing import Any, Optional
from urllib.parse import urlsplit

from pangu_lab.serve.limits import Limits
from pangu_lab.serve.protocol import Refused

API = ("/v1/", "/model/", "/query", "/metrics")  # everything else belongs to the page, which asks for its own password


class Guard:
    """ASGI middleware.

    Args:
        app: the application it guards.
        secret: bearer token of the API, or password of basic authentication; None disables authentication.
        hosts: host names under which the server may be reached; None allows any.
    """

    def __init__(self, app: Any, limits: Limits, secret: Optional[str] = None,
                 hosts: Optional[Sequence[str]] = None,
                 on_answer: Callable[[str, int], None] = lambda route, code: None):
        self.app, self.limits, self.secret, self.on_answer = app, limits, secret, on_answer
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # not used here
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        watched = self._watched(scope["path"], send)
        try:
            self._check_origin(headers)
            if scope["path"].startswith(API):
                self._check_secret(headers)
            if headers.get("content-length", "0").isdecimal() and \
                    int(headers.get("content-length", "0")) > self.limits.body_bytes:
                raise self._too_large()
            await self.app(scope, self._counted(receive), watched)
        except Refused as error:
            await answer(watched, error)

    def _watched(self, path: str, send: Any) -> Any:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start" and path.startswith(API):
                self.on_answer(path.split("?")[0], message["status"])
            await send(message)
        return counted

    def _check_origin(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(403, f"this server is not called '{host[:100]}'", code="wrong_host")
        origin = headers.get("origin")
        if origin and origin.lower() != "null" and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "pages of other sites may not use this server", code="foreign_origin")
        if origin and origin.lower() == "null":
            raise Refused(403, "pages without an origin may not use this server", code="foreign_origin")

    def _check_secret(self, headers: dict[str, str]) -> None:
        if self.secret is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            given = _password(given)
        if not hmac.compare_digest(given.encode(), self.secret.encode()):
            raise Refused(401, "this server needs its key: send 'Authorization: Bearer KEY'", code="invalid_api_key",
                          kind="authentication_error")

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
        return Refused(413, f"the request is larger than this server's {self.limits.body_bytes} bytes: send less",
                       code="request_too_large")


def loopback_names() -> list[str]:
    return ["localhost", "127.0.0.1", "[::1]", "::1"]


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[:host.find("]") + 1].lower()
    name = host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()
    try:
        return "127.0.0.1" if ipaddress.ip_address(name).is_loopback else name
    except ValueError:
        return name


def _password(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""


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
