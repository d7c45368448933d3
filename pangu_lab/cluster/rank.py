"""One process of a model over several: ``python -m pangu_lab.cluster.rank``, run by a front end or by an agent.

It registers with the front end, is assigned a rank, joins the others, loads that rank's part, and then makes
every call of the network that the front end sends to all of its stage. It lives only as long as its group: when any rank is
lost the front end closes all connections, and each process ends itself by ``os._exit``, because MindSpore cannot be
interrupted in a collective whose other ranks are gone. Its keeper then starts another.

``Keeper`` runs a number of such processes, on the front end's host and on those of the agents, or lets mpirun start all.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pangu_lab.cluster.shared import SharedModel
from pangu_lab.cluster.wire import Gone, Link, connected
from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.launch.plan import clean_environment
from pangu_lab.parallel.mesh import Mesh

KEY = "PANGU_LAB_CLUSTER_KEY"  # not an option: all users of the machine can read options
REFUSED = 2
ANY = "any"  # what a process offers that can be each of the ranks
KEPT_LOGS = 5  # of each process; a process that is started again begins a new one
logger = logging.getLogger(__name__)
# from the words of a rank and the variables that it needs to the command that starts all of them, and its environment
Mpirun = Callable[[Sequence[str], Mapping[str, str]], "tuple[list[str], dict[str, str]]"]


@contextlib.contextmanager
def process_log(folder: Path | str | None, name: str) -> Iterator[BinaryIO | None]:
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


def rank_command(
    source: Path | str, front: tuple[str, int], layout: ParallelConfig | None, local_on: str | None
) -> list[str]:
    """The command of a rank; ``local_on`` is the front end's host, where that may be this one."""
    return [
        sys.executable,
        "-m",
        "pangu_lab.cluster.rank",
        "--from",
        str(Path(source).resolve()),
        "--front",
        f"{front[0]}:{front[1]}",
        *(["--world", str(layout.world_size)] if layout else []),
        *(["--pipeline", str(layout.pipeline)] if layout and layout.pipeline > 1 else []),
        *(["--local-on", local_on] if local_on else []),
    ]


