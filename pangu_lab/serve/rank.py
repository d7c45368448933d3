"""One process of a distributed server: ``python -m pangu_lab.serve.rank``, run by a front end or by an agent.

It registers with the front end, is assigned a rank, joins the others, loads that rank's bundle, and then makes
every call of the network that the front end sends to all of them. It lives only as long as its group: when any rank is
lost the front end closes all connections, and each process ends itself by ``os._exit``, because MindSpore cannot be
interrupted in a collective whose other ranks are gone. Its keeper then starts another.

``Keeper`` runs a number of such processes, on the front end's host and on those of the agents.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional

from pangu_lab.errors import InputError
from pangu_lab.export.loading import load_runner, rank_folders, read_bundle
from pangu_lab.launch.plan import clean_environment
from pangu_lab.serve.wire import Gone, Link, connected

KEY = "PANGU_LAB_CLUSTER_KEY"  # not an option: all users of the machine can read options
REFUSED = 2
KEPT_LOGS = 5  # of each process; a process that is started again begins a new one
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def process_log(folder: Optional[Path | str], name: str) -> Iterator[Optional[BinaryIO]]:
    """The file ``NAME.log`` of a process that starts now, or None without a folder; the last ``KEPT_LOGS`` are kept.

    Raises:
        InputError: the folder cannot be written.
    """
    if folder is None:
        yield None
        return
    path = Path(folder) / f"{name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        older = [path, *(path.with_name(f"{path.name}.{age}") for age in range(1, KEPT_LOGS))]
        for newer, old in reversed(list(zip(older, older[1:]))):
            if newer.exists():
                newer.replace(old)
        log = path.open("xb")
    except OSError as error:
        raise InputError(f"--log-dir {folder}: cannot write {path.name} ({error.strerror})") from None
    with log:
        yield log


class Keeper:
    """Keeps ``count`` rank processes running until it is closed; one that ends is started again after a moment.

    Args:
        local: whether they run on the front end's host, where rank 0 belongs.
        devices: the device of each process; counted from 0 when not given, or DEVICE_ID for all.
        log_dir: what the processes print goes to ``process_N.log`` there; without it, only errors, to this one's.

    Attributes:
        refused: the message of a process that can never run with these settings.
    """

    def __init__(self, bundle: Path | str, count: int, front: tuple[str, int], key: bytes, local: bool,
                 devices: Sequence[int] = (), log_dir: Optional[Path | str] = None) -> None:
        self._log_dir = log_dir
        self._devices = [str(device) for device in devices] or [os.environ.get("DEVICE_ID", str(n)) for n in range(count)]
        self._command = [sys.executable, "-m", "pangu_lab.serve.rank", "--bundle", str(Path(bundle).resolve()),
                         "--front", f"{front[0]}:{front[1]}", *(["--local"] if local else [])]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // max(count, 1))))
        self._environment = {KEY: key.decode(), "OMP_NUM_THREADS": threads}
        self._processes = [self._start(number) for number in range(count)]
        self._closed, self.refused = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def _start(self, number: int) -> subprocess.Popen:
        environment = clean_environment({**self._environment, "DEVICE_ID": self._devices[number]})
        with process_log(self._log_dir, f"process_{number}") as log:
            return subprocess.Popen(self._command, env=environment, stdin=subprocess.DEVNULL,
                                    stdout=log or subprocess.DEVNULL, stderr=log)

    def _keep(self) -> None:
        while not self._closed.wait(0.5):
            for number, process in enumerate(self._processes):
                if process.poll() == REFUSED:
                    self.refused.set()
                elif process.poll() is not None and not self._closed.is_set():
                    self._closed.wait(1.0)
                    with contextlib.suppress(InputError):  # no room for a log: tried again
                        self._processes[number] = self._start(number)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        self._thread.join()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# ------------------------------------------------------------------------------------------------- in the process


def serve_rank(bundle: Path, front: tuple[str, int], key: bytes, local: bool) -> None:
    """Be a rank until the front ends it.

    Raises:
        InputError: the bundle, the key or the front cannot be used.
        Gone: the front is not there.
    """
    folders = rank_folders(bundle)
    if not folders:
        raise InputError(f"{bundle}: holds no rank_N folders: export it with --tensor-parallel")
    link = connected(front, key, patience=30.0)
    link.send("offer", ranks=sorted(folders), local=local, host=socket.gethostname(), pid=os.getpid(),
              export_id=read_bundle(bundle)["parallel"]["export_id"])
    inbox = _listening(link)
    order, _ = inbox.get()
    try:
        runner = _join_and_load(folders[order["rank"]], order)
    except InputError as error:
        link.send("refused", text=str(error))
        raise
    link.send("ready")
    while True:
        _, arrays = inbox.get()
        logits = runner.call(*arrays)
        if order["rank"] == 0:
            link.send("logits", logits)


def _listening(link: Link) -> queue.SimpleQueue:
    """The front end's messages, from a thread that ends the process when the front end or our keeper is gone."""
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    parent = os.getppid()

    def listen() -> None:
        try:
            while True:
                inbox.put(link.receive())
        except Gone:
            os._exit(0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    for work in (listen, watch):
        threading.Thread(target=work, daemon=True).start()
    return inbox


def _join_and_load(folder: Path, order: dict[str, Any]) -> Any:
    """Meet the other ranks, and load this one's graphs."""
    os.environ.update(MS_ROLE="MS_WORKER", MS_NODE_ID=str(order["rank"]), **order["environment"])
    from mindspore import communication

    communication.init()
    description = read_bundle(folder)
    communication.create_group(description["parallel"]["group"], list(range(order["world"])))
    return load_runner(folder, description)[0]


def main(arguments: Optional[list[str]] = None) -> int:
    """The command line of a rank."""
    parser = argparse.ArgumentParser(prog="python -m pangu_lab.serve.rank")
    parser.add_argument("--bundle", required=True, metavar="DIR")
    parser.add_argument("--front", required=True, metavar="HOST:PORT")
    parser.add_argument("--local", action="store_true")
    args = parser.parse_args(arguments)
    host, _, port = args.front.rpartition(":")
    code = 1
    try:
        serve_rank(Path(args.bundle), (host, int(port)), os.environ[KEY].encode(), args.local)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        code = REFUSED
    except Gone as error:
        sys.stderr.write(f"this rank waits for its front: {error}\n")
    except Exception:
        logger.exception("a rank failed")
    sys.stderr.flush()
    os._exit(code)  # a normal exit of MindSpore would wait for the other ranks


if __name__ == "__main__":
    main()
