"""An allow-list for Gradio's routes: only those that have been reviewed are served.

Gradio is made for sharing files: its application has routes that read, store, fetch and stream them, some that write
code, and every input of a function may be a file (``FileData``), which is copied to a place that one of these routes
serves. The page here shows only text and needs none of it. So Gradio's application stands behind a list of routes that
were reviewed and are needed, by the paths of its own router; a route that a new version adds is refused until it is on
the list. And no request body may hold a file, at any depth, in any form.
"""

from __future__ import annotations

from typing import Any

from starlette._utils import get_route_path  # the router's own: a different parser could be bypassed
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from pangu_lab.serve.protocol import Refused, hung_up, parse_json

# The purpose of each, and why it is safe.
ALLOWED = {
    ("GET", "/"): "the page itself",
    ("HEAD", "/"): "whoever asks whether the page is there",
    ("GET", "/config"): "the layout: gradio_client begins here, and the page after a login",
    ("GET", "/gradio_api/info"): "what gradio_client may call: complete, and nothing else",
    ("GET", "/assets/{path:path}"): "scripts and styles from one folder of Gradio's package, which it does not leave",
    ("GET", "/static/{path:path}"): "pictures and fonts from another, likewise",
    ("GET", "/theme.css"): "colours and fonts, made at the start",
    ("GET", "/favicon.ico"): "one picture",
    ("GET", "/manifest.json"): "the page's name and picture, for browsers",
    ("POST", "/login"): "name and password; its body is a form and goes nowhere else",
    ("GET", "/gradio_api/heartbeat/{session_hash}"): "held open by a page, so that closing it stops its text",
    ("POST", "/gradio_api/queue/join"): "a button that writes, and complete; its body may hold no file",
    ("GET", "/gradio_api/queue/data"): "the news of that, for whoever knows the session's random name",
    ("POST", "/gradio_api/run/{api_name}"): "the quick buttons, counting and stopping; its body may hold no file",
    ("POST", "/gradio_api/cancel"): "gradio_client's cancel, for whoever knows the session's random name",
}
FORM = "/login"  # the only body that is not JSON
FILE_KEYS = {"path", "meta", "_type"}  # keys that make an object a file for Gradio; no input of this page is an object


class Gate:
    """ASGI application: Gradio's, without the routes that are not on the list."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._allowed = [(method, compile_path(path)[0]) for method, path in ALLOWED]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        method, path = scope["method"], self._path(scope)
        if not any(method == known and form.fullmatch(path) for known, form in self._allowed):
            raise Refused(
                404,
                f"{method} {path[:100]} is not an address of this page, which neither takes nor gives files",
                code="unknown_url",
            )
        if method == "POST":
            body = await _whole(receive)
            if path != FORM and holds_file(parse_json(body)):
                raise Refused(400, "this page takes texts and numbers, and no files", code="no_files")
            receive = _again(body, receive)
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:
            # The news of a session that nobody has: Gradio tells so in the stream and then raises "404" into an answer
            # that has begun. A stranger's guess is no fault of the server: end the answer, without a traceback.
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _path(self, scope: Any) -> str:
        """The path as Gradio's router sees it: without its own root path, if it has one."""
        root = self.app.root_path or scope.get("root_path", "")
        return get_route_path({**scope, "root_path": root})


def holds_file(values: Any) -> bool:
    """Whether parsed JSON contains, anywhere, an object that Gradio would take for a file."""
    left = [values]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if not FILE_KEYS.isdisjoint(one):
                return True
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
    return False


async def _whole(receive: Any) -> bytes:
    """The body of a request; the guard before this counts it.

    Raises:
        Refused: the client left before its end.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise hung_up()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Any) -> Any:
    """A ``receive`` that replays the body, and then passes on what really comes."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Any:
        return first.pop() if first else await receive()

    return replayed
