"""Verbs about the bundle: export, serve."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from pangu_lab.cli.common import add_dtype, add_verb, check_signature, finish
from pangu_lab.cli.processes import add_pipeline
from pangu_lab.errors import InputError
from pangu_lab.terminal import progress_bar, say

PASSWORD, TOKEN, KEY = "PANGU_LAB_PASSWORD", "PANGU_LAB_TOKEN", "PANGU_LAB_CLUSTER_KEY"  # options would show in ps


def register(verbs: Any) -> None:
    _register_export(verbs)
    _register_serve(verbs)


def _register_export(verbs: Any) -> None:
    export = add_verb(
        verbs,
        "export",
        run_export,
        "write a bundle that runs without model code",
        "MindIR graphs, tokenizer, description, checksums; a bundle may be moved and copied.",
    )
    export.add_argument("--from", dest="source", required=True, metavar="DIR", help="a run or a checkpoint")
    export.add_argument("--out", required=True, metavar="DIR", help="the bundle's folder; must not exist yet")
    export.add_argument(
        "--cache-slots",
        "--places",
        dest="slots",
        type=int,
        metavar="N",
        help="slots of the key-value cache, one per position of each sequence (default: enough for "
        "one full-length sequence, at least 1024)",
    )
    export.add_argument(
        "--prefill-lengths",
        type=_numbers,
        default=(),
        metavar="N,N",
        help="also export a fixed-shape graph for prompts of up to N tokens, for devices that "
        "recompile for every shape",
    )
    export.add_argument(
        "--decode-batches",
        type=_numbers,
        metavar="N,N",
        help="fixed-shape decode graphs of N sequences (default: 1,4 below 1 GiB of weights; 0: none)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        metavar="TYPE",
        help=(
            "of the weights: float32, or float16, half as large, for products in it (default: float16 where they are stored so "
            "and the device has such products, else float32)"
        ),
    )
    export.add_argument("--no-eval-loss", action="store_true", help="leave out the graph that scores whole texts")
    _add_parts(export)
    export.add_argument(
        "--sign",
        metavar="KEY",
        help="sign it with the secret key in the file KEY (HMAC-SHA256): `serve "
        "--verify KEY` then refuses one that others made or changed",
    )


def _add_parts(export: argparse.ArgumentParser) -> None:
    """The options of an export for several processes."""
    export.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="one bundle for each of N processes that share the model (serve --nproc)",
    )
    export.add_argument(
        "--pipeline",
        type=int,
        default=1,
        metavar="S",
        help="and S stages of so many processes, each stage with a part of the layers: N × S bundles",
    )
    export.add_argument(
        "--rank-start",
        type=int,
        metavar="R",
        help="of several processes: write only the ranks from this one on, as each host of a cluster does",
    )
    export.add_argument("--ranks", type=int, metavar="N", help="how many of them (default: to the last)")


def _register_serve(verbs: Any) -> None:
    serve = add_verb(
        verbs,
        "serve",
        run_serve,
        "serve a bundle: a web page and an OpenAI-compatible API",
        "Ctrl-C, SIGTERM or --stop end it once running requests are done; a second signal ends it at "
        f"once. The environment variables {PASSWORD} (the page; user name: pangu) and {TOKEN} (the API) "
        "hold the secrets, if any.",
    )
    serve.add_argument(
        "--bundle",
        "--from",
        metavar="DIR",
        help="a bundle made by `pangu-lab export`; or a run, a checkpoint or a converted release",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="addresses other than loopback need a password or token (default %(default)s)",
    )
    serve.add_argument("--port", type=int, default=7860, metavar="N", help="0 picks a free one (default %(default)s)")
    serve.add_argument("--open", action="store_true", help="open the page in a browser")
    serve.add_argument("--insecure", action="store_true", help="serve on any address without a secret")
    serve.add_argument("--no-page", action="store_true", help="serve the API only")
    serve.add_argument(
        "--quick",
        action="store_true",
        help=("not batch-invariant: faster with few requests, but the last bits then depend on the other requests"),
    )
    add_dtype(serve)
    serve.add_argument(
        "--cache-slots",
        dest="slots",
        type=int,
        metavar="N",
        help="of a run, checkpoint or release: slots of the "
        "key-value cache over all sequences (default: one full-length sequence, at least 1024)",
    )
    serve.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a limit; can be given many times (an unknown name lists them all)",
    )
    _add_network(serve)
    _add_several(serve)
    serve.add_argument(
        "--verify",
        metavar="KEY",
        help="refuse a bundle that was not signed with the key in the file KEY (export --sign)",
    )
    serve.add_argument("--pid-file", metavar="FILE", help="write the process id to this file while running")
    serve.add_argument("--stop", action="store_true", help="stop the server of --pid-file and wait until it has ended")


def _add_several(serve: argparse.ArgumentParser) -> None:
    """The options of a server whose model several processes share."""
    several = serve.add_argument_group(
        "a model over several processes",
        (
            "The bundle comes from `pangu-lab export --tensor-parallel N --pipeline S`; of a run or a checkpoint each process reads its "
            f"part. The environment variable {KEY} holds a secret that this server and its agents share. They prove that they know it, but what they "
            "send is not encrypted, nor are MindSpore's collectives: across a network that others read, use a tunnel "
            "(WireGuard, IPsec)."
        ),
    )
    several.add_argument("--nproc", type=int, metavar="N", help="processes on this host (default: all; an agent: 1)")
    add_pipeline(several)
    several.add_argument(
        "--agent",
        action="store_true",
        help="serve no requests: run processes for the server on another host, until stopped",
    )
    several.add_argument(
        "--master-addr",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where agents reach the server (default %(default)s)",
    )
    several.add_argument("--master-port", type=int, metavar="N", help="default 8119")
    several.add_argument(
        "--rank-table",
        metavar="FILE",
        help=(
            "an HCCL rank table instead of --nproc and --master-addr: the server runs on its first host, an agent on "
            "each of the others"
        ),
    )
    several.add_argument("--node-rank", type=int, metavar="N", help="this host's index in the rank table (default 0)")
    several.add_argument(
        "--log-dir",
        metavar="DIR",
        help="what these processes print goes into files there; the last five of each are kept",
    )


def _add_network(serve: argparse.ArgumentParser) -> None:
    """The options of a server that others reach, perhaps through a proxy."""
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name under which the server may be reached; a proxy may leave out its port",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another site, such as https://example.com, whose pages may use the API (CORS)",
    )
    serve.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy's IP address: its connections are many clients', named in X-Forwarded-For",
    )
    serve.add_argument("--tls-cert", metavar="FILE.pem", help="serve HTTPS with this certificate (and its chain)")
    serve.add_argument("--tls-key", metavar="FILE.pem", help="its key, if that is in another file")
    serve.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="the path a proxy serves the page under, such as /proxy/7860 of jupyter-server-proxy",
    )


def _numbers(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers such as 1,4,16")
    return tuple(int(part) for part in text.split(","))


def run_export(args: argparse.Namespace) -> int:
    from pangu_lab.export import export_run

    ranks = None
    if args.rank_start is not None or args.ranks is not None:
        first = args.rank_start or 0
        ranks = range(first, args.tensor_parallel * args.pipeline if args.ranks is None else first + args.ranks)
    with progress_bar("export") as progress:
        batches = args.decode_batches
        bundle = export_run(
            args.source,
            args.out,
            args.slots,
            args.tensor_parallel,
            progress,
            sign_with=args.sign,
            prefill_lengths=args.prefill_lengths,
            eval_loss=not args.no_eval_loss,
            ranks=ranks,
            pipeline=args.pipeline,
            dtype=args.dtype,
            decode_batches=batches if batches is None else [n for n in batches if n],
        )
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    say(f"{bundle}: {size / 2**20:.1f} MiB")
    return finish(args, {"bundle": bundle, "bytes": size})


def run_serve(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; both are clean exits, and the first waits for running requests."""
    from pangu_lab.serve import parse_limits, serve
    from pangu_lab.serve.pid_file import pid_file

    if args.stop:
        return _stop_server(args)
    limits = parse_limits(args.limit)
    if not args.bundle:
        raise InputError("give --bundle DIR, or --stop with --pid-file")
    check_signature(args.bundle, args.verify)
    args.devices, args.world = (), None
    if args.rank_table or args.node_rank is not None:
        _from_rank_table(args)
    if args.agent:
        return _be_agent(args)
    with _signals() as signals, pid_file(args.pid_file):
        say(f"loading {args.bundle}")
        with serve(
            args.bundle,
            args.host,
            args.port,
            open_browser=args.open,
            insecure=args.insecure,
            limits=limits,
            password=os.environ.get(PASSWORD),
            token=os.environ.get(TOKEN),
            page=not args.no_page,
            names=args.allow_host,
            quick=args.quick,
            nproc=args.nproc,
            master_addr=args.master_addr,
            master_port=args.master_port,
            cluster_key=os.environ.get(KEY),
            devices=args.devices,
            log_dir=args.log_dir,
            world=args.world,
            dtype=args.dtype,
            pipeline=args.pipeline,
            slots=args.slots,
            root_path=args.root_path,
            origins=args.allow_origin,
            proxies=args.proxy,
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
        ) as server:
            signals.ready()
            say(f"ready: {server.url} (API: {server.url}v1; Ctrl-C stops it)")
            code = finish(args, {"url": server.url, "pid": os.getpid()})
            while not signals:  # a signal may be delivered to another thread, and would then not end a long wait
                time.sleep(0.2)
            _drain(server, signals)
    say("ended")
    return code


