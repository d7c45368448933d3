"""The results file of an evaluation, and how an interrupted evaluation is resumed.

While an evaluation runs, outcomes are appended to ``FILE.partial``, one JSON object a line, after a first line that
says what is being evaluated. At the end everything is written to ``FILE`` in one step and the partial file is removed.
A later call with the same settings resumes from the outcomes that are there; with other settings it is refused. A
half-written last line is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.tasks.base import Outcome
from pangu_lab.files import write_json_atomic

FORMAT = 1


class Record:
    """Collects outcomes as they come, and keeps them on disk when ``path`` is given.

    Args:
        path: the results file; its folder is made.
        settings: what is evaluated, as plain values; an interrupted evaluation is resumed only with the same settings.

    Raises:
        InputError: ``path`` exists, or its partial file belongs to another evaluation.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = Path(path) if path is not None else None
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))  # as they are read back from the file
        self.outcomes: dict[str, Outcome] = {}
        self.resumed = 0
        if self.path is None:
            return
        if self.path.exists():
            raise InputError(f"{self.path} exists already: choose another file or delete it first")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.exists():
            self._resume()
        else:
            self._append(json.dumps(self.settings, ensure_ascii=False))

    @property
    def partial(self) -> Path:
        """Where outcomes are kept until the end."""
        assert self.path is not None
        return self.path.with_name(self.path.name + ".partial")

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Keep these outcomes, on disk before this returns."""
        self.outcomes.update((outcome.id, outcome) for outcome in outcomes)
        if self.path is not None and outcomes:
            lines = [json.dumps(dataclasses.asdict(outcome), ensure_ascii=False) for outcome in outcomes]
            self._append("\n".join(lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the results file in one step and remove the partial one."""
        if self.path is None:
            return
        questions = [{"id": outcome.id, **outcome.details} for outcome in self.outcomes.values()]
        write_json_atomic(self.path, {"settings": self.settings, "result": dict(result), "questions": questions})
        self.partial.unlink()

    def _append(self, text: str) -> None:
        with open(self.partial, "a", encoding="utf-8") as handle:
            handle.write(text + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _resume(self) -> None:
        content = self.partial.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", "replace").split("\n")
        settings = _parse(lines[0]) if lines else None
        if settings is None:  # interrupted before anything was kept
            self.partial.unlink()
            self._append(json.dumps(self.settings, ensure_ascii=False))
            return
        if settings != self.settings:
            key = _difference(settings, self.settings)
            raise InputError(
                f"{self.partial} belongs to an evaluation with another {key}: "
                "choose another file, or delete that one to start over"
            )
        for line in lines[1:]:
            values = _parse(line)
            if values is not None:
                self.outcomes[values["id"]] = Outcome(**values)
        if len(whole) < len(content):
            with open(self.partial, "r+b") as handle:
                handle.truncate(len(whole))
        self.resumed = len(self.outcomes)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """The first setting in which the two differ."""
    return next(key for key in [*right, *left] if left.get(key) != right.get(key))
