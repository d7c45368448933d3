"""ChID: which idiom was taken out of a passage. Zheng et al. 2019, arXiv 1906.01265.

Three published forms are read: FewCLUE's (content with #idiom#, candidates, answer), CLUE's (content a list of
passages with numbered #idiom000000# marks, the answers in PART_answer.json beside it), and the original
(groundTruth and candidates for each blank). Every blank is one question; other blanks of its passage show as ……
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.tasks.base import TEXTS, ChoiceTask, Question, check_fields, parse_json, read_rows, read_text

_BLANK = re.compile(r"#idiom\d*#")


class CHID(ChoiceTask):
    """The whole passage is scored with each idiom in its place."""

    name, title = "chid", "ChID"
    template = "{before}{option}{after}"
    fields = ("before", "option", "after")
    file_format = "one JSON object a line with content (#idiom# marks), candidates, and answer (or groundTruth)"
    fixed_labels = False

    def find(self, data, split=None, half=None):
        return [path for path in super().find(data, split, half) if not path.stem.endswith("_answer")]

    def read_file(self, path: Path) -> list[Question]:
        answers = path.with_name(f"{path.stem}_answer.json")
        known = parse_json(answers, read_text(answers)) if answers.is_file() else {}
        questions = []
        for number, row in enumerate(read_rows(path, content=TEXTS, candidates=list)):
            if "groundTruth" in row:
                check_fields(f"{path}: row {number + 1}", row, groundTruth=TEXTS)
            else:
                check_fields(f"{path}: row {number + 1}", row, candidates=TEXTS)
            passages = row["content"] if isinstance(row["content"], list) else [row["content"]]
            for passage in passages:
                for blank, match in enumerate(_BLANK.finditer(passage)):
                    options, answer = _choice(path, row, known, match[0], number, blank)
                    fields = {
                        "before": _BLANK.sub("……", passage[: match.start()]),
                        "after": _BLANK.sub("……", passage[match.end() :]),
                    }
                    question_id = f"{row.get('id', number)}-{len(questions)}"
                    questions.append(Question(question_id, fields, options, answer))
        return questions


def _choice(
    path: Path, row: dict[str, Any], known: dict[str, int], mark: str, number: int, blank: int
) -> tuple[tuple[str, ...], int]:
    """Candidates and the right one's index, for one blank of any of the three forms."""
    candidates = row["candidates"]
    try:
        if "groundTruth" in row:
            options = tuple(candidates[blank])
            return options, options.index(row["groundTruth"][blank])
        answer = known[mark] if mark in known else row["answer"]
        return tuple(candidates), range(len(candidates))[int(answer)]
    except KeyError:
        raise InputError(
            f"{path}: row {number + 1} has no answer, and there is none for {mark} in {path.stem}_answer.json"
        ) from None
    except (IndexError, ValueError, TypeError):
        raise InputError(f"{path}: row {number + 1}: the answer is none of the candidates") from None
