"""Where the processes that share a model run: this machine, hosts that mpirun reaches, or the servers of a rank table."""

from __future__ import annotations

import functools
import os
import secrets
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.cluster.front import Cluster
from pangu_lab.cluster.rank import KEY, rank_command
from pangu_lab.cluster.shared import SharedModel, split
from pangu_lab.errors import InputError, nearest
from pangu_lab.launch.hosts import Host, address_of, read_hosts
from pangu_lab.launch.plan import mpirun_command, package_path, passed_environment
from pangu_lab.launch.rank_table import read_rank_table
from pangu_lab.ranges import shown
from pangu_lab.shipped import shipped_folder

PORT = 8119  # where a front end waits for agents
MOST = 10_000  # processes; far more than any model has heads to share
BACKENDS = ("local", "mpirun", "ranktable")


@dataclass(frozen=True)
class Places:
    """The hosts, in order; the first is this one, where the front end runs.

    Attributes:
        backend: "local" (processes of our own; agents on other hosts), "mpirun" (starts all of them) or "ranktable"
            (as local, with the devices of a rank table).
        devices: of the processes here; empty to count from 0.
        address, port: where the processes reach the front end; any free port when 0.
        variables: for all processes, as ``--env`` of a launch.
        pipeline: the stages that they form; by default as a bundle has it, or one.
    """

    hosts: Sequence[Host]
    backend: str = "local"
    devices: tuple[int, ...] = ()
    address: str = "127.0.0.1"
    port: int = 0
    hosts_file: Path | None = None
    rank_table: Path | None = None
    variables: Sequence[str] = ()
    pipeline: int | None = None

    @property
    def world(self) -> int:
        return sum(host.slots for host in self.hosts)

    def open(
        self,
        source: Path | str,
        tokenizer: str | None = None,
        log_dir: Path | str | None = None,
        slots: int | None = None,
        dtype: str | None = None,
    ) -> Cluster:
        """Start the processes and wait until each has loaded its part of the model; ``slots`` and ``dtype`` as of
        ``SharedModel.open``.

        Raises:
            InputError: the model cannot be shared so, there is no mpirun, agents are needed and there is no key, or a
                process ends before all have loaded it.
        """
        shared = SharedModel.open(source, self.world, tokenizer, self.pipeline, slots, dtype)
        agents = len(self.hosts) > 1 and self.backend != "mpirun"
        key = os.environ.get(KEY) or (None if agents else secrets.token_hex(16))
        if key is None:
            raise InputError(
                "agents of other hosts show that they belong here by a key that both sides know: put one "
                f"into the environment variable {KEY} on each"
            )
        if self.backend == "mpirun" and shutil.which("mpirun") is None:
            raise InputError(
                "mpirun is not installed here: install Open MPI (Debian: openmpi-bin), or use --backend local"
            )
        mpirun = self._mpirun if self.backend == "mpirun" else None
        cluster = Cluster(
            shared, self.hosts[0].slots, self.address, self.port, key.encode(), self.devices, log_dir, mpirun
        )
        try:
            cluster.gather(once=True)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _mpirun(self, words: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        own = {**environment, **passed_environment(self.variables), **package_path(os.environ.get("PYTHONPATH", ""))}
        return mpirun_command(self.world, self.hosts_file, [*own], words), own

    def lines(self, source: Path | str, tokenizer: str | None = None) -> list[str]:
        """What would run on each host, as one could type it; on another machine than the model's too.

        Raises:
            InputError: so many processes cannot share the model, where it is here.
        """
        layout = split(self.world, self.pipeline or 1)
        if Path(source).exists() or shipped_folder(source) is not None:
            shared = SharedModel.open(source, self.world, tokenizer, self.pipeline)
            source, layout = shared.source.resolve(), shared.layout
        front = (self.address, self.port or PORT)
        words = functools.partial(rank_command, source, front, layout)
        own = package_path(os.environ.get("PYTHONPATH", ""))
        if self.backend == "mpirun":
            names = [KEY, "OMP_NUM_THREADS", *passed_environment(self.variables), *own]
            return [
                f"# host {self.hosts[0].name}: starts all {self.world} processes",
                shlex.join(mpirun_command(self.world, self.hosts_file, names, words(socket.gethostname()))),
            ]
        lines = []
        for number, host in enumerate(self.hosts):
            lines.append(f"# host {host.name}: {host.slots} process{'es'[: 2 * (host.slots > 1)]}")
            if number:
                table = (
                    ["--rank-table", str(self.rank_table), "--node-rank", str(number)]
                    if self.rank_table
                    else ["--nproc", str(host.slots), "--master-addr", self.address]
                )
                lines.append(
                    f"# start there: {shlex.join(['pangu-lab', 'serve', '--agent', '--from', str(source), *table])}"
                )
                continue
            for process in range(host.slots):
                device = self.devices[process] if self.devices else process
                lines.append(f"env DEVICE_ID={device} {shlex.join(words(socket.gethostname()))}")
        return lines


def find_places(
    nproc: int | None = None,
    backend: str | None = None,
    hosts: Path | str | None = None,
    rank_table: Path | str | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    variables: Sequence[str] = (),
    pipeline: int | None = None,
) -> Places:
    """The places that these options of a command name.

    Args:
        nproc: processes on this machine, or on each of ``hosts`` whose line does not say it.
        backend: "local", "mpirun" or "ranktable"; local unless there is a rank table.
        hosts: a file with a line ``NAME slots=N`` for each machine, this one first.
        rank_table: an HCCL rank table (Ascend), this server first.
        master_addr, master_port: where the processes reach this one.
        pipeline: the stages that the processes form, each of as many tensor-parallel ranks; by default one, or what a
            bundle was exported for.

    Raises:
        InputError: they do not go together.
    """
    backend = backend or ("ranktable" if rank_table is not None else "local")
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend}: unknown{nearest(backend, BACKENDS)}; there are {', '.join(BACKENDS)}")
    if nproc is not None and not 1 <= nproc <= MOST:
        raise InputError(f"--nproc must be from 1 to {MOST}, not {shown(nproc)}")
    if master_port is not None and not 0 <= master_port <= 65535:
        raise InputError(f"--master-port must be from 0 (any free one) to 65535, not {shown(master_port)}")
    if (rank_table is not None) != (backend == "ranktable") or (rank_table is not None and (hosts or nproc)):
        raise InputError(
            "--rank-table FILE goes with --backend ranktable (and --backend ranktable with it), and without "
            "--hosts and --nproc"
        )
    if rank_table is not None:
        servers = read_rank_table(rank_table).servers
        listed = [Host(server.server_id, len(server.devices)) for server in servers]
        devices = tuple(device.device_id for device in sorted(servers[0].devices, key=lambda device: device.rank_id))
    else:
        listed = read_hosts(hosts, nproc) if hosts is not None else [Host("localhost", nproc or 1)]
        devices = ()
    if (total := sum(host.slots for host in listed)) > MOST:
        raise InputError(f"{hosts}: {total} processes, {MOST} at most share a model")
    if pipeline is not None:
        split(total, pipeline)
    several = len(listed) > 1
    address = master_addr or (address_of(listed[0].name) if several else "127.0.0.1")
    port = master_port if master_port is not None else PORT if several and backend != "mpirun" else 0
    return Places(
        listed,
        backend,
        devices,
        address,
        port,
        Path(hosts).absolute() if hosts is not None else None,
        Path(rank_table).absolute() if rank_table is not None else None,
        tuple(variables),
        pipeline,
    )
