"""Evaluation tasks, one file each. Nothing of their data is part of this project: they read the user's files.

Every class in a file of this folder that says its own ``name`` is a task: a new one needs its file and no list.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pangu_lab.errors import InputError, nearest
from pangu_lab.evaluate.tasks.base import Outcome, Question, Task

__all__ = ["TASKS", "Outcome", "Question", "Task", "make_task"]


def _tasks_of(module: Any) -> list[type[Task]]:
    """The tasks that are defined in a module; a class that others are derived from has no name of its own."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Task)
        and kind.__module__ == module.__name__
        and "name" in vars(kind)
    ]


TASKS: dict[str, type[Task]] = {
    task.name: task
    for found in pkgutil.iter_modules(__path__)
    for task in _tasks_of(importlib.import_module(f"{__name__}.{found.name}"))
}


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
