"""CLUEWSC: which noun a pronoun stands for, after Winograd. Published by CLUE, arXiv 2004.05986.

The data asks of one noun at a time whether the pronoun stands for it. Rows about the same pronoun are answered
together: each noun is put in the pronoun's place, the one after which the rest of the text is most probable is
taken as meant, and every row is judged for itself, as the published accuracy does. A pronoun with one row only is
compared with the text as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.evaluate.scoring import Score
from pangu_lab.evaluate.tasks.base import LABEL, ChoiceTask, Outcome, Question, check_fields, known_label, read_rows


class CLUEWSC(ChoiceTask):
    """Scored is what follows the pronoun (all of it, when nothing follows)."""

    name, title = "cluewsc", "CLUEWSC2020"
    template = "{before}{option}{|}{after}"
    fields = ("before", "option", "after")
    file_format = "one JSON object a line with text, target (span1_text, span2_text, span2_index) and label"

    def read_file(self, path: Path) -> list[Question]:
        groups: dict[tuple[str, int], list[dict]] = {}
        for number, row in enumerate(read_rows(path, text=str, target=dict, label=(*LABEL, bool))):
            target, text = row["target"], row["text"]
            check_fields(
                f"{path}: row {number + 1}: 'target'", target, span1_text=str, span2_text=str, span2_index=LABEL
            )
            place = int(target["span2_index"]) if str(target["span2_index"]).isdecimal() else -1
            if place < 0 or not text.startswith(target["span2_text"], place) or not target["span1_text"]:
                raise InputError(f"{path}: row {number + 1}: no pronoun '{target}' in the text")
            groups.setdefault((text, place), []).append({**row, "idx": row.get("idx", number)})
        return [self._question(path, text, place, rows) for (text, place), rows in groups.items()]

    def _question(self, path: Path, text: str, place: int, rows: list[dict]) -> Question:
        pronoun = rows[0]["target"]["span2_text"]
        known = {"true": "yes", "false": "no"}
        labels = tuple(known_label(path, known, str(row["label"]).lower(), str(row["idx"])) == "yes" for row in rows)
        nouns = tuple(row["target"]["span1_text"] for row in rows)
        options = nouns if len(nouns) > 1 else (*nouns, pronoun)
        fields = {"before": text[:place], "after": text[place + len(pronoun) :]}
        return Question("+".join(str(row["idx"]) for row in rows), fields, options, labels=labels)

    def text(self, question: Question, option: str) -> tuple[str, str]:
        context, continuation = super().text(question, option)
        return (context, continuation) if continuation else ("", context)

    def judge(self, question: Question, scores: Sequence[Score]) -> Outcome:
        means = [score.mean for score in scores]
        chosen = means.index(max(means))
        right = sum(label == (place == chosen) for place, label in enumerate(question.labels))
        details = {
            "options": list(question.options),
            "scores": [round(value, 6) for value in means],
            "prediction": question.options[chosen],
            "labels": list(question.labels),
            "right": right,
        }
        return Outcome(question.id, float(right), len(question.labels), details)

    def count(self, questions: Sequence[Question]) -> int:
        return sum(len(question.labels) for question in questions)

    def baselines(self, questions: Sequence[Question]) -> dict[str, float]:
        labels = [label for question in questions for label in question.labels]
        true = sum(labels) / len(labels)
        return {"random": 0.5, "most frequent": max(true, 1 - true)}
