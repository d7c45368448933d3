"""What a launch would run, as data: which processes on which host, with which arguments and environment.

The launcher starts exactly these commands and ``--dry-run`` prints them; commands are built nowhere else.
They are argument lists, never shell text. All back ends but the rank table use MindSpore's dynamic
cluster: one scheduler process, to which every rank connects, with MS_* variables that give each process its role.
``mpirun`` works the same way (MindSpore's own MPI start fails on a CPU): each rank takes its number from Open MPI's
variables.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pangu_lab
from pangu_lab.errors import InputError, nearest
from pangu_lab.launch.hosts import Host

BACKENDS = ("local", "msrun", "mpirun", "ranktable")
WORKER = ("-m", "pangu_lab.launch.worker")
CONFIG = "launch.yaml"  # in the run folder: the configuration the ranks train
LAUNCHER = "PANGU_LAB_LAUNCHER"  # PID@HOST of the process that watches a rank, added when it is started
# Variables of an outer launch that would mislead ours.
STALE = (
    "MS_ROLE",
    "MS_NODE_ID",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_WORKER_IP",
    "RANK_ID",
    "RANK_SIZE",
    "DEVICE_ID",
    "RANK_TABLE_FILE",
    "PANGU_LAB_RANK_LOG",
)
STALE_PREFIXES = ("OMPI_", "PMIX_", "PRTE_", "PMI_")
PASSED_PREFIXES = ("NCCL_", "HCCL_", "UCX_", "PANGU_LAB_")  # of collectives, and this project's own
SECRETS = ("PANGU_LAB_PASSWORD", "PANGU_LAB_TOKEN", "PANGU_LAB_CLUSTER_KEY")  # of the server; plans are printed


@dataclass(frozen=True)
class Command:
    """One process: its arguments, what is added to the environment, and the file its output goes to."""

    role: str  # "scheduler", "rank", "msrun" or "mpirun"
    rank: int | None
    argv: tuple[str, ...]
    env: dict[str, str]
    log: str

    @property
    def name(self) -> str:
        return f"rank {self.rank}" if self.role == "rank" else self.role

    def shell_line(self) -> str:
        """The command as one could type it."""
        return f"env {_assignments(self.env)} {shlex.join(self.argv)} > {shlex.quote(self.log)} 2>&1"


def _assignments(env: dict[str, str]) -> str:
    """NAME=VALUE …; a value that ends with the one in the environment has $NAME in its place."""
    words = []
    for name, value in env.items():
        current = os.environ.get(name)
        if current and value != current and value.endswith(current):
            words.append(f"{name}={shlex.quote(value[: -len(current)])}${name}")
        else:
            words.append(f"{name}={shlex.quote(value)}")
    return " ".join(words)


@dataclass(frozen=True)
class HostPlan:
    """What runs on one host: its ranks, and the processes that its launcher starts."""

    name: str
    node_rank: int
    ranks: range
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class LaunchPlan:
    """A whole launch over all hosts; ``node_rank`` says which of them this one is."""

    request: Request
    hosts: tuple[HostPlan, ...]

    @property
    def backend(self) -> str:
        return self.request.backend

    @property
    def run(self) -> Path:
        return self.request.run

    @property
    def world(self) -> int:
        return self.request.world

    @property
    def node_rank(self) -> int:
        return self.request.node_rank

    @property
    def master(self) -> str:
        """ADDRESS:PORT of the scheduler; empty where there is none."""
        if self.backend == "ranktable" or not _needs_scheduler(self.request):
            return ""
        return f"{self.request.master_addr}:{self.request.master_port}"

    @property
    def here(self) -> HostPlan:
        return self.hosts[self.node_rank]

    def lines(self) -> list[str]:
        """The plan as text: a line for each host, followed by one for each of its processes."""
        result = []
        for host in self.hosts:
            ranks = _span(host.ranks) if host.ranks else "none"
            result.append(f"# host {host.name} (node rank {host.node_rank}): {ranks}")
            if not host.commands:
                result.append("# started by mpirun on the first host")
            elif len(self.hosts) > 1 and self.backend != "mpirun":
                result.append(f"# start there: {shlex.join(self._start_command(host.node_rank))}")
            result += [command.shell_line() for command in host.commands]
        return result

    def _start_command(self, node: int) -> list[str]:
        """The command that starts a host's ranks; it takes the settings that the first host left in the run folder."""
        request = self.request
        words = ["pangu-lab", "launch", "--run", str(request.run), "--backend", request.backend]
        if request.rank_table is not None:
            words += ["--rank-table", str(request.rank_table)]
        else:
            words += [
                "--hosts",
                str(request.hosts_file),
                "--nproc",
                str(request.hosts[node].slots),
                "--master-addr",
                request.master_addr,
                "--master-port",
                str(request.master_port),
            ]
        asked = [word for variable in request.variables for word in ("--env", variable)]
        return [*words, *asked, "--node-rank", str(node)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        hosts = [
            {
                "name": host.name,
                "node_rank": host.node_rank,
                "ranks": list(host.ranks),
                "commands": [
                    {"role": c.role, "rank": c.rank, "argv": list(c.argv), "env": c.env, "log": c.log}
                    for c in host.commands
                ],
            }
            for host in self.hosts
        ]
        return {
            "backend": self.backend,
            "run": str(self.run),
            "world": self.world,
            "master": self.master,
            "hosts": hosts,
        }


def _span(ranks: range) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


@dataclass(frozen=True)
class Request:
    """What a plan is made from. ``hosts`` is in the order of node ranks; paths are absolute."""

    run: Path
    backend: str
    hosts: Sequence[Host]
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    hosts_file: Path | None = None
    rank_table: Path | None = None
    devices: Sequence[Sequence[tuple[int, int]]] = ()  # from the rank table: (rank, device id) on each host
    program: Sequence[str] = WORKER
    join_seconds: int = 600
    variables: Sequence[str] = ()  # NAME or NAME=VALUE: what ranks on every host get in their environment, as asked

    @property
    def world(self) -> int:
        return sum(host.slots for host in self.hosts)

    def ranks(self, node: int) -> range:
        """The ranks of one host; they are numbered consecutively, host after host."""
        first = sum(host.slots for host in self.hosts[:node])
        return range(first, first + self.hosts[node].slots)


def make_plan(request: Request) -> LaunchPlan:
    """The commands of every host.

    Raises:
        InputError: the back end is unknown, is not installed, or does not support the request.
    """
    if request.backend not in BACKENDS:
        raise InputError(
            f"unknown back end '{request.backend}'{nearest(request.backend, BACKENDS)}; there are {', '.join(BACKENDS)}"
        )
    make = {"local": _local, "msrun": _msrun, "mpirun": _mpirun, "ranktable": _rank_table}[request.backend]
    commands = [make(request, node) for node in range(len(request.hosts))]
    hosts = tuple(
        HostPlan(host.name, node, request.ranks(node), tuple(commands[node])) for node, host in enumerate(request.hosts)
    )
    return LaunchPlan(request, hosts)


def _needs_scheduler(request: Request) -> bool:
    """Whether there is a scheduler: a single process needs none, but msrun and mpirun always have one."""
    return request.world > 1 or request.backend in ("msrun", "mpirun")


# -------------------------------------------------------------------------------------------------- back ends


def _local(request: Request, node: int) -> list[Command]:
    """The scheduler on the first host, and each rank as a process of its own."""
    if not _needs_scheduler(request):
        return [_worker(request, 0, _common(request, node))]
    cluster = {**_common(request, node), **_cluster(request)}
    commands = [_scheduler(request, cluster)] if node == 0 else []
    for rank in request.ranks(node):
        commands.append(
            _worker(
                request,
                rank,
                {
                    **cluster,
                    "MS_ROLE": "MS_WORKER",
                    "MS_NODE_ID": str(rank),
                    "DEVICE_ID": str(rank - request.ranks(node)[0]),
                },
            )
        )
    return commands


def _msrun(request: Request, node: int) -> list[Command]:
    """MindSpore's own launcher, which starts scheduler and ranks itself, each with a log of its own."""
    if len({host.slots for host in request.hosts}) > 1:
        raise InputError(
            "msrun needs the same number of ranks on every host; use --backend local, or make the "
            "hosts file's slots equal"
        )
    # msrun starts plain 'python': it must be found in this environment before any other
    env = {**_common(request, node), "PATH": _python_folder() + os.pathsep + os.environ.get("PATH", os.defpath)}
    env.update(_timeouts())
    argv = (
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        "--worker_num",
        str(request.world),
        "--local_worker_num",
        str(request.hosts[node].slots),
        "--master_addr",
        request.master_addr,
        "--master_port",
        str(request.master_port),
        "--node_rank",
        str(node),
        "--log_dir",
        str(request.run / "logs"),
        "--worker_log_name",
        "rank",
        "--join",
        "True",
        "--cluster_time_out",
        str(request.join_seconds),
        "python",
        *request.program,
        "--run",
        str(request.run),
    )
    return [Command("msrun", None, argv, env, _log(request, f"msrun_{node}" if node else "msrun"))]


def _mpirun(request: Request, node: int) -> list[Command]:
    """Our scheduler and Open MPI's launcher on the first host; it reaches the others by itself."""
    if request.node_rank != 0:
        raise InputError(
            "mpirun is started on the first host alone and starts the others itself: leave out --node-rank"
        )
    if node > 0:
        return []
    cluster = {**_common(request, node), **_cluster(request)}
    env = {**cluster, "MS_ROLE": "MS_WORKER", "PANGU_LAB_RANK_LOG": "1"}
    argv = mpirun_command(
        request.world, request.hosts_file, [*env], [sys.executable, *request.program, "--run", str(request.run)]
    )
    return [_scheduler(request, cluster), Command("mpirun", None, tuple(argv), env, _log(request, "mpirun"))]


def mpirun_command(ranks: int, hosts_file: Path | None, variables: Sequence[str], words: Sequence[str]) -> list[str]:
    """Open MPI's command that starts ``words`` so many times, with these variables of its own environment."""
    argv = [shutil.which("mpirun") or "mpirun", "-np", str(ranks), "--bind-to", "none"]
    argv += ["--hostfile", str(hosts_file)] if hosts_file is not None else ["--oversubscribe"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        argv += ["--allow-run-as-root"]
    return [*argv, *(word for name in variables for word in ("-x", name)), *words]


def _rank_table(request: Request, node: int) -> list[Command]:
    """Ascend's way without a scheduler: the table tells every rank where the others are."""
    # the time that ranks wait for each other; HCCL's default of 120 s is shorter than a host may need to start
    common = {
        "HCCL_CONNECT_TIMEOUT": str(request.join_seconds),
        **_common(request, node),
        "RANK_TABLE_FILE": str(request.rank_table),
        "RANK_SIZE": str(request.world),
    }
    return [
        _worker(request, rank, {**common, "RANK_ID": str(rank), "DEVICE_ID": str(device)})
        for rank, device in request.devices[node]
    ]


# ------------------------------------------------------------------------------------------------- their parts


def _worker(request: Request, rank: int, env: dict[str, str]) -> Command:
    argv = (sys.executable, *request.program, "--run", str(request.run))
    return Command("rank", rank, argv, env, _log(request, f"rank_{rank}"))


def _scheduler(request: Request, cluster: dict[str, str]) -> Command:
    """The scheduler only connects the ranks, so it runs the same program whatever the ranks run."""
    argv = (sys.executable, *WORKER, "--run", str(request.run))
    return Command("scheduler", None, argv, {**cluster, "MS_ROLE": "MS_SCHED"}, _log(request, "scheduler"))


def _common(request: Request, node: int) -> dict[str, str]:
    env = {
        "PYTHONUNBUFFERED": "1",
        "GLOG_v": os.environ.get("GLOG_v", "3"),
        "PANGU_LAB_LOCAL_RANKS": str(request.hosts[node].slots),
        **passed_environment(request.variables),
    }
    return {**env, **package_path(env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")))}


def package_path(path: str) -> dict[str, str]:
    """PYTHONPATH with this package in it, before ``path``; nothing where Python finds it by itself."""
    package_home = str(Path(pangu_lab.__file__).resolve().parent.parent)
    if package_home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return {}
    if package_home not in path.split(os.pathsep):
        path = package_home + (os.pathsep + path if path else "")
    return {"PYTHONPATH": path}


def _cluster(request: Request) -> dict[str, str]:
    return {
        "MS_WORKER_NUM": str(request.world),
        "MS_SCHED_HOST": request.master_addr,
        "MS_SCHED_PORT": str(request.master_port),
        "MS_TOPO_TIMEOUT": str(request.join_seconds),
        **_timeouts(),
    }


def _timeouts() -> dict[str, str]:
    """How long ranks wait for each other, in seconds.

    The retry interval counts while they join; MindSpore's default of 3 to 5 s made that 6 s longer. In a collective on
    a CPU the wait is long, because a stage that compiles may be a minute behind its neighbour; the launcher finds ranks
    that hang by their heartbeats.
    """
    return {"MS_RETRY_INTERVAL_LOWER": "0", "MS_RETRY_INTERVAL_UPPER": "1", "MS_CPU_COMM_OP_TIMEOUT": "600"}


def _python_folder() -> str:
    return str(Path(sys.executable).parent)


def _log(request: Request, name: str) -> str:
    return str(request.run / "logs" / f"{name}.log")


def passed_environment(asked: Sequence[str] = ()) -> dict[str, str]:
    """The variables that every rank gets, wherever it runs and whoever starts it.

    Those of NCCL, HCCL and UCX and this project's own come from this process's environment; processes that mpirun starts
    elsewhere would not have them otherwise.

    Args:
        asked: more of them, as NAME (its value here) or NAME=VALUE.

    Raises:
        InputError: a name is none, has no value here, or is one that the launch itself sets.
    """
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(PASSED_PREFIXES) and name not in (*SECRETS, *STALE, LAUNCHER, "PANGU_LAB_LOCAL_RANKS")
    }
    for word in asked:
        name, given, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"--env {word}: write NAME or NAME=VALUE")
        if name in (*STALE, LAUNCHER) or name.startswith(STALE_PREFIXES):
            raise InputError(f"--env {name}: the launch sets it for each rank itself")
        if not given and name not in os.environ:
            raise InputError(f"--env {name}: it is not set here; write {name}=VALUE")
        found[name] = value if given else os.environ[name]
    return found


def clean_environment(added: dict[str, str]) -> dict[str, str]:
    """This process's environment without the variables of an outer launch, plus those of a command."""
    kept = {
        name: value for name, value in os.environ.items() if name not in STALE and not name.startswith(STALE_PREFIXES)
    }
    return {**kept, **added}
