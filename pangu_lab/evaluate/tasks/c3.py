"""C3: free-form multiple choice on dialogues (d) and other texts (m). Sun et al. 2020, arXiv 1904.09679.

The paper's template asks how probable the passage is after question and answer, so the same passage is scored
behind each option. ``scoring="corrected"`` takes the mean over exactly the passage's tokens. ``"reference"``
repeats what the reference implementation computes, for comparison: its mask is shifted by one, so that the
passage's first token is never scored and the padding after its end is; question and answer are tokenised apart
from the passage; and the sum is divided by the window's length, whatever the passage's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.scoring import Score, Scorer, TokenScorer
from pangu_lab.evaluate.split import TokenPair
from pangu_lab.evaluate.tasks.base import TEXTS, ChoiceTask, Question, check_fields, parse_json, read_text
from pangu_lab.progress import Progress, silent

SCORINGS = ("corrected", "reference")
HALVES = ("d", "m")


class C3(ChoiceTask):
    """Files ``c3-d-dev.json`` and ``c3-m-dev.json`` (or test, train), together or one by ``half``."""

    name, title = "c3", "C3"
    template = "问：{question}\n答：{option}\n该答案来自对话：{|}{passage}"
    fields = ("question", "option", "passage")
    file_format = "JSON: a list of [lines of the passage, [{question, choice, answer}, …], id]"
    cut = "continuation"  # question and answer stay whole, or the options could not be told apart
    fixed_labels = False

    def __init__(self, template: str | None = None, scoring: str = "corrected", **options: Any) -> None:
        super().__init__(template, **options)
        if scoring not in SCORINGS:
            raise InputError(f"scoring={scoring!r} must be 'corrected' or 'reference'")
        if scoring == "reference" and "{|}" not in self.template:
            raise InputError("the reference's scoring needs a template with {|}, where the passage begins")
        self.scoring = scoring

    def find(self, data: Path, split: str | None = None, half: str | None = None) -> list[Path]:
        if half is not None and half not in HALVES:
            raise InputError(f"half={half!r} must be 'd' (dialogues) or 'm' (other texts)")
        return self._find(data, split or self.default_split, f"c3-{half}-" if half else "c3-")

    def read_file(self, path: Path) -> list[Question]:
        try:
            documents = parse_json(path, read_text(path))
            return [
                question
                for number, document in enumerate(documents)
                for question in self._document(path, number, document)
            ]
        except (TypeError, KeyError, IndexError, AttributeError):
            raise InputError(f"{path}: not C3's format, which is {self.file_format}") from None

    def _document(self, path: Path, number: int, document: Any) -> list[Question]:
        check_fields(f"{path}: document {number}", {"passage": document[0]}, passage=TEXTS)
        passage = "".join(document[0])
        questions = []
        for place, entry in enumerate(document[1]):
            check_fields(f"{path}: document {number}, question {place}", entry, question=str, choice=TEXTS, answer=str)
            choices, answer = tuple(entry["choice"]), entry["answer"]
            if answer not in choices:
                raise InputError(f"{path}: document {number}, question {place}: the answer is none of the choices")
            fields = {"question": entry["question"], "passage": passage}
            questions.append(
                Question(f"{document[2]}-{number}-{place}", fields, choices, choices.index(answer), passage=passage)
            )
        return questions

    def baselines(self, questions: Sequence[Question]) -> dict[str, float]:
        found = super().baselines(questions)
        for name, rate in (("longest", longest), ("overlap", overlap)):
            right = sum(best_option(question, rate) == question.answer for question in questions)
            found[name] = right / len(questions)
        return found

    def score(self, scorer: Scorer, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> list[Score]:
        if self.scoring == "corrected":
            return super().score(scorer, pairs, progress)
        if not isinstance(scorer, TokenScorer) or scorer.tokenizer is None:
            raise InputError("the reference's scoring counts tokens: give the server's tokenizer with --tokenizer")
        scores = scorer.score_tokens([reference_pair(scorer, *pair) for pair in pairs], progress)
        return [dataclasses.replace(score, logprob=score.logprob / scorer.window, tokens=1) for score in scores]


def reference_pair(scorer: TokenScorer, context: str, continuation: str) -> TokenPair:
    """The tokens that the reference's shifted mask selects: the second of the passage up to one padding."""
    whole = scorer.tokenizer.encode(context + continuation)
    ids = whole[: scorer.longest - 1]
    prompt = min(len(scorer.tokenizer.encode(context)), len(ids) - 1)
    return TokenPair((*ids, scorer.tokenizer.pad_id), prompt + 1, len(whole) - len(ids))


def longest(option: str, passage: str) -> float:
    """Length in characters."""
    return float(len(option))


def overlap(option: str, passage: str) -> float:
    """Share of the option's characters that occur in the passage."""
    return sum(character in passage for character in option) / len(option) if option else 0.0


def best_option(question: Question, rate: Callable[[str, str], float]) -> int:
    """Index of the option with the highest rate; the first one wins a tie."""
    rates = [rate(option, question.passage) for option in question.options]
    return rates.index(max(rates))
