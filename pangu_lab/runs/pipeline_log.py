"""When each pipeline stage worked on which micro-batch: logged by the ranks, read and plotted from the run folder.

Each rank logs the start and end of every pass in a few steps to ``logs/pipeline_rank_N.jsonl``, one pass per line. The
first step of a process is left out because it compiles. Times are seconds since 1970 by the clock of the rank's
machine, so stages on several machines line up only as well as their clocks agree.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pangu_lab.errors import InputError
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.plotting import new_figure, save_png
from pangu_lab.reading import content_of, parse_json
from pangu_lab.schema import Count, Schema, Seconds

STEPS = 3  # logged by each process


@dataclass(frozen=True)
class Pass:
    """One forward or backward pass of one micro-batch through one stage; ``step`` counts from the process's start."""

    rank: int
    stage: int
    step: int
    kind: str  # "forward" or "backward"
    micro_batch: int
    start: float
    end: float


class _Pass(Schema):
    """A line of the log: a ``Pass`` without the rank, which is in the file's name."""

    model_config = ConfigDict(extra="forbid")

    stage: Annotated[int, Field(ge=0, le=1 << 16)]
    step: Count
    kind: Literal["forward", "backward"]
    micro_batch: Count
    start: Seconds
    end: Seconds


def log_file(run: Path | str, rank: int) -> Path:
    return Path(run) / "logs" / f"pipeline_rank_{rank}.jsonl"


class PipelineLog:
    """Called by the schedule as passes begin and end; logs the ``STEPS`` steps after the first.

    A step is written when the next one begins.
    """

    def __init__(self, run: Path | str, mesh: Mesh):
        self.path, self.mesh = log_file(run, mesh.rank), mesh
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # of an earlier process of this run
        self.step = 0
        self._open: tuple[str, int, float] | None = None
        self._lines: list[str] = []

    def __call__(self, kind: str, number: int) -> None:
        """``kind``: "step" when a batch begins, "forward" or "backward" when a pass begins, "wait" when it ends."""
        if kind == "step":
            self._write()
            self.step += 1
        elif 1 < self.step <= STEPS + 1:
            now = time.time()
            if kind == "wait" and self._open is not None:
                name, micro_batch, start = self._open
                self._lines.append(
                    json.dumps(
                        {
                            "step": self.step,
                            "stage": self.mesh.index("pipeline"),
                            "kind": name,
                            "micro_batch": micro_batch,
                            "start": start,
                            "end": now,
                        }
                    )
                )
            self._open = None if kind == "wait" else (kind, number, now)

    def _write(self) -> None:
        if self._lines:
            with open(self.path, "a", encoding="utf-8") as log:
                log.write("\n".join(self._lines) + "\n")
            self._lines.clear()


def read_passes(run: Path | str) -> list[Pass]:
    """All passes that the ranks of a run have logged, by start time; a half-written last line is left out."""
    found = []
    for path in sorted(Path(run, "logs").glob("pipeline_rank_*.jsonl")):
        number = path.stem.rpartition("_")[2]
        if number.isdecimal():
            found += _passes(path, int(number))
    return sorted(found, key=lambda item: item.start)


def _passes(path: Path, rank: int) -> list[Pass]:
    found = []
    for line in content_of(path, "the log of a pipeline stage").splitlines():
        with contextlib.suppress(InputError):
            found.append(Pass(rank=rank, **parse_json(line, str(path), _Pass)))
    return found


def idle_share(passes: list[Pass], step: int) -> float:
    """The pipeline bubble: the share of a step's time in which the stages were idle.

    With p stages and m micro-batches of equal length it would be (p − 1) / (m + p − 1).
    """
    chosen = [item for item in passes if item.step == step]
    if not chosen:
        return 0.0
    begin, end = min(item.start for item in chosen), max(item.end for item in chosen)
    busy = sum(item.end - item.start for item in chosen)
    return 1.0 - busy / (len({item.rank for item in chosen}) * (end - begin))


def plot_schedule(run: Path | str, png: Path | str, step: int | None = None) -> Path:
    """Plot one step as it ran, one row per stage: forward and backward passes with the micro-batch's number.

    Args:
        run: a run folder.
        png: the image file to write.
        step: which of the logged steps; the last complete one when not given.

    Raises:
        InputError: the run has no pipeline, or has not reached its second step yet.
    """
    passes = [item for item in read_passes(run) if step is None or item.step == step]
    if not passes:
        raise InputError(
            f"{run}: no pipeline schedule to draw: it is logged from the second step on, in runs with "
            "parallel.pipeline above 1"
        )
    step = passes[-1].step
    chosen = [item for item in passes if item.step == step]
    stages = 1 + max(item.stage for item in chosen)
    first = {stage: min(item.rank for item in chosen if item.stage == stage) for stage in {i.stage for i in chosen}}
    figure = new_figure(11, 1.2 + 0.8 * stages)
    _draw_passes(figure.subplots(), [item for item in chosen if item.rank == first[item.stage]], stages)
    idle = idle_share([item for item in chosen if item.rank == first[item.stage]], step)
    figure.suptitle(f"{Path(run).name}, step {step} of this process: stages wait {idle:.0%} of the time", fontsize=11)
    return save_png(figure, png, 120)


COLORS = {"forward": "#4c78a8", "backward": "#f58518"}


def _draw_passes(axes, passes: list[Pass], stages: int) -> None:
    begin = min(item.start for item in passes)
    for item in passes:
        width = 1000 * (item.end - item.start)
        axes.barh(
            item.stage,
            width,
            left=1000 * (item.start - begin),
            height=0.7,
            color=COLORS[item.kind],
            edgecolor="white",
            linewidth=1,
        )
        axes.text(
            1000 * (item.start - begin) + width / 2,
            item.stage,
            str(item.micro_batch),
            color="white",
            ha="center",
            va="center",
            fontsize=9,
            clip_on=True,
        )
    axes.set(yticks=range(stages), yticklabels=[f"stage {n}" for n in range(stages)], xlabel="milliseconds")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    labels = {"forward": "forward", "backward": "backward (on the last stage with its forward pass, in one graph)"}
    handles = [axes.barh(0, 0, color=COLORS[kind], label=label) for kind, label in labels.items()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9, frameon=False)
