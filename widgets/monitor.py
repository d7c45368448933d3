"""``RunMonitor``: a run's curves, figures and logs, drawn live from its folder.

It only reads files, in its own thread: a running cell does not delay it, after a kernel restart it starts again with
all data, and it shows old, stopped and dead runs alike. The page gets the whole picture now and then (``data``) and
in between only the rows that changed.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import traitlets

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.runs import list_runs, request_stop
from pangu_lab.runs.ranks import RankReader
from pangu_lab.runs.units import BITS, common_unit
from widgets.base import LabWidget
from widgets.launching import launch_note, resume_run
from widgets.run_data import RunFollower
from widgets.run_state import ENDED, head_of, log_tail, settings_of, state_file_there
from widgets.still import monitor_html, monitor_text

POLL_SECONDS = 0.5
IDLE_SECONDS = 2.0  # of a run that has ended, which may be resumed
RANK_SECONDS = 1.0  # between two looks at the ranks' heartbeats, for each 64 of them
WHOLE_SECONDS = 15.0  # how often the whole picture is renewed while rows are sent


class RunMonitor(LabWidget):
    """Watch one run, or compare several.

    Args:
        runs: run folders, such as ``"runs/first"``; the first is the one whose figures and logs are shown. A folder
            that is not there yet is waited for.

    Attributes:
        axis, log, smoothing: how curves are drawn: over "step", "time" or "tokens"; logarithmic; 0 to 0.99.
        unit: of the loss curves: "loss" (nats a token), "bits" per character where the runs' vocabularies differ, or
            "none" where they differ and a run does not know its characters.
    """

    _script = "monitor"
    _sections = ("monitor",)
    axis = traitlets.Enum(("step", "time", "tokens"), default_value="step").tag(sync=True)
    log = traitlets.Bool(False).tag(sync=True)
    smoothing = traitlets.Float(0.9, min=0.0, max=0.99).tag(sync=True)
    unit = traitlets.Unicode("loss").tag(sync=True)
    heads = traitlets.List().tag(sync=True)
    data = traitlets.List().tag(sync=True)
    samples = traitlets.List().tag(sync=True)
    others = traitlets.List().tag(sync=True)
    ranks = traitlets.List().tag(sync=True)
    log_view = traitlets.Dict().tag(sync=True)

    def __init__(self, *runs: Path | str, **values: Any) -> None:
        if not runs:
            raise InputError("RunMonitor needs a run folder, such as RunMonitor('runs/first')")
        self._lock = threading.RLock()
        self._configs: dict[str, tuple[float, RunConfig | None]] = {}
        self._sent: dict[str, tuple] = {}
        self._ranks_at, self._rank_reader = -RANK_SECONDS, RankReader("")
        self._whole_at, self._log_name, self._log_mark = 0.0, "", None
        self._followers = [RunFollower(Path(run).absolute()) for run in dict.fromkeys(map(str, runs))]
        super().__init__(**values)
        self._closed = threading.Event()
        self.refresh()
        threading.Thread(target=self._watch, name="run monitor", daemon=True).start()

    # ---------------------------------------------------------------- following

    @property
    def folders(self) -> list[Path]:
        """The runs shown."""
        return [run.folder for run in self._followers]

    @property
    def runs(self) -> Sequence[RunFollower]:
        """What was read of each run."""
        return tuple(self._followers)

    def refresh(self) -> None:
        """Read what is new and tell the page everything."""
        with self._lock:
            for run in self._followers:
                run.poll()
            self.heads = [self._head(run) for run in self._followers]
            self.samples = list(self._followers[0].samples)
            self._look_at_ranks()
            self._send_whole()
            self._list_others()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS if self._alive() else IDLE_SECONDS):
            self.tick()

    def _alive(self) -> bool:
        return any(head["state"] not in ENDED for head in self.heads)

    def tick(self) -> None:
        """One look at the files; the page gets the rows that changed."""
        with self._lock:
            changed = [run.poll() for run in self._followers]
            heads = [self._head(run) for run in self._followers]
            ended_now = [head["state"] for head in heads] != [head["state"] for head in self.heads]
            if self._alive() or any(changed) or ended_now:
                self.heads = heads
            if self.samples != self._followers[0].samples:
                self.samples = list(self._followers[0].samples)
            for number, run in enumerate(self._followers):
                if changed[number]:
                    self._send_tail(number, run)
            if any(self._stale(run) for run in self._followers) and (
                ended_now or time.monotonic() - self._whole_at > WHOLE_SECONDS
            ):
                self._send_whole()
                self._list_others()
            self._send_log()
            pace = RANK_SECONDS * max(1.0, len(self.ranks) / 64)
            if ended_now or self._alive() and time.monotonic() - self._ranks_at > pace:
                self._look_at_ranks()

    def _look_at_ranks(self) -> None:
        """One line a rank, whichever host it is on; none where there is one rank alone."""
        self._ranks_at = time.monotonic()
        if self._rank_reader.folder != self._followers[0].folder:
            self._rank_reader = RankReader(self._followers[0].folder)
        found = self._rank_reader.read()
        self.ranks = [asdict(one) for one in found] if len(found) > 1 else []

    def _head(self, run: RunFollower) -> dict[str, Any]:
        head = head_of(run, self._config(run))
        state, reason = launch_note(run.folder)
        return {**head, "state": state, "reason": reason, "ended": state in ENDED} if state else head

    def _config(self, run: RunFollower) -> RunConfig | None:
        """The run's settings, read again when their file has changed."""
        try:
            changed = (run.folder / "config.yaml").stat().st_mtime
        except FileNotFoundError:
            changed = 0.0
        known = self._configs.get(run.name)
        if known is None or known[0] != changed or known[1] is None:
            known = self._configs[run.name] = (changed, settings_of(run.folder))
        return known[1]

    # ---------------------------------------------------------------- to the page

    @staticmethod
    def _version(run: RunFollower) -> list[int]:
        return [run.steps.generation, run.steps.width]

    def _stale(self, run: RunFollower) -> bool:
        """Whether the whole picture that was sent lacks something."""
        return self._sent.get(run.name) != (*self._version(run), len(run.steps), len(run.evals), len(run.marks))

    def _send_whole(self) -> None:
        self._whole_at = time.monotonic()
        self.unit = common_unit([run.vocabulary for run in self._followers])
        self.data = [
            {
                "name": run.name,
                "version": self._version(run),
                "columns": _packed(run.steps.rows()),
                "scale": run.bits(1.0) if self.unit == BITS else 1.0,
                "evals": run.evals,
                "marks": _marks(run),
            }
            for run in self._followers
        ]
        for run in self._followers:
            self._sent[run.name] = (*self._version(run), len(run.steps), len(run.evals), len(run.marks))
            self._rows_sent(run)

    def _rows_sent(self, run: RunFollower) -> None:
        rows = -(-len(run.steps) // run.steps.width)
        self._sent[run.name + "/rows"] = (self._version(run), max(0, rows - 1))  # the last row may still grow

    def _send_tail(self, number: int, run: RunFollower) -> None:
        version, first = self._sent.get(run.name + "/rows", ([], 0))
        if version != self._version(run):
            self._send_whole()
            return
        columns = _packed(run.steps.rows(first))
        names = list(columns)
        self.send(
            {
                "kind": "tail",
                "run": number,
                "version": version,
                "first": first,
                "names": names,
                "evals": run.evals,
                "marks": _marks(run),
            },
            [columns[name] for name in names],
        )
        self._rows_sent(run)

    def _send_log(self) -> None:
        """The end of the log that is being looked at, when it has changed."""
        folder = self._followers[0].folder
        if not self._log_name:
            return
        try:
            status = (folder / "logs" / f"{self._log_name}.log").stat()
            mark = (str(folder), self._log_name, status.st_size, status.st_mtime)
        except FileNotFoundError:
            mark = None
        if mark != self._log_mark:
            self._log_mark = mark
            self.log_view = {"name": self._log_name, "lines": log_tail(folder, self._log_name)}

    def _list_others(self) -> None:
        """Names of the runs beside the first, for comparing."""
        parent = self._followers[0].folder.parent
        names = [path.parent.name for path in sorted(parent.glob("*/events.jsonl"))] if parent.is_dir() else []
        self.others = sorted(set(names) | {run.name for run in self._followers if run.folder.parent == parent})

    # ---------------------------------------------------------------- from the page

    def show(self, *runs: Path | str) -> None:
        """Show these runs instead."""
        with self._lock:
            known = {run.folder: run for run in self._followers}
            wanted = [Path(run).absolute() for run in runs] or self.folders
            self._followers = [known.get(folder) or RunFollower(folder) for folder in dict.fromkeys(wanted)]
            self._log_mark = None
            self.refresh()

    def _do_hello(self, content: dict[str, Any]) -> None:
        self.refresh()

    def _do_compare(self, content: dict[str, Any]) -> None:
        parent, first = self._followers[0].folder.parent, self._followers[0].folder
        names = [str(name) for name in content.get("names", []) if str(name) in self.others]
        self.show(first, *(parent / name for name in names))

    def _do_stop(self, content: dict[str, Any]) -> None:
        self.stop()

    def _do_resume(self, content: dict[str, Any]) -> None:
        self.resume()

    def _do_log(self, content: dict[str, Any]) -> None:
        with self._lock:
            self._log_name, self._log_mark = str(content.get("name", "")), None
            self._send_log()

    def _do_csv(self, content: dict[str, Any]) -> None:
        self.send({"kind": "file", "name": f"{self._followers[0].name}.csv", "text": self.csv()})

    def stop(self) -> None:
        """Ask the first run to finish its step, save and end.

        Raises:
            InputError: there is no run yet.
        """
        folder = self._followers[0].folder
        if not state_file_there(folder):
            raise InputError(f"{folder}: no run here to stop")
        if (folder / "status.json").exists():
            request_stop(folder)
        else:  # its ranks are still starting: the launcher passes the wish on
            (folder / "stop").write_text("asked from a notebook\n", encoding="utf-8")

    def resume(self) -> None:
        """Go on with the first run from its newest checkpoint, in a process of its own.

        Raises:
            InputError: it has no settings, or is running.
        """
        resume_run(self._followers[0].folder)

    def csv(self) -> str:
        """Every step of the runs shown as CSV; evaluations in the columns at the end."""
        with self._lock:
            texts = [run.csv() for run in self._followers]
        if len({text.partition("\n")[0] for text in texts}) == 1:
            return texts[0] + "".join(text.partition("\n")[2] for text in texts[1:])
        return _joined(texts)

    def close(self) -> None:
        """Stop following and take the widget off the page."""
        if hasattr(self, "_closed"):
            self._closed.set()
        super().close()

    # ---------------------------------------------------------------- without a page

    def still_text(self) -> str:
        return monitor_text(self.heads, functools.partial(self.word, "monitor"))

    def still_html(self) -> str:
        return monitor_html(self._followers, self.heads, functools.partial(self.word, "monitor"))


def _packed(rows: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Columns as little-endian bytes; the page knows the kinds: float64 for step, time and tokens, else float32."""
    return {
        name: np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes()
        for name, column in rows.items()
    }


def _marks(run: RunFollower) -> list[dict[str, Any]]:
    """The newest marks: what the page draws beside the curves."""
    return [mark for mark in run.marks if mark["kind"] != "checkpoint"][-200:]


def _joined(texts: list[str]) -> str:
    """CSV texts with different columns as one: a column of any is a column of all."""
    import csv
    import io

    tables = [list(csv.DictReader(io.StringIO(text))) for text in texts]
    names = list(dict.fromkeys(name for text in texts for name in text.partition("\n")[0].split(",")))
    output = io.StringIO()
    writer = csv.DictWriter(output, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for table in tables for row in table)
    return output.getvalue()


def monitor_all(folder: Path | str = "runs") -> RunMonitor:
    """A monitor of every run below ``folder``, the one heard of last first.

    Raises:
        InputError: there are none.
    """
    found = list_runs(folder)
    if not found:
        raise InputError(f"{folder}: no runs here yet")
    return RunMonitor(*(run.folder for run in found))
