"""Shared by all tasks: questions read from published files, and templates that can be viewed and changed.

A template is one string in which ``{name}`` stands for a field of the question, and ``{|}`` for the place where
scoring begins: the text before it is given, the text after it is scored. Without ``{|}`` the whole text is
scored, which gives the perplexity that the PanGu-α paper compares for most tasks.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError, nearest
from pangu_lab.evaluate.scoring import Score, Scorer
from pangu_lab.evaluate.statistics import wilson_interval
from pangu_lab.progress import Progress, silent

_FIELD = re.compile(r"\{(\w+|\|)\}")


@dataclass(frozen=True)
class Question:
    """One thing to answer.

    Attributes:
        id: unique in its file set.
        fields: what the template may name, the same for all options.
        options: what to choose from; each replaces ``{option}``. One entry, the answer itself, in cloze tasks.
        answer: index of the right option.
        labels: for tasks that judge each option for itself (CLUEWSC): whether it is right; empty otherwise.
        answers: accepted answers, for tasks in which the model writes.
        passage: what character overlap is measured against, where that makes sense.
    """

    id: str
    fields: Mapping[str, str]
    options: tuple[str, ...] = ()
    answer: int = 0
    labels: tuple[bool, ...] = ()
    answers: tuple[str, ...] = ()
    passage: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a question came out: ``right`` of ``n`` judgements, and what is written into the results file."""

    id: str
    right: float
    n: int
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """The number a task reports, with its 95 % interval, and further numbers by name."""

    value: float
    interval: tuple[float, float]
    more: Mapping[str, float] = field(default_factory=dict)


class Task(ABC):
    """One evaluation data set.

    Attributes:
        name, title: how it is called on the command line, and in the literature.
        metric: "accuracy", "exact_match" or "perplexity".
        template: the default; its fields are named in ``fields``.
        file_format: one line on the published format, for help and errors.
        default_split: the part that is read when none is named.
        suffixes: of its files; empty: any.
        default_negatives: wrong labels offered when nothing is said; None where the options are given.
    """

    name: str
    title: str
    metric = "accuracy"
    template: str
    fields: tuple[str, ...]
    file_format: str
    default_split = "dev"
    suffixes: tuple[str, ...] = (".json", ".jsonl")
    default_negatives: int | None = None

    def __init__(self, template: str | None = None, seed: int = 1, negatives: int | None = None) -> None:
        """``negatives``: options sampled beside the right one, where there are many labels (0: all of them)."""
        if negatives is not None and negatives < 0:
            raise InputError(f"negatives={negatives}: give 0 (all labels) or more")
        if negatives is not None and self.default_negatives is None:
            raise InputError(f"negatives={negatives}: {self.name} has no labels to sample from")
        self.template = template if template is not None else type(self).template
        self.seed = seed
        self.negatives = self.default_negatives if negatives is None else negatives
        self._check_template()

    def _check_template(self) -> None:
        for name in _FIELD.findall(self.template):
            if name not in (*self.fields, "|"):
                raise InputError(
                    f"template of {self.name}: unknown field {{{name}}}{nearest(name, self.fields)}; "
                    f"there are {', '.join('{' + field + '}' for field in self.fields)} and {{|}}"
                )
        if self.template.count("{|}") > 1:
            raise InputError(f"template of {self.name}: {{|}} may stand in it once")

    # ------------------------------------------------------------------------------------------------ reading

    @abstractmethod
    def read_file(self, path: Path) -> list[Question]:
        """The questions of one file, in its order."""

    def read(self, files: Sequence[Path]) -> list[Question]:
        """All questions of the files, with ids that are unique among them.

        Raises:
            InputError: a file is unreadable, not of this task's format, or holds no answers.
        """
        found: list[Question] = []
        for path in files:
            questions = self.read_file(path)
            if not questions:
                raise InputError(f"{path}: no questions in it; {self.name} reads {self.file_format}")
            if len(files) > 1:
                questions = [dataclasses.replace(item, id=f"{path.stem}/{item.id}") for item in questions]
            found += questions
        return _with_unique_ids(found)

    def find(self, data: Path, split: str | None = None, half: str | None = None) -> list[Path]:
        """The files of a part: ``data`` itself when it is a file, else what a folder holds of that part.

        Raises:
            InputError: nothing of that part is there; the message says what is.
        """
        if half is not None:
            raise InputError(f"--half belongs to c3; {self.name} has no halves")
        return self._find(data, split or self.default_split)

    def _find(self, data: Path, split: str, prefix: str = "") -> list[Path]:
        if data.is_file():
            return [data]
        if not data.is_dir():
            raise InputError(f"{data}: no such file or folder of {self.title} data")
        folder = data / self.name if (data / self.name).is_dir() else data
        there = sorted(
            path
            for path in folder.iterdir()
            if path.is_file()
            and path.name.startswith(prefix)
            and not path.name.startswith((".", "labels"))
            and (not self.suffixes or path.suffix in self.suffixes)
        )
        found = [path for path in there if split in re.split(r"[-_.]", path.name)]
        if found:
            return found
        names = ", ".join(path.name for path in there[:6]) or "nothing of the kind"
        raise InputError(
            f"{folder}: no '{split}' part of {self.title} there (there is {names}): "
            "give --split, or name the file itself"
        )

    # ---------------------------------------------------------------------------------------------- templates

    def text(self, question: Question, option: str) -> tuple[str, str]:
        """(context, continuation) of one option."""
        values = {**question.fields, "option": option}
        before, mark, after = self.template.partition("{|}")
        parts = [_FIELD.sub(lambda match: values[match[1]], part) for part in (before, after)]
        return (parts[0], parts[1]) if mark else ("", parts[0])

    # ------------------------------------------------------------------------------------------------ judging

    def measure(self, outcomes: Sequence[Outcome]) -> Measure:
        """The task's number over all outcomes."""
        right, n = sum(outcome.right for outcome in outcomes), sum(outcome.n for outcome in outcomes)
        return Measure(right / max(n, 1), wilson_interval(right, n))

    def count(self, questions: Sequence[Question]) -> int:
        """How many judgements the questions hold: the n of the metric."""
        return len(questions)

    def baselines(self, questions: Sequence[Question]) -> dict[str, float]:
        """Names and values of answers given without a model."""
        return {}


