"""CMRC 2018: questions on a passage, answered in the model's own words. Cui et al. 2019, arXiv 1810.07366.

The answer is what the model writes up to the end of the line. Exact match and F1 are those of the data set:
without punctuation, Chinese by characters and everything else by words, F1 from the longest run that answer and
prediction have in common; the best of the accepted answers counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.statistics import mean_interval, wilson_interval
from pangu_lab.evaluate.tasks.base import Measure, Outcome, Question, WrittenTask, check_fields, parse_json, read_text

_UNITS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")


class CMRC2018(WrittenTask):
    """Reported is the share of exact answers; F1 stands beside it."""

    name, title = "cmrc2018", "CMRC 2018"
    metric = "exact_match"
    template = "阅读文章：{context}\n问：{question}\n答："
    fields = ("context", "question")
    file_format = "JSON: data → paragraphs → context and qas (question, id, answers)"

    def read_file(self, path: Path) -> list[Question]:
        try:
            articles: Any = parse_json(path, read_text(path))["data"]
            entries = [
                (paragraph, entry)
                for article in articles
                for paragraph in article["paragraphs"]
                for entry in paragraph["qas"]
            ]
            return [_question(path, paragraph, entry) for paragraph, entry in entries]
        except (KeyError, TypeError):
            raise InputError(f"{path}: not of this format: {self.file_format}") from None

    def judge(self, question: Question, text: str) -> Outcome:
        prediction = text.partition("\n")[0].strip()
        exact = max(units(prediction) == units(answer) for answer in question.answers)
        f1 = max(answer_f1(prediction, answer) for answer in question.answers)
        details = {"prediction": prediction, "answers": list(question.answers), "right": exact, "f1": round(f1, 6)}
        return Outcome(question.id, float(exact), 1, details)

    def measure(self, outcomes: Sequence[Outcome]) -> Measure:
        right, n = sum(outcome.right for outcome in outcomes), len(outcomes)
        f1, low, high = mean_interval([float(outcome.details["f1"]) for outcome in outcomes])
        return Measure(right / max(n, 1), wilson_interval(right, n), {"f1": f1, "f1_low": low, "f1_high": high})


def _question(path: Path, paragraph: dict[str, Any], entry: dict[str, Any]) -> Question:
    where = f"{path}: question {entry['id']}"
    check_fields(where, paragraph, context=str)
    check_fields(where, entry, question=str, answers=list)
    for answer in entry["answers"]:
        check_fields(f"{where}: an answer", answer, text=str)
    answers = tuple(dict.fromkeys(answer["text"] for answer in entry["answers"]))
    fields = {"context": paragraph["context"], "question": entry["question"]}
    if not answers:
        raise KeyError("answers")
    return Question(str(entry["id"]), fields, answers=answers)


def units(text: str) -> list[str]:
    """Chinese characters one by one, other words whole, lower case, no punctuation."""
    return _UNITS.findall(unicodedata.normalize("NFKC", text).lower())


def answer_f1(prediction: str, answer: str) -> float:
    """F1 of the longest common run of units."""
    left, right = units(prediction), units(answer)
    common = longest_common_run(left, right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


def longest_common_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest stretch that occurs in both without a break."""
    best, previous = 0, [0] * (len(right) + 1)
    for item in left:
        current = [0] * (len(right) + 1)
        for place, other in enumerate(right):
            if item == other:
                current[place + 1] = previous[place] + 1
        best, previous = max(best, *current), current
    return best
