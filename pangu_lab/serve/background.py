"""A server in its own process, started and stopped from a notebook or a script, and its page inside a notebook.

The page is a separate web page; a notebook shows it in a frame. If the browser runs on the same machine, the server's
own address works. Where JupyterLab runs elsewhere, jupyter-server-proxy (the extra ``proxy``) passes it through
JupyterLab's own port and password, below ``/proxy/PORT/``; the server must then know that prefix (``root_path``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.launch.hosts import free_port


class BackgroundServer:
    """A running ``pangu-lab serve``; ends with the block, or with ``stop``, once running requests are done.

    Attributes:
        url: of the page; the API is below ``url + "v1"``.
        pid: of the process.
    """

    def __init__(self, process: subprocess.Popen, log: Any, ready: dict[str, Any], prefix: str) -> None:
        self._process, self._log, self._prefix = process, log, prefix
        self.url, self.pid = ready["url"], ready["pid"]

    def frame(self, height: int = 640) -> Any:
        """The page, for the last line of a notebook's cell. A saved notebook keeps only the line below the frame."""
        from IPython.display import HTML

        address = self._prefix + "/" if self._prefix else self.url
        return HTML(
            f'<iframe src="{address}" width="100%" height="{height}" style="border:0"></iframe>'
            f"<div>The page at {address}, to be seen while this server runs; docs/page.png shows one.</div>"
        )

    def ask(self, prompt: str, **settings: Any) -> dict[str, Any]:
        """The whole answer of ``POST /v1/completions``, by the standard library; any client of that API works too.

        Raises:
            InputError: the server's refusal, in its own words.
        """
        body = json.dumps({"prompt": prompt, **settings}).encode()
        request = urllib.request.Request(self.url + "v1/completions", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise InputError(json.loads(error.read())["error"]["message"]) from None

    def metrics(self) -> str:
        """The server's metrics, in Prometheus' format."""
        with urllib.request.urlopen(self.url + "metrics") as reply:
            return reply.read().decode()

    def stop(self, seconds: float = 90.0) -> int:
        """Let running requests finish, end the process, and give its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.communicate()
        self._log.close()
        return self._process.returncode

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()


def start_server(bundle: Path | str, *arguments: str, port: int = 0, proxied: bool | None = None) -> BackgroundServer:
    """Start ``pangu-lab serve`` over a bundle and wait until its model is warm.

    Args:
        arguments: further command-line arguments, such as "--limit", "new_tokens=200".
        port: a free one when 0.
        proxied: whether the page is shown through jupyter-server-proxy; by default in a JupyterHub that has it.

    Raises:
        InputError: the server's own message when it refuses to start; or there is no such proxy.
    """
    port = port or free_port()
    prefix = _prefix(port, proxied)
    command = [
        sys.executable,
        "-m",
        "pangu_lab.cli",
        "serve",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
        "--json",
        *(["--root-path", prefix] if prefix else []),
        *arguments,
    ]
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    # an explicit environment: MindSpore's data library puts OMP_NUM_THREADS=1 into the one that C passes on
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ)
    )
    for line in process.stdout:
        if line.startswith("{"):
            return BackgroundServer(process, log, json.loads(line), prefix)
    process.wait()
    log.seek(0)
    last = (log.read().strip().splitlines() or ["no word"])[-1]
    log.close()
    raise InputError(f"the server did not start: {last}")


def _prefix(port: int, proxied: bool | None) -> str:
    """The path under which jupyter-server-proxy serves a port; empty without it."""
    there = importlib.util.find_spec("jupyter_server_proxy") is not None
    hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if proxied is None:
        proxied = there and hub is not None
    if proxied and not there:
        raise InputError("jupyter-server-proxy is not installed: pip install 'pangu-lab[proxy]', or leave proxied out")
    return f"{(hub or '/').rstrip('/')}/proxy/{port}" if proxied else ""
