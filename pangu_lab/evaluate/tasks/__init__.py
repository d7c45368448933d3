"""Evaluation tasks, one file each. This project contains none of their data: they read the user's files."""

from __future__ import annotations

from typing import Any

from pangu_lab.errors import InputError, nearest
from pangu_lab.evaluate.tasks.afqmc import AFQMC
from pangu_lab.evaluate.tasks.base import Outcome, Question, Task
from pangu_lab.evaluate.tasks.c3 import C3
from pangu_lab.evaluate.tasks.cft import CFT, PD
from pangu_lab.evaluate.tasks.chid import CHID
from pangu_lab.evaluate.tasks.cluewsc import CLUEWSC
from pangu_lab.evaluate.tasks.cmnli import CMNLI
from pangu_lab.evaluate.tasks.cmrc2018 import CMRC2018
from pangu_lab.evaluate.tasks.csl import CSL
from pangu_lab.evaluate.tasks.iflytek import IFLYTEK
from pangu_lab.evaluate.tasks.ocnli import OCNLI
from pangu_lab.evaluate.tasks.tnews import TNEWS
from pangu_lab.evaluate.tasks.wplc import WPLC

__all__ = ["Outcome", "Question", "TASKS", "Task", "make_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (
    C3, CHID, CLUEWSC, OCNLI, CMNLI, TNEWS, AFQMC, IFLYTEK, CSL, CMRC2018, PD, CFT, WPLC)}


def make_task(name: str, **options: Any) -> Task:
    """The task called ``name``; options that are None are left at their defaults.

    Raises:
        InputError: there is no such task, or it does not take an option.
    """
    if name not in TASKS:
        raise InputError(f"unknown task '{name}'{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    given = {key: value for key, value in options.items() if value is not None}
    if "scoring" in given and name != "c3":
        raise InputError(f"scoring={given['scoring']!r}: only c3 has more than one way of scoring")
    return TASKS[name](**given)
