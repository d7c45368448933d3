"""The program of each rank of a launch: ``python -m pangu_lab.launch.worker --run RUN``.

It reads its rank from the environment (set by msrun, mpirun, a rank table or our own launcher), joins the others,
and trains the configuration in the run folder. With MS_ROLE=MS_SCHED the same module is the scheduler. A heartbeat
tells the launcher that a rank is alive; a rank whose launcher is gone asks the run to stop, so that nothing trains
unmonitored.

MindSpore is imported only after threads and environment are set, because it reads both once. A rank that fails ends
with ``os._exit``: MindSpore's normal exit would wait for ranks that wait for this one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.identity import identity_of, lives
from pangu_lab.launch.plan import CONFIG, LAUNCHER
from pangu_lab.presets import load_yaml
from pangu_lab.runs import heartbeat

ORPHAN_SECONDS = 60.0  # for a rank without a launcher to finish its step and save


@dataclass(frozen=True)
class Rank:
    """This process's rank, and how many ranks there are."""

    number: int
    world: int


def own_rank() -> int:
    """This process's rank from whichever launcher's variables are there; 0 for a single process."""
    for name in ("OMPI_COMM_WORLD_RANK", "MS_NODE_ID", "RANK_ID"):
        if os.environ.get(name):
            return int(os.environ[name])
    return 0


def start_rank(run: Path | str) -> Rank:
    """Set up this process as a rank of the run: log, threads and heartbeat; then join the other ranks.

    Call it before anything imports MindSpore.
    """
    run, rank = Path(run), own_rank()
    if os.environ.get("PANGU_LAB_RANK_LOG"):
        _write_to(run / "logs" / f"rank_{rank}.log")
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):  # with it the launcher asks a rank that hangs for its stack
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    _share_cores()
    heartbeat.start_heartbeat(run, rank, _Orphan(run))
    return _join(rank)


def _write_to(path: Path) -> None:
    """Redirect this process's output to a file, native code's included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _share_cores() -> None:
    """Give each rank of this machine its share of the cores, unless the user has set OMP_NUM_THREADS."""
    ranks = int(os.environ.get("PANGU_LAB_LOCAL_RANKS", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))


def _join(rank: int) -> Rank:
    if "OMPI_COMM_WORLD_RANK" in os.environ:  # MindSpore's own start under MPI fails on a CPU; its cluster does not
        os.environ["MS_NODE_ID"] = str(rank)
        os.environ["DEVICE_ID"] = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    if "MS_ROLE" not in os.environ and "RANK_TABLE_FILE" not in os.environ:
        return Rank(0, 1)
    from mindspore import communication

    heartbeat.beat("joining")
    communication.init()
    rank = Rank(communication.get_rank(), communication.get_group_size())
    heartbeat.beat("joined")
    return rank


class _Orphan:
    """Called every second: when the launcher is gone the run is asked to stop, and later the process ends."""

    def __init__(self, run: Path):
        self.run = run
        self.parent = os.getppid()
        pid, _, host = os.environ.get(LAUNCHER, "").partition("@")
        self.watched = bool(pid) and host == socket.gethostname()
        self.launcher = identity_of(int(pid)) if self.watched else None
        self.since = 0.0

    def alone(self) -> bool:
        return os.getppid() != self.parent or self.watched and (self.launcher is None or lives(self.launcher) is False)

    def __call__(self) -> None:
        if not self.alone():
            return
        if not self.since:
            self.since = time.monotonic()
            with contextlib.suppress(OSError):
                (self.run / "stop").write_text("the launcher is gone\n", encoding="utf-8")
        if time.monotonic() - self.since > ORPHAN_SECONDS:
            os._exit(1)


# ------------------------------------------------------------------------------------------------ a rank's work


def run_rank(run: Path, work: Callable[[Rank], str]) -> NoReturn:
    """Run this process as a rank: set it up, call ``work(rank)``, which returns why it ended, and report the end."""
    code = 0
    try:
        heartbeat.beat("done", note=work(start_rank(run)))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        heartbeat.beat("refused", note=str(error))
        code = 2
    except BaseException as error:  # noqa: B902 - whatever it is, the launcher must be told before this process exits
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        heartbeat.beat("failed", note=type(error).__name__ + (f": {lines[0]}" if lines else ""))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)


def read_config(run: Path) -> RunConfig:
    """The configuration to train: the launch's, else the run's own."""
    path = run / CONFIG
    return load_yaml(path if path.is_file() else run / "config.yaml")


def _train(run: Path, resume: str) -> str:
    from pangu_lab.train import train

    return train(read_config(run), run, resume=resume).reason


def _schedule() -> int:
    """Run as the scheduler: connect the ranks, stay until they are done, and exit when the launcher is gone."""
    orphan = _Orphan(Path(os.devnull))

    def watch() -> None:
        while not orphan.alone():
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from mindspore import communication

    communication.init()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line of a rank or the scheduler."""
    parser = argparse.ArgumentParser(prog="python -m pangu_lab.launch.worker")
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--start-over", action="store_true", help="begin anew when every checkpoint is damaged")
    args = parser.parse_args(arguments)
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return _schedule()
    run = Path(args.run)
    run_rank(run, lambda rank: _train(run, "start-over" if args.start_over else "auto"))


if __name__ == "__main__":
    sys.exit(main())