def _from_rank_table(args: argparse.Namespace) -> None:
    """Take from the rank table how many processes this host has and where the server is."""
    from pangu_lab.cluster.shared import SharedModel
    from pangu_lab.launch.rank_table import read_rank_table

    if not args.rank_table:
        raise InputError("--node-rank needs --rank-table FILE")
    if args.nproc is not None:
        raise InputError("--nproc and --rank-table both set the number of processes: give one of them")
    servers, node = read_rank_table(args.rank_table).servers, args.node_rank or 0
    world = sum(len(server.devices) for server in servers)
    SharedModel.open(args.bundle, world, pipeline=args.pipeline)
    if not 0 <= node < len(servers):
        raise InputError(
            f"{args.rank_table}: has {len(servers)} hosts, so --node-rank {node} must be from 0 to {len(servers) - 1}"
        )
    if args.agent == (node == 0):
        raise InputError(
            "the server runs on host 0 of the rank table and an agent on each of the others: "
            + ("give --node-rank" if args.agent else "give --agent here")
        )
    args.world = world
    args.nproc, args.master_addr = len(servers[node].devices), servers[0].server_id
    args.devices = [device.device_id for device in sorted(servers[node].devices, key=lambda device: device.rank_id)]


def _be_agent(args: argparse.Namespace) -> int:
    """Run rank processes for a server on another host; they connect, and reconnect, by themselves."""
    from pangu_lab.cluster.places import PORT
    from pangu_lab.cluster.rank import Keeper
    from pangu_lab.cluster.shared import SharedModel
    from pangu_lab.serve.pid_file import pid_file

    key, nproc = os.environ.get(KEY), 1 if args.nproc is None else args.nproc
    if not key:
        raise InputError(f"an agent authenticates to the server with a key: set {KEY} to the server's")
    shared = SharedModel.open(args.bundle)
    ranks = shared.ranks  # None: all of them
    if nproc < 1 or (ranks is not None and nproc > len(ranks)):
        raise InputError(
            f"{args.bundle}: holds bundles for {len(ranks or ())} ranks, which is too few for --nproc {nproc}"
        )
    with _signals() as signals, pid_file(args.pid_file):
        signals.ready()
        port = PORT if args.master_port is None else args.master_port
        keeper = Keeper(
            args.bundle,
            nproc,
            (args.master_addr, port),
            key.encode(),
            local=False,
            devices=args.devices,
            log_dir=args.log_dir,
        )
        try:
            say(f"{nproc} process(es) for the server at {args.master_addr}:{port} (Ctrl-C stops them)")
            code = finish(args, {"pid": os.getpid(), "ranks": ranks})
            while not signals and not keeper.refused.is_set():
                time.sleep(0.2)
        finally:
            keeper.close()
    say("ended")
    return 2 if keeper.refused.is_set() else code


def _drain(server: Any, signals: list[int]) -> None:
    """Wait for running requests; a second signal ends the wait."""
    left = server.scheduler.running + server.scheduler.waiting
    if left:
        say(f"finishing {left} requests (signal again to end at once)")
    ending = threading.Thread(target=server.close, kwargs={"drain": True})
    ending.start()
    while ending.is_alive():
        ending.join(0.1)
        if len(signals) > 1:
            server.scheduler.close(drain=False)


class _Came(list):
    """The signals received. Before ``ready``, one interrupts the start, which may be waiting for other processes."""

    def __init__(self) -> None:
        super().__init__()
        self._starting = True

    def ready(self) -> None:
        """From now on signals are only recorded."""
        self._starting = False

    def note(self, number: int, frame: Any) -> None:
        self.append(number)
        if self._starting:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _signals() -> Iterator[_Came]:
    """The signals received while the block runs."""
    came = _Came()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, came.note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_server(args: argparse.Namespace) -> int:
    from pangu_lab.serve.pid_file import stop_server

    if not args.pid_file:
        raise InputError("--stop needs --pid-file FILE, the one the server was started with")
    pid = stop_server(args.pid_file)
    say(f"process {pid} has ended")
    return finish(args, {"pid": pid})