def _with_unique_ids(questions: Sequence[Question]) -> list[Question]:
    """The questions, with ``#2`` and so on behind an id that stood there before."""
    seen: Counter[str] = Counter()
    unique = []
    for question in questions:
        seen[question.id] += 1
        again = seen[question.id]
        unique.append(question if again == 1 else dataclasses.replace(question, id=f"{question.id}#{again}"))
    return unique


class ScoredTask(Task):
    """A task that is answered by scoring text. ``cut``: what is shortened when a text does not fit the model."""

    cut = "context"

    def pairs(self, question: Question) -> list[tuple[str, str]]:
        """What to score: an entry for each option."""
        return [self.text(question, option) for option in question.options]

    def score(self, scorer: Scorer, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> list[Score]:
        """Scores of the pairs, in their order."""
        return scorer.loglikelihood(pairs, cut=self.cut, progress=progress)

    @abstractmethod
    def judge(self, question: Question, scores: Sequence[Score]) -> Outcome:
        """From the scores of the pairs to an outcome."""


class WrittenTask(Task):
    """A task in which the model writes its answers: up to ``max_new_tokens``, or to one of ``stop``."""

    max_new_tokens = 32
    stop: tuple[str, ...] = ("\n",)

    def prompt(self, question: Question) -> str:
        """What the model continues."""
        return "".join(self.text(question, ""))

    @abstractmethod
    def judge(self, question: Question, text: str) -> Outcome:
        """From what the model wrote to an outcome."""


class ChoiceTask(ScoredTask):
    """The option whose text the model finds most probable a token is chosen; the first one wins a tie."""

    fixed_labels = True  # the options are the same for all questions, so that a most frequent label exists

    def judge(self, question: Question, scores: Sequence[Score]) -> Outcome:
        means = [score.mean for score in scores]
        chosen = means.index(max(means))
        details = {
            "options": list(question.options),
            "scores": [round(value, 6) for value in means],
            "prediction": question.options[chosen],
            "answer": question.options[question.answer],
            "right": chosen == question.answer,
            **_cut(scores),
        }
        return Outcome(question.id, float(chosen == question.answer), 1, details)

    def baselines(self, questions: Sequence[Question]) -> dict[str, float]:
        found = {"random": sum(1 / len(question.options) for question in questions) / len(questions)}
        if self.fixed_labels:
            answers = [question.options[question.answer] for question in questions]
            found["most frequent"] = max(answers.count(answer) for answer in set(answers)) / len(answers)
        return found


def _cut(scores: Iterable[Score]) -> dict[str, int]:
    """How many tokens did not fit, when any did not."""
    cut = max((score.cut for score in scores), default=0)
    return {"cut": cut} if cut else {}


def sampled_options(answer: str, labels: Sequence[str], count: int | None, key: str, seed: int) -> tuple[str, ...]:
    """The right label and ``count`` others, in the order of ``labels``; for a question the same everywhere."""
    others = [label for label in labels if label != answer]
    if count and count < len(others):
        others = random.Random(f"{seed}/{key}").sample(others, count)
    return tuple(label for label in labels if label == answer or label in others)


# ---------------------------------------------------------------------------------------------- reading helpers


Kind = type | tuple[type, ...]
LABEL = (str, int)
TEXTS = (str, list)  # a text, or a list of texts
_KINDS = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_rows(path: Path, **needed: Kind) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file (one object a line), or of a JSON list of objects.

    Args:
        needed: the fields that every row must have, and of which kinds their values must be.

    Raises:
        InputError: not readable, or a row lacks a field or has something else there; names line and field.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(parse_json(path, text), 1))
    else:
        rows = [
            (number, parse_json(path, line, number)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
    for number, row in rows:
        check_fields(f"{path}: row {number}", row, **needed)
    return [row for _, row in rows]


def check_fields(where: str, row: Any, **needed: Kind) -> None:
    """Refuse an object of a data set that lacks a field, or has a value of another kind there.

    Raises:
        InputError: begins with ``where`` and names the field.
    """
    for name, kinds in needed.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(row, dict) or name not in row:
            hint = " (a test part without answers cannot be evaluated)" if name in ("label", "answer") else ""
            raise InputError(f"{where} has no '{name}'{hint}")
        value = row[name]
        fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if fits and kinds is TEXTS and isinstance(value, list):
            wrong = [item for item in value if not isinstance(item, str)]
            fits, value = not wrong, wrong[0] if wrong else value
        if not fits:
            wanted = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
            raise InputError(
                f"{where}: '{name}' must be {wanted}, and {_KINDS.get(type(value), 'something else')} stands there"
            )


def parse_json(path: Path, text: str, line: int = 1) -> Any:
    """JSON that begins in this line of a file.

    Raises:
        InputError: it is not JSON; names the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {line + error.lineno - 1} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path}: line {line} is not JSON that can be read") from None


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it is not there or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None


def known_label(path: Path, labels: Mapping[str, str], value: Any, row_id: str) -> str:
    """The word for a label of the file.

    Raises:
        InputError: the task has no such label.
    """
    if str(value) not in labels:
        raise InputError(f"{path}: question {row_id} has the label {value!r}; known are {', '.join(labels)}")
    return labels[str(value)]
