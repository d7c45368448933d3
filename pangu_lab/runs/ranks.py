"""The ranks of a run as their heartbeats tell them: which host each is on, what it does, and when it was last heard of.

Ranks of every host write into the one run folder. Whether a silent rank has ended is known only where its process can be
looked at: on the host it runs on. A rank of another host that is silent is called so, never dead.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.identity import lives, parse_identity
from pangu_lab.reading import read_json
from pangu_lab.runs.heartbeat import FOLDER, Beat, read_beat
from pangu_lab.runs.status import SILENT_SECONDS
from pangu_lab.schema import Count, Schema

ENDED = ("done", "failed", "refused", "gone")
MOST = 1 << 16  # ranks of a run


class _Launch(Schema):
    """``launch.json``: how many ranks the newest launch has; files of others are left from an earlier one."""

    world: Count = 0


@dataclass(frozen=True)
class RankSeen:
    """A rank, as it was last heard of.

    Attributes:
        state: as it wrote it ("joining", "training", "done", …); "gone" when its process is known to have ended without a
            word, "silent" when nothing was heard of it for long and its process cannot be looked at from here.
        age: seconds since its last heartbeat.
        note: why it ended.
    """

    rank: int
    host: str
    pid: int
    state: str
    step: int
    age: float
    note: str = ""


class RankReader:
    """Reads the heartbeats of a run again and again.

    Ages are measured by this process's clock from the moment at which a heartbeat was seen to change; only at the first
    look, with nothing to compare, by the clock of the host that wrote it.
    """

    def __init__(self, run_folder: Path | str) -> None:
        self.folder = Path(run_folder)
        self._heard: dict[int, tuple[float, float]] = {}  # rank → its beat's time, and by our clock when that was heard

    def read(self) -> list[RankSeen]:
        """All ranks in their order; none before the first heartbeat, or of a run without a launcher."""
        found = []
        for rank in self._ranks():
            if (beat := read_beat(self.folder, rank)) is not None:
                age = self._age(beat)
                found.append(RankSeen(rank, beat.host, beat.pid, _state(beat, age), beat.step, age, beat.note))
        return found

    def _ranks(self) -> list[int]:
        world = MOST
        with contextlib.suppress(InputError):
            world = read_json(self.folder / "launch.json", "the launcher's note", _Launch).get("world", MOST)
        numbers = [
            int(match[1])
            for path in (self.folder / FOLDER).glob("rank_*")
            if (match := re.fullmatch(r"rank_([0-9]{1,5})", path.name))
        ]
        return sorted(number for number in numbers if number < world)

    def _age(self, beat: Beat) -> float:
        now = time.monotonic()
        last, heard = self._heard.get(beat.rank, (None, now - max(0.0, time.time() - beat.time)))
        if last != beat.time:
            heard = heard if last is None else now
            self._heard[beat.rank] = beat.time, heard
        return now - heard


def read_ranks(run_folder: Path | str) -> list[RankSeen]:
    """The ranks of a run, looked at once."""
    return RankReader(run_folder).read()


def _state(beat: Beat, age: float) -> str:
    if beat.state in ENDED:
        return beat.state
    process = parse_identity(beat.process)
    alive = None if process is None else lives(process)
    if alive is False:
        return "gone"
    return "silent" if alive is None and age > SILENT_SECONDS else beat.state