class Keeper:
    """Keeps ``count`` rank processes running until it is closed; one that ends is started again after a moment.

    Args:
        local: whether they run on the front end's host, where rank 0 belongs.
        layout: of the processes that share the model; None where it says so itself, or the front end does.
        devices: the device of each process; counted from 0 when not given, or DEVICE_ID for all.
        log_dir: what the processes print goes to ``process_N.log`` there; without it, only errors, to this one's.

    Attributes:
        refused: set when a process said that it can never run with these settings.
        failed: set when one ended with an error, or was killed; it is started again nevertheless.
    """

    def __init__(
        self,
        source: Path | str,
        count: int,
        front: tuple[str, int],
        key: bytes,
        local: bool,
        layout: ParallelConfig | None = None,
        devices: Sequence[int] = (),
        log_dir: Path | str | None = None,
        mpirun: Mpirun | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._devices = [str(device) for device in devices] or [
            os.environ.get("DEVICE_ID", str(n)) for n in range(count)
        ]
        self._command = rank_command(source, front, layout, socket.gethostname() if local else None)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // max(count, 1))))
        self._environment = {KEY: key.decode(), "OMP_NUM_THREADS": threads}
        if mpirun is not None:
            self._command, self._environment = mpirun(self._command, self._environment)
        self._closed, self.refused, self.failed = threading.Event(), threading.Event(), threading.Event()
        self._mpirun = mpirun is not None
        self._processes: list[subprocess.Popen] = []
        self._told: set[int] = set()  # to end
        try:
            for number in range(count):
                self._processes.append(self._start(number))
        except BaseException:
            self._end_all()
            raise
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def _start(self, number: int) -> subprocess.Popen:
        environment = clean_environment({**self._environment, "DEVICE_ID": self._devices[number]})
        with process_log(self._log_dir, f"process_{number}") as log:
            # a session of its own: Ctrl-C is for the process that the user started, which then ends these
            return subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log or subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def _keep(self) -> None:
        while not self._closed.wait(0.5):
            for number, process in enumerate(self._processes):
                if process.poll() == REFUSED:
                    self.refused.set()
                elif process.poll() is not None and not self._closed.is_set():
                    if process.returncode:
                        self.failed.set()
                    self._closed.wait(1.0)
                    with contextlib.suppress(InputError):  # no room for a log: tried again
                        self._processes[number] = self._start(number)

    def end(self, pids: Collection[int]) -> None:
        """End those of its processes: one that waits for another inside MindSpore would not see that it is let go.
        They are started again. mpirun's end together."""
        for process in list(self._processes):
            if self._mpirun and pids:
                self._terminate(process)
            elif process.pid in pids:
                process.kill()

    def _terminate(self, process: subprocess.Popen) -> None:
        """Once: a second signal makes mpirun end at once and leave its processes behind."""
        if process.pid not in self._told:
            self._told.add(process.pid)
            process.terminate()

    def said(self, surely: bool = True) -> str:
        """Where to read why one refused or failed, to end a message with; ``surely`` where it always says it."""
        if self._log_dir is not None:
            return f"; see {self._log_dir}"
        return ", as it says above" if surely else "; any words of it are above, and --log-dir keeps them"

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        self._thread.join()
        self._end_all()

    def _end_all(self) -> None:
        for process in self._processes:
            self._terminate(process)
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# ------------------------------------------------------------------------------------------------- in the process


def serve_rank(shared: SharedModel, front: tuple[str, int], key: bytes, local: bool) -> None:
    """Be a rank until the front ends it.

    Raises:
        InputError: the model, the key or the front cannot be used.
        Gone: the front is not there.
    """
    link = connected(front, key, patience=30.0)
    link.send(
        "offer",
        ranks=ANY if shared.ranks is None else list(shared.ranks),
        local=local,
        host=socket.gethostname(),
        pid=os.getpid(),
        export_id=shared.identity,
    )
    inbox = _listening(link)
    order, _ = inbox.get()
    mesh = Mesh(ParallelConfig(tensor=order["tensor"], pipeline=order["pipeline"]), order["rank"])
    try:
        runner = _join_and_load(shared, mesh, order)
    except InputError as error:
        link.send("refused", text=str(error))
        raise
    link.send("ready")
    while True:
        head, arrays = inbox.get()
        made = runner.call(*arrays)
        if mesh.index("tensor") == 0:  # all ranks of a stage have the same
            link.send("made", made, call=head["call"])


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


def _join_and_load(shared: SharedModel, mesh: Mesh, order: dict[str, Any]) -> Any:
    """Meet the other ranks, and load this one's part."""
    os.environ.update(MS_ROLE="MS_WORKER", MS_NODE_ID=str(mesh.rank), **order["environment"])
    from mindspore import communication

    from pangu_lab.parallel.collectives import inference_group, join

    communication.init()
    join(inference_group(mesh))
    return shared.runner(mesh, order["slots"], order["dtype"])


def main(arguments: list[str] | None = None) -> int:
    """The command line of a rank."""
    parser = argparse.ArgumentParser(prog="python -m pangu_lab.cluster.rank")
    parser.add_argument("--from", dest="source", required=True, metavar="DIR")
    parser.add_argument("--front", required=True, metavar="HOST:PORT")
    parser.add_argument("--world", type=int, metavar="N")
    parser.add_argument("--pipeline", type=int, metavar="S")
    parser.add_argument("--local-on", metavar="HOST")
    args = parser.parse_args(arguments)
    host, _, port = args.front.rpartition(":")
    if (number := os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK")) is not None:
        os.environ["DEVICE_ID"] = number
    code = 1
    try:
        serve_rank(
            SharedModel.open(args.source, args.world, pipeline=args.pipeline),
            (host, int(port)),
            os.environ[KEY].encode(),
            args.local_on == socket.gethostname(),
        )
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
