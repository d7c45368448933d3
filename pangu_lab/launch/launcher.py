"""``launch``: start the ranks of a run, monitor every one, end all of them when one fails.

Back ends: "local" (the default) starts the scheduler and each rank itself; "msrun" and "mpirun" leave that to these
programs; "ranktable" is Ascend's way, without a scheduler. Measured on two cores with two ranks, from the call
to the first all-reduce: local 8 s, msrun 11 s, mpirun 9 s, of which 3 s are MindSpore's import; a killed rank is
named after 1.5 s by all of them. "local" is the default because of shutdown: msrun answers Ctrl-C with SIGKILL and
leaves its ranks behind when it is killed itself, while our own children get time to save a checkpoint and are
ended by pid, each exactly once.

On several hosts one launcher runs on each, with the same arguments; the first host's starts the scheduler. They share
only the run folder: a stop file stops all, and a launcher whose ranks fail reports it in ``heartbeat/node_K``, so that
the others end theirs. Each holds the lock ``heartbeat/node_K.lock``, to keep out a second launch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.files import RANDOM, write_json_atomic, write_text_atomic
from pangu_lab.launch.hosts import MULTI_HOST_PORT, Host, address_of, free_port, own_index, read_hosts
from pangu_lab.launch.job import Job, Patience, Trouble
from pangu_lab.launch.plan import CONFIG, WORKER, LaunchPlan, Request, make_plan
from pangu_lab.launch.rank_table import read_rank_table
from pangu_lab.locking import Lock, LockLost
from pangu_lab.parallel.mesh import check_layout
from pangu_lab.progress import Progress, silent, tell_budget
from pangu_lab.reading import read_json
from pangu_lab.runs.events import EventReader
from pangu_lab.runs.heartbeat import FOLDER as HEARTBEAT
from pangu_lab.runs.status import STOP, refuse_living, step_text
from pangu_lab.schema import Count, Schema, Seconds

POLL_SECONDS = 0.2
PORT_TRIES = 3  # a free port can be taken between our check and the scheduler's opening it
STATE = "launch.json"

OnEvent = Callable[[dict[str, Any]], None]


class _Failed(Schema):
    """``heartbeat/node_K`` of a launcher whose ranks failed; other states are not read here."""

    state: Literal["failed"]
    time: Seconds
    attempt: Count
    rank: int | None
    reason: str
    lines: list[str]


class LaunchFailed(RuntimeError):
    """A rank failed; the message names it and ends with the lines of its log that explain why."""

    def __init__(self, trouble: Trouble, attempts: int, run: Path):
        self.rank, self.lines, self.attempts, self.run = trouble.rank, trouble.lines, attempts, run
        log = f"logs/rank_{trouble.rank}.log" if trouble.rank is not None else "logs"
        tried = f" (attempt {attempts})" if attempts > 1 else ""
        super().__init__(
            "\n".join([f"{trouble.what}{tried}; more in {run / log}", *(f"  | {line}" for line in trouble.lines)])
        )


@dataclass(frozen=True)
class LaunchResult:
    """A launch that ended without failure.

    ``reason`` is "finished", or what stopped it ("signal", "stop file", "time budget").
    """

    run: Path
    world: int
    step: int
    reason: str
    attempts: int
    seconds: float
    plan: LaunchPlan


# -------------------------------------------------------------------------------------------- layout and hosts


def fit_layout(config: RunConfig, world: int, ascend: bool = False) -> RunConfig:
    """``config`` for ``world`` processes: a data dimension of 1 is enlarged to use all of them.

    With ``ascend`` the layout must also meet the requirements of Ascend's collectives.

    Raises:
        InputError: the layout needs another number of processes.
    """
    parallel = config.parallel
    if parallel.world_size != world and parallel.data == 1 and world % parallel.world_size == 0:
        config = config.replace(**{"parallel.data": world // parallel.world_size})
        parallel = config.parallel
    if parallel.world_size != world:
        raise InputError(
            f"{world} processes do not fit the layout pipeline {parallel.pipeline} × data {parallel.data} "
            f"× tensor {parallel.tensor} = {parallel.world_size}: change --nproc, the hosts, or the "
            "settings parallel.pipeline, parallel.data, parallel.tensor"
        )
    check_layout(config, powers_of_two=ascend)
    return config


def prepare(
    config: RunConfig,
    run_folder: Path | str,
    nproc: int | None = None,
    backend: str = "local",
    hosts: Path | str | None = None,
    rank_table: Path | str | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    node_rank: int | None = None,
    program: Sequence[str] = WORKER,
    join_seconds: float = 600.0,
    variables: Sequence[str] = (),
) -> tuple[RunConfig, LaunchPlan]:
    """The settings, fitted to the number of processes, and the plan of what runs where; starts and writes nothing.

    Arguments as for ``launch``.

    Raises:
        InputError: hosts, rank table, layout and back end do not go together.
    """
    request = Request(
        Path(run_folder).absolute(),
        backend,
        (),
        program=tuple(program),
        join_seconds=int(join_seconds),
        variables=tuple(variables),
    )
    if rank_table is not None or backend == "ranktable":
        request = _with_table(request, rank_table, hosts, nproc, node_rank)
    else:
        nproc = config.parallel.world_size if nproc is None and hosts is None else nproc
        request = _with_hosts(request, hosts, nproc, node_rank, master_addr, master_port)
    if not 0 <= request.node_rank < len(request.hosts):
        raise InputError(f"--node-rank {request.node_rank} does not exist: there are {len(request.hosts)} hosts")
    return fit_layout(config, request.world, request.backend == "ranktable"), make_plan(request)


def _with_table(request: Request, rank_table, hosts, nproc, node_rank) -> Request:
    if request.backend not in ("ranktable", "local") or rank_table is None or hosts is not None:
        raise InputError(
            "--rank-table FILE goes with --backend ranktable (and --backend ranktable with it), and without --hosts"
        )
    table = read_rank_table(rank_table)
    names = [server.server_id for server in table.servers]
    per_server = len(table.servers[0].devices)
    if nproc is not None and nproc != per_server:
        raise InputError(f"--nproc {nproc}: {rank_table} has {per_server} devices a server")
    devices = [sorted((device.rank_id, device.device_id) for device in server.devices) for server in table.servers]
    ranks = [[rank for rank, _ in pairs] for pairs in devices]
    if ranks != [list(range(i * per_server, (i + 1) * per_server)) for i in range(len(names))]:
        raise InputError(
            f"{rank_table}: ranks must follow the order of the servers; `pangu-lab ranktable merge` numbers them so"
        )
    return dataclasses.replace(
        request,
        backend="ranktable",
        hosts=[Host(name, per_server) for name in names],
        node_rank=_own_node(names, node_rank),
        rank_table=Path(rank_table).absolute(),
        devices=devices,
    )


def _with_hosts(request: Request, hosts, nproc, node_rank, master_addr, master_port) -> Request:
    listed = read_hosts(hosts, nproc) if hosts is not None else [Host("localhost", nproc or 1)]
    several = len(listed) > 1
    if request.backend == "mpirun" and node_rank is None:
        node_rank = 0
    node_rank = _own_node([host.name for host in listed], node_rank) if several else (node_rank or 0)
    address = master_addr or (address_of(listed[0].name) if several else "127.0.0.1")
    port = master_port if master_port is not None else MULTI_HOST_PORT if several else free_port()
    if not 1024 <= port <= 65535:
        raise InputError(f"--master-port {port} must be between 1024 and 65535")
    return dataclasses.replace(
        request,
        hosts=listed,
        node_rank=node_rank,
        master_addr=address,
        master_port=port,
        hosts_file=Path(hosts).absolute() if hosts is not None else None,
    )


def _own_node(names: list[str], node_rank: int | None) -> int:
    return node_rank if node_rank is not None else 0 if len(names) == 1 else own_index(names)


# ------------------------------------------------------------------------------------------------------ launch


def launch(
    config: RunConfig,
    run_folder: Path | str,
    nproc: int | None = None,
    backend: str = "local",
    *,
    hosts: Path | str | None = None,
    rank_table: Path | str | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    node_rank: int | None = None,
    restarts: int = 0,
    patience: Patience = Patience(),
    program: Sequence[str] = WORKER,
    variables: Sequence[str] = (),
    on_event: OnEvent | None = None,
    progress: Progress = silent,
    stop: Callable[[], bool] | None = None,
) -> LaunchResult:
    """Train ``config`` in ``run_folder`` with several processes, and wait until they have ended.

    Args:
        nproc: ranks on each host, for lines of ``hosts`` without slots and when there is no hosts file; with neither
            ``nproc`` nor ``hosts``, as many as the layout in ``config`` has.
        backend: "local", "msrun", "mpirun" or "ranktable"; see the module's docstring.
        hosts: a file with a line ``NAME slots=N`` for each machine.
        rank_table: an HCCL rank table (Ascend).
        master_addr: where the scheduler listens; the first host's address when not given.
        master_port: its port; chosen free on one host, 8118 on several.
        node_rank: which of the hosts this is; found by name or address when not given.
        restarts: how many times a failed launch is restarted, from its last good checkpoint.
        patience: when a silent or idle rank counts as hanging.
        program: what each rank runs, as arguments of the Python interpreter; ``--run FOLDER`` is added.
        variables: environment variables for ranks on every host, as NAME or NAME=VALUE, beside those of NCCL, HCCL, UCX
            and this project, which always reach them.
        on_event: called with {"kind", …}: "started", "rank" (a rank's new state), "waiting", "stopping", "failed",
            "restart", "warning" (from a rank), "ended".
        progress: called with the step reached.
        stop: called several times a second; True stops the run cleanly, as do Ctrl-C and the ``stop`` file.

    Raises:
        InputError: settings that cannot work, found here or by a rank.
        LaunchFailed: a rank failed or hung; all others have been ended.
    """
    config, plan = prepare(
        config,
        run_folder,
        nproc,
        backend,
        hosts,
        rank_table,
        master_addr,
        master_port,
        node_rank,
        program,
        patience.join,
        variables,
    )
    _check_machine(plan)
    launcher = Launcher(
        config,
        plan,
        patience,
        on_event or (lambda event: None),
        progress,
        stop,
        own_port=master_port is None and len(plan.hosts) == 1,
    )
    return launcher.go(restarts)


def _check_machine(plan: LaunchPlan) -> None:
    if plan.backend == "ranktable" and not glob.glob("/dev/davinci[0-9]*"):
        raise InputError(
            "a rank table is for Ascend, and this machine has no Ascend device: --dry-run shows what "
            "would run, --backend local runs here"
        )
    if plan.backend == "mpirun" and shutil.which("mpirun") is None:
        raise InputError("mpirun is not installed here: install Open MPI (Debian: openmpi-bin), or use --backend local")


class Launcher:
    """One call of ``launch``: its attempts, signals and events."""

    def __init__(
        self,
        config: RunConfig,
        plan: LaunchPlan,
        patience: Patience,
        on_event: OnEvent,
        progress: Progress,
        stop: Callable[[], bool] | None,
        own_port: bool,
    ):
        self.config, self.plan, self.patience = config, plan, patience
        self.on_event, self.progress, self.stop, self.own_port = on_event, progress, stop, own_port
        self.steps = config.train.steps
        self.run = plan.run
        self.attempt = 0
        self.began = time.time()
        self.stopping = ""
        self.signals = 0
        self.states: dict[int, str] = {}
        self.lock = Lock(
            self.run / HEARTBEAT / f"node_{plan.node_rank}.lock",
            str(self.run),
            "launches here",
            f"stop it first (create the file {self.run / STOP})",
        )

    # ---------------------------------------------------------------- attempts

    def go(self, restarts: int) -> LaunchResult:
        refuse_living(self.run)
        with self.lock:
            self._open()
            try:
                return self._attempts(restarts)
            except LockLost as error:
                raise LaunchFailed(Trouble(None, str(error)), self.attempt, self.run) from None

    def _attempts(self, restarts: int) -> LaunchResult:
        with self._handling():
            while True:
                self.attempt += 1
                result, trouble = self._attempt()
                if result is not None:
                    self._note("stopped" if self.stopping else "finished", result.reason)
                    self.on_event({"kind": "ended", "reason": result.reason, "step": result.step})
                    return result
                self._note("failed", trouble.what, rank=trouble.rank, lines=list(trouble.lines))
                self.on_event({"kind": "failed", "rank": trouble.rank, "what": trouble.what, "lines": trouble.lines})
                if trouble.refused:
                    raise InputError(trouble.what)
                if self.attempt > restarts or self.stopping:
                    raise LaunchFailed(trouble, self.attempt, self.run)
                self._keep_logs()
                self.on_event(
                    {"kind": "restart", "what": trouble.what, "attempt": self.attempt + 1, "of": restarts + 1}
                )

    def _attempt(self) -> tuple[LaunchResult | None, Trouble | None]:
        """Run all ranks once; the result, or what went wrong. No process of ours is left either way."""
        for _ in range(PORT_TRIES):
            job = Job(self.plan, self.patience)
            try:
                job.start()
                self._note("running")
                self.on_event(
                    {
                        "kind": "started",
                        "ranks": job.ranks,
                        "world": self.plan.world,
                        "attempt": self.attempt,
                        "pids": [process.pid for _, process in job.processes.started],
                    }
                )
                result, trouble = self._watch(job)
            finally:
                job.end()
            port_taken = trouble is not None and trouble.rank is None and "MS_SCHED_PORT" in "".join(trouble.lines)
            if not (port_taken and self.own_port and not job.began):
                break
            self.plan = make_plan(dataclasses.replace(self.plan.request, master_port=free_port()))
        return result, trouble

    def _watch(self, job: Job) -> tuple[LaunchResult | None, Trouble | None]:
        events = EventReader(self.run)
        events.new()
        while True:
            time.sleep(POLL_SECONDS)
            self.lock.check()
            job.look()
            self._report_states(job)
            self._report_progress(events)
            if self.signals > 1:
                return None, Trouble(None, "ended at once by a second signal")
            trouble = job.trouble() or self._trouble_elsewhere()
            if trouble is not None:
                return None, trouble
            if job.finished():
                reason = job.reason()
                return self._result(job, self.stopping if self.stopping and reason != "finished" else reason), None
            if self._stop_asked(job):
                job.look()  # the state before the request: a rank that has begun training saves and ends by itself
                if not job.began:
                    return self._result(job, f"{self.stopping} before training began"), None

    def _result(self, job: Job, reason: str) -> LaunchResult:
        return LaunchResult(
            self.run, self.plan.world, job.step, reason, self.attempt, round(time.time() - self.began, 1), self.plan
        )

    # ---------------------------------------------------------------- stopping

    @contextlib.contextmanager
    def _handling(self) -> Iterator[None]:
        """Record signals instead of being ended by them; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.signals += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # the terminal was closed; under nohup it stays ignored
        previous = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop_asked(self, job: Job) -> bool:
        """Whether the run is to stop; passed on to the ranks as the ``stop`` file, again if a rank removed it.

        It is not written once all ranks have ended: it would stop a process that resumes the run while this one exits.
        """
        file = self.run / STOP
        if not self.stopping:
            if self.signals:
                self.stopping = "signal"
            elif self.stop is not None and self.stop():
                self.stopping = "stopped"
            elif file.exists():
                self.stopping = "stop file"
            if self.stopping:
                self.on_event({"kind": "stopping", "why": self.stopping})
        running = any(job.state(rank) not in ("finished", "stopped", "failed") for rank in job.ranks)
        if self.stopping and running and not file.exists():
            file.write_text(f"{time.time()}\n", encoding="utf-8")
        return bool(self.stopping)

    # ---------------------------------------------------------------- the run folder

    def _open(self) -> None:
        """Make the folder and write what the ranks are to run."""
        (self.run / "logs").mkdir(parents=True, exist_ok=True)
        (self.run / HEARTBEAT).mkdir(exist_ok=True)
        if self.plan.node_rank == 0:
            for path in self.run.iterdir():  # of a launcher that was killed while it wrote
                if re.fullmatch(rf"\.({re.escape(STATE)}|{re.escape(CONFIG)})\.(new-)?{RANDOM}", path.name):
                    path.unlink()
            with contextlib.suppress(FileNotFoundError):
                (self.run / STOP).unlink()
        if self.plan.node_rank == 0 or not (self.run / CONFIG).exists():
            write_text_atomic(self.run / CONFIG, self.config.with_absolute_paths().to_yaml())

    def _keep_logs(self) -> None:
        """Move a failed attempt's logs to a folder of their own, so that the next attempt begins with empty ones."""
        kept = self.run / "logs" / f"attempt-{self.attempt}"
        kept.mkdir(exist_ok=True)
        for command in self.plan.here.commands:
            with contextlib.suppress(FileNotFoundError):
                os.replace(command.log, kept / Path(command.log).name)

    def _note(self, state: str, reason: str = "", **more: Any) -> None:
        """Write this launcher's state, for the other launchers and for readers of the run folder."""
        self.lock.check()
        facts = {
            "v": 1,
            "pid": os.getpid(),
            "process": self.lock.process.to_dict(),
            "host": socket.gethostname(),
            "node_rank": self.plan.node_rank,
            "state": state,
            "reason": reason,
            "attempt": self.attempt,
            "time": time.time(),
            "backend": self.plan.backend,
            "world": self.plan.world,
            "ranks": list(self.plan.here.ranks),
            "hosts": [host.name for host in self.plan.hosts],
            **more,
        }
        write_json_atomic(self.run / HEARTBEAT / f"node_{self.plan.node_rank}", facts)
        if self.plan.node_rank == 0:
            write_json_atomic(self.run / STATE, facts)

    def _trouble_elsewhere(self) -> Trouble | None:
        """A failure that another host's launcher has reported, in this attempt."""
        for host in self.plan.hosts:
            if host.node_rank == self.plan.node_rank or self.plan.backend == "mpirun":
                continue
            with contextlib.suppress(InputError):
                note = self.run / HEARTBEAT / f"node_{host.node_rank}"
                other = read_json(note, "another launcher's note", _Failed)
                if other["time"] > self.began and other["attempt"] >= self.attempt:
                    return Trouble(other["rank"], f"on host {host.name}: {other['reason']}", tuple(other["lines"]))
        return None

    # ---------------------------------------------------------------- events

    def _report_states(self, job: Job) -> None:
        for rank in job.ranks:
            state = job.state(rank)
            if self.states.get(rank) != state:
                self.states[rank] = state
                self.on_event({"kind": "rank", "rank": rank, "state": state})

    def _report_progress(self, events: EventReader) -> None:
        for event in events.new():
            if event["kind"] == "warning":
                self.on_event({"kind": "warning", "text": event["text"]})
            if event["kind"] == "start":
                tell_budget(self.progress, event.get("budget"))
            self.steps = int(event.get("steps", self.steps))
            if event["kind"] == "step":
                self.progress(int(event["step"]), self.steps, step_text(event, self.config.model.num_parameters))
