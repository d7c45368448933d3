"""One process that serves a bundle: the API, the page, and one scheduler behind both.

Bound to loopback unless a token or a password is set. It serves only this package's code and the model's text: no
route gives out files of this machine, nothing is loaded from elsewhere, and the page's own functions are closed to
other programs. A draining stop takes nothing new, finishes what was accepted, and then closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import secrets
import socket
import ssl
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_lab.cluster.front import Cluster, cluster_engine
from pangu_lab.cluster.places import PORT
from pangu_lab.cluster.shared import SharedModel
from pangu_lab.errors import InputError
from pangu_lab.export.description import layout_of
from pangu_lab.export.loading import read_bundle
from pangu_lab.generate.engine import Engine
from pangu_lab.loading import Model
from pangu_lab.serve.guard import Guard, loopback_names, origin_of
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.metrics import Metrics
from pangu_lab.serve.page import build_page, mount_page
from pangu_lab.serve.scheduler import Scheduler

USER = "pangu"
BACKLOG = 2048
ANYWHERE = ("0.0.0.0", "::")


class Server:
    """A server that runs in threads of this process.

    Attributes:
        url: where the page is; the API is below ``url + "v1"``.
        scheduler: what runs the requests.
    """

    def __init__(
        self, scheduler: Scheduler, url: str, runner: Any, thread: threading.Thread, blocks: Any, cluster: Any = None
    ) -> None:
        self.scheduler, self.url = scheduler, url
        self._runner, self._thread, self._blocks, self._cluster = runner, thread, blocks, cluster
        self._closed = False

    def close(self, drain: bool = False, seconds: float | None = None) -> bool:
        """Stop serving; with ``drain`` only when all accepted requests have ended, or after ``seconds``.

        Returns:
            Whether every request ended by itself.
        """
        if self._closed:
            return True
        self._closed = True
        whole = self.scheduler.close(drain, seconds)
        if self._cluster is not None:
            self._cluster.close()
        self._runner.should_exit = True
        self._thread.join(timeout=15)
        if self._blocks is not None:
            self._blocks.close(verbose=False)
        return whole

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def serve(
    bundle: Path | str | Engine,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    password: str | None = None,
    token: str | None = None,
    insecure: bool = False,
    limits: Limits = Limits(),
    page: bool = True,
    names: Sequence[str] = (),
    quick: bool = False,
    nproc: int | None = None,
    master_addr: str = "127.0.0.1",
    master_port: int | None = None,
    cluster_key: str | None = None,
    root_path: str = "",
    origins: Sequence[str] = (),
    proxies: Sequence[str] = (),
    tls_cert: Path | str | None = None,
    tls_key: Path | str | None = None,
    devices: Sequence[int] = (),
    log_dir: Path | str | None = None,
    world: int | None = None,
    dtype: str | None = None,
    pipeline: int | None = None,
    slots: int | None = None,
) -> Server:
    """Serve a bundle until the server is closed; returns as soon as the model is warm and the port answers.

    Args:
        bundle: a model as ``PanguLM.load`` opens it, or an engine. ``dtype``, ``slots``: as there.
        host: an address of this machine. Addresses other than 127.0.0.1 need a password or a token.
        port: 0 takes a free one.
        password, token: the page asks for the one (user name ``pangu``), the API for the other as ``Authorization:
            Bearer``; each defaults to the other.
        insecure: serve on any address even without a secret.
        limits: what requests may ask for.
        page, names: whether the page is served beside the API; further host names of the server, empty for any when it is
            served beyond this machine.
        quick: let a graph decode in batches of any size: faster with few requests at once, but the last bits of a
            text's numbers then depend on the other requests. The C kernels are batch-invariant by themselves.
        nproc, world, pipeline: of the ``world`` processes that share a model, in stages, how many are here; agents bring the rest.
        master_addr, master_port, cluster_key: where agents reach this process (by default port 8119, any free one without
            agents), and a secret shared with them.
        root_path: the path under which a proxy serves this server, if the proxy strips it from requests.
        origins, proxies: other sites (``https://example.com``) whose pages may use the API; proxies, whose ``X-Forwarded-For`` counts.
        tls_cert, tls_key: PEM files, to serve HTTPS; the key may stand in the first.
        devices, log_dir: the device of each of them, counted from 0 by default; a folder for what they print.

    Raises:
        InputError: no usable bundle, the port is taken, or the address is open to others without a secret.
    """
    _check_addresses(origins, proxies)
    _check_certificate(tls_cert, tls_key)
    if not (is_loopback(host) or password or token or insecure):
        raise InputError(
            f"host={host} lets others reach this server: give a password or a token, or say insecure to allow it"
        )
    listening, cluster, scheduler = _listen(host, port), None, None
    try:
        if not isinstance(bundle, Engine):
            master, layout = (master_addr, master_port), (world, pipeline)
            bundle, cluster = _load(bundle, nproc, master, cluster_key, devices, log_dir, layout, slots, dtype)
        bundle.runner.reload = getattr(bundle, "reload", None)  # an engine over weights is only retried, not reloaded
        scheduler = Scheduler(bundle, limits, batch_invariant=not quick)
        scheduler.wait_ready()
        app, blocks = _application(scheduler, limits, host, password, token, page, names, root_path, origins)
        runner, thread = _start(app, listening, limits, proxies, tls_cert, tls_key)
    except BaseException:
        listening.close()
        if cluster is not None:
            if scheduler is not None:
                scheduler.close(drain=False)
            cluster.close()
        raise
    url = _url("http" if tls_cert is None else "https", host, listening.getsockname()[1])
    server = Server(scheduler, url, runner, thread, blocks, cluster)
    if open_browser:
        webbrowser.open(server.url)
    return server


def _url(scheme: str, host: str, port: int) -> str:
    shown = "127.0.0.1" if host in ANYWHERE else f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}/"


def _load(
    source: Path | str,
    nproc: int | None,
    master: tuple[str, int | None],
    key: str | None,
    devices: Sequence[int],
    log_dir: Path | str | None,
    layout: tuple[int | None, int | None],
    slots: int | None,
    dtype: str | None,
) -> tuple[Engine, Any]:
    """The engine over a model, and the cluster behind it where several processes share it."""
    (master_addr, master_port), (world, pipeline) = master, layout
    model = Model.load(source, slots=slots, dtype=dtype)
    if model.bundle is not None:
        held = layout_of(read_bundle(model.bundle)).world_size
        if held > 1 and world is None:
            world = held
    world = world or nproc or 1
    if world == 1 and pipeline in (None, 1):
        return model.engine, None
    shared = SharedModel.open(source, world, None, pipeline, slots, dtype)
    nproc = world if nproc is None else nproc
    if not key and (nproc < world or not is_loopback(master_addr)):
        raise InputError(
            "agents of other hosts show that they belong here by a key that both sides know: put one into "
            "the environment variable PANGU_LAB_CLUSTER_KEY on each"
        )
    if master_port is None:
        master_port = PORT if nproc < world else 0
    cluster = Cluster(
        shared, nproc, master_addr, master_port, (key or secrets.token_hex(16)).encode(), devices, log_dir
    )
    return cluster_engine(cluster), cluster


def _application(
    scheduler: Scheduler,
    limits: Limits,
    host: str,
    password: str | None,
    token: str | None,
    page: bool,
    names: Sequence[str],
    root_path: str,
    origins: Sequence[str],
) -> tuple[Any, Any]:
    """The guarded ASGI application, and the page's blocks."""
    from pangu_lab.serve.api import build_api  # brings FastAPI

    metrics, blocks = Metrics(scheduler), None
    app = build_api(scheduler, metrics)
    if page:
        blocks = build_page(scheduler)
        app = mount_page(app, blocks, (USER, password or token) if password or token else None, root_path)
    hosts = [*loopback_names(), *names] if is_loopback(host) or names else None
    return Guard(app, limits, token or password, hosts, metrics.answered, names, origins), blocks


def _start(
    app: Any,
    listening: socket.socket,
    limits: Limits,
    proxies: Sequence[str],
    tls_cert: Path | str | None,
    tls_key: Path | str | None,
) -> tuple[Any, threading.Thread]:
    """Run the application in a thread; returns once it answers."""
    import uvicorn

    from pangu_lab.serve.connections import Connection, Connections  # brings uvicorn

    http = functools.partial(Connection, Connections(limits, proxies))
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=limits.keep_alive_seconds,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    runner = uvicorn.Server(config)

    async def main() -> None:
        if tls_cert is not None:  # uvicorn does not say how long a handshake may take, and a minute is the default
            loop = asyncio.get_running_loop()
            loop.create_server = functools.partial(loop.create_server, ssl_handshake_timeout=limits.header_seconds)
        await runner.serve(sockets=[listening])

    def run() -> None:
        asyncio.run(main())

    thread = threading.Thread(target=run, name="http", daemon=True)
    thread.start()
    while not runner.started:
        thread.join(0.02)
        if not thread.is_alive():
            raise InputError("the HTTP server did not start; see its log above")
    return runner, thread


def _check_certificate(cert: Path | str | None, key: Path | str | None) -> None:
    if cert is None:
        if key is not None:
            raise InputError("a TLS key needs its certificate: give --tls-cert too")
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            cert, key, password=lambda: ""
        )  # without this, OpenSSL would ask on the terminal
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot serve with the certificate {cert} and the key {key or cert} ({error}): give PEM "
            "files that belong together, the key without a passphrase"
        ) from None


def _check_addresses(origins: Sequence[str], proxies: Sequence[str]) -> None:
    for origin in origins:
        origin_of(origin)
    for proxy in proxies:
        try:
            ipaddress.ip_address(proxy)
        except ValueError:
            raise InputError(f"--proxy {proxy}: give the proxy's IP address") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that nobody else can take the port while the model loads; who connects meanwhile waits.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is said outright; each waits 40 ms else
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)  # two sockets that only have the port's name could both have it
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(f"cannot serve on {host}:{port} ({error}): give another host or port") from None
    return listening
