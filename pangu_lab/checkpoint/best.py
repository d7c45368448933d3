"""The best checkpoint of a run: ``best.json`` names the step with the lowest held-out loss.

A run keeps that checkpoint beside its newest ones, and ``runs/NAME@best`` means it wherever a checkpoint is named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pangu_lab.checkpoint.folder import list_checkpoints, step_folder
from pangu_lab.errors import InputError
from pangu_lab.files import write_json_atomic
from pangu_lab.reading import read_json
from pangu_lab.schema import Count, Schema
from pangu_lab.shipped import shipped_folder

FILE, MARK = "best.json", "@best"


class _Best(Schema):
    step: Count
    loss: Annotated[float, Field(allow_inf_nan=False)]
    records: Count = 0


@dataclass(frozen=True)
class Best:
    """The step with the lowest held-out loss, measured on ``records`` records."""

    step: int
    loss: float
    records: int = 0

    def write(self, run: Path | str) -> None:
        write_json_atomic(Path(run) / FILE, asdict(self))


def read_best(run: Path | str) -> Best | None:
    """What ``best.json`` of a run says; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(run) / FILE
    if not path.exists():
        return None
    values = read_json(
        path,
        "the name of the run's best checkpoint",
        _Best,
        "remove it: the next evaluation that is the best so far writes it again",
    )
    return Best(values["step"], values["loss"], values.get("records", 0))


def named(place: Path | str) -> Path:
    """The folder that ``place`` means: itself, for ``runs/NAME@best`` that run's best checkpoint, for the name of a model
    that comes with the lab the folder of that.

    Raises:
        InputError: the run has no best checkpoint.
    """
    if (shipped := shipped_folder(place)) is not None:
        return shipped
    folder = Path(place)
    if not folder.name.endswith(MARK) or folder.exists():
        return folder
    run = folder.with_name(folder.name.removesuffix(MARK)) if folder.name != MARK else folder.parent
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; {MARK} goes with a run, such as runs/NAME{MARK}")
    best = read_best(run)
    if best is None:
        hint = "" if list_checkpoints(run / "checkpoints") else ", nor any checkpoint"
        raise InputError(
            f"{run} has no best checkpoint yet{hint}: a run keeps one when it evaluates on held-out data "
            f"(data.eval_path); leave out {MARK} for its newest"
        )
    return step_folder(run / "checkpoints", best.step)
