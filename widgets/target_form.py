"""``TargetForm``: where a launch runs. This machine, mpirun, msrun or Ascend with a rank table, on one machine or several.

Hosts files and rank tables are typed, pasted or opened here and checked by what the command line checks them with. Each
is written into the file that the form names when a launch or a dry run needs it; a file with other content is only
replaced when that is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import traitlets

from pangu_lab.errors import InputError
from pangu_lab.files import write_text_atomic
from pangu_lab.launch import (
    BACKENDS,
    RankTable,
    Server,
    merge_rank_tables,
    parse_hosts,
    parse_rank_table,
    read_rank_table,
    server_table,
    write_rank_table,
)
from pangu_lab.reading import content_of, parse_json
from widgets.base import LabWidget
from widgets.command import Target

FILES = {"hosts": "hosts_file", "table": "table_file"}  # what the form writes, and the field that names its file


class TargetForm(LabWidget):
    """Choose the back end and the machines of a launch.

    Args:
        folder: where hosts file and rank table are named by default.

    Attributes:
        backend: "local" (our own starter), "mpirun", "msrun" or "ranktable".
        nproc: processes on this machine, or on each whose line has no slots; 0 for as many as the layout has.
        several: whether the machines are those of a hosts file, not this one alone.
        hosts_text: its lines, ``NAME slots=N``. ``hosts_file`` is where they are written.
        table_file: where the rank table is written. ``add_server`` and ``add_table`` fill it.
        node_rank: which of the machines this one is; −1 when it is to be found by its name.
        master_addr: the first machine's address; empty when its name says it.
        target: all of this as the command line's options; changes with every field.
        errors: by field ("hosts", "table", "entry", "file"), what is wrong in one line.
        file_state: what the named file is beside what is on the form: "new", "same" or "other"; empty when it is not needed.
    """

    _script = "target"
    _sections = ("target",)
    backends = traitlets.List(list(BACKENDS)).tag(sync=True)
    backend = traitlets.Enum(BACKENDS, default_value="local").tag(sync=True)
    nproc = traitlets.Int(0, min=0).tag(sync=True)
    several = traitlets.Bool(False).tag(sync=True)
    hosts_text = traitlets.Unicode().tag(sync=True)
    hosts_file = traitlets.Unicode().tag(sync=True)
    table_file = traitlets.Unicode().tag(sync=True)
    node_rank = traitlets.Int(-1, min=-1).tag(sync=True)
    master_addr = traitlets.Unicode().tag(sync=True)
    entry = traitlets.Dict().tag(sync=True)  # the server being typed: server, devices, addresses
    entry_devices = traitlets.Unicode().tag(sync=True)  # and which devices that names
    machines = traitlets.List().tag(sync=True)  # {name, first, ranks, devices} in the order of their ranks
    file_state = traitlets.Enum(("", "new", "same", "other"), default_value="").tag(sync=True)
    errors = traitlets.Dict().tag(sync=True)
    target = traitlets.Any(Target())

    def __init__(self, folder: Path | str = "runs", **values: Any) -> None:
        values = {"hosts_file": str(Path(folder) / "hosts"), "table_file": str(Path(folder) / "hccl.json"), **values}
        self._servers: list[RankTable] = []  # each of one server
        self._unopened = ""  # why the named file could not be opened
        super().__init__(**values)
        self.observe(lambda change: self._named(), ["hosts_file", "table_file", "backend", "several"])
        self.observe(lambda change: self._check(), ["nproc", "hosts_text", "node_rank", "master_addr", "entry"])
        self._named()

    # ---------------------------------------------------------------- what is chosen

    @property
    def kind(self) -> str:
        """Which file the target needs: "hosts", "table", or none."""
        return "table" if self.backend == "ranktable" else "hosts" if self.several else ""

    @property
    def path(self) -> Path:
        """Where that file is."""
        return Path(getattr(self, FILES[self.kind]).strip())

    @property
    def table(self) -> RankTable:
        """The rank table of the servers added so far, in their order.

        Raises:
            InputError: there are none.
        """
        if not self._servers:
            raise InputError("the rank table has no server yet: add one, or name the file of a table")
        return merge_rank_tables(self._servers)

    def ready(self) -> Target:
        """The target, its file written.

        Raises:
            InputError: a field is wrong, something is missing, or the file holds something else.
        """
        self._check()
        for error in self.errors.values():
            raise InputError(error)
        if self.entry_devices:
            raise InputError(
                f"server {self.entry['server'].strip()} is typed but not added: add it, or empty the fields"
            )
        if self.kind:
            self.write()
        return self.target

    def write(self, replace: bool = False) -> None:
        """Write the hosts file or the rank table.

        Raises:
            InputError: it is wrong or empty, or its file holds something else and ``replace`` is not given.
        """
        content = parse_hosts(self.hosts_text, "hosts", self.nproc or None) if self.kind == "hosts" else self.table
        state = self._state()
        if state == "other" and not replace:
            raise InputError(f"{self.path} holds something else: replace it, open it, or name another file")
        if state != "same" and isinstance(content, RankTable):
            write_rank_table(content, self.path, replace)
        elif state != "same":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path, self._lines())
        self._check()

    def open_file(self) -> None:
        """Take what the named file holds in place of what is on the form.

        Raises:
            InputError: there is no such file, or it is none of that kind.
        """
        if self.kind == "hosts":
            self.hosts_text = content_of(self.path, "the hosts file").decode("utf-8", "replace")
        else:
            table = read_rank_table(self.path)
            self._servers = []
            self._add([table])
        self._check()

    # ---------------------------------------------------------------- the rank table's servers

    def add_server(self, server: str, devices: str = "", addresses: str = "") -> None:
        """Add a server; arguments as for ``pangu_lab.launch.server_table``.

        Raises:
            InputError: they cannot be read, or the server does not go with the others.
        """
        self._add([server_table(server.strip(), devices, addresses)])

    def add_table(self, *tables: Path | str) -> None:
        """Add the servers of rank tables, in the order of the files.

        Raises:
            InputError: one has a mistake, or the servers do not go with the others.
        """
        self._add([read_rank_table(path) for path in tables])

    def _add(self, tables: Sequence[RankTable]) -> None:
        servers = [*self._servers, *(RankTable((server,)) for table in tables for server in table.servers)]
        merge_rank_tables(servers)  # refused before anything has changed
        self._servers = servers
        self._check()

    def remove_server(self, place: int) -> None:
        """Take away the server at a place, counted from 0."""
        self._servers = [one for number, one in enumerate(self._servers) if number != place]
        self._check()

    # ---------------------------------------------------------------- checks

    def _named(self) -> None:
        """Another file or another kind of it: it is opened when the form has nothing that could be lost."""
        self._unopened = ""
        if self.kind and not self._holds_something() and self.path.is_file():
            try:
                self.open_file()
            except InputError as error:
                self._unopened = str(error)
        self._check()

    def _holds_something(self) -> bool:
        return bool(self.kind and (self.hosts_text.strip() if self.kind == "hosts" else self._servers))

    def _check(self) -> None:
        errors: dict[str, str] = {}
        machines: list[dict[str, Any]] = []
        if self._holds_something():
            try:
                machines = self._machines()
            except InputError as error:
                errors[self.kind] = str(error)
        elif self.kind and self._unopened:
            errors[self.kind] = self._unopened
        if self.kind and (not getattr(self, FILES[self.kind]).strip() or self.path.is_dir()):
            errors["file"] = f"'{getattr(self, FILES[self.kind])}' cannot be the file: name one"
        devices, wrong = self._entered()
        with self.hold_sync():
            self.errors, self.machines, self.entry_devices = errors | wrong, machines, devices
            self.file_state = self._state() if machines and not errors else ""
            self.target = self._target()

    def _machines(self) -> list[dict[str, Any]]:
        """The machines with their ranks, which are numbered from one to the next."""
        if self.kind == "hosts":
            listed = [(host.name, host.slots, "") for host in parse_hosts(self.hosts_text, "hosts", self.nproc or None)]
        else:
            listed = [(one.server_id, len(one.devices), _devices(one)) for one in self.table.servers]
        firsts = itertools.accumulate((ranks for _, ranks, _ in listed), initial=0)
        return [
            {"name": name, "first": first, "ranks": ranks, "devices": devices}
            for (name, ranks, devices), first in zip(listed, firsts)
        ]

    def _typed(self) -> dict[str, str]:
        return {key: str(self.entry.get(key, "")) for key in ("server", "devices", "addresses")}

    def _entered(self) -> tuple[str, dict[str, str]]:
        """The devices of the server being typed, and what is wrong with it; nothing while it is empty."""
        typed = self._typed()
        if self.kind != "table" or not any(text.strip() for text in typed.values()):
            return "", {}
        try:
            table = server_table(typed["server"].strip(), typed["devices"], typed["addresses"])
        except InputError as error:
            return "", {"entry": str(error)}
        return _devices(table.servers[0]), {}

    def _target(self) -> Target:
        if not self.kind:
            return Target(self.backend, self.nproc)
        named = self.node_rank if 0 <= self.node_rank < len(self.machines) and self.backend != "mpirun" else None
        if self.kind == "table":
            return Target("ranktable", rank_table=str(self.path), node_rank=named)
        return Target(self.backend, self.nproc, str(self.path), "", named, self.master_addr.strip())

    def _lines(self) -> str:
        return self.hosts_text.replace("\r\n", "\n").strip() + "\n"

    def _state(self) -> str:
        """What the named file holds beside what is on the form."""
        if not self.path.exists():
            return "new"
        with contextlib.suppress(InputError):
            content = content_of(self.path, "the file")
            if self.kind == "hosts":
                return "same" if content.decode("utf-8", "replace").strip() == self._lines().strip() else "other"
            return "same" if parse_rank_table(parse_json(content, str(self.path))) == self.table else "other"
        return "other"

    # ---------------------------------------------------------------- from the page

    def _do_add_server(self, content: dict[str, Any]) -> None:
        self.add_server(**self._typed())
        self.entry = {}

    def _do_add_tables(self, content: dict[str, Any]) -> None:
        """Files that the browser has read: {name, text} each."""
        self._add(
            [
                parse_rank_table(parse_json(str(file.get("text", "")).encode(), name), name)
                for file in content.get("files", [])
                if (name := str(file.get("name", "table")))
            ]
        )

    def _do_remove(self, content: dict[str, Any]) -> None:
        self.remove_server(int(content.get("place", -1)))

    def _do_open(self, content: dict[str, Any]) -> None:
        self.open_file()

    def _do_write(self, content: dict[str, Any]) -> None:
        self.write(replace=content.get("replace") is True)

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        lines = [f"{self.word('target', 'run_on')} {self.word('target', f'backend_{self.backend}')}"]
        lines += [
            f"  {one['name']}: {_span(one)}{'  (' + one['devices'] + ')' if one['devices'] else ''}"
            for one in self.machines
        ]
        return "\n".join([*lines, *(f"  ! {error}" for error in self.errors.values())])


def _devices(server: Server) -> str:
    return ", ".join(f"{device.device_id}: {device.device_ip}" for device in server.devices)


def _span(machine: dict[str, Any]) -> str:
    first, last = machine["first"], machine["first"] + machine["ranks"] - 1
    return f"rank {first}" if first == last else f"ranks {first} to {last}"
