"""IFLYTEK: what an app is for, one of 119, from its long description. Published by CLUE, arXiv 2004.05986.

The paper's numbers offer the right label and three sampled ones; ``negatives=0`` offers all. The names of the
labels are read from ``labels.json`` beside the data, which CLUE ships, or else collected from the data itself.
"""

from __future__ import annotations

from pathlib import Path

from pangu_lab.evaluate.tasks.base import LABEL, ChoiceTask, Question, read_rows, sampled_options


class IFLYTEK(ChoiceTask):
    """Descriptions are cut at their end where they do not fit the model."""

    name, title = "iflytek", "IFLYTEK"
    template = "这是关于{option}的应用程序：{sentence}"
    fields = ("sentence", "option")
    file_format = "one JSON object a line with sentence and label_des"
    default_negatives = 3
    cut = "continuation"

    @property
    def fixed_labels(self) -> bool:  # type: ignore[override]
        return not self.negatives

    def read_file(self, path: Path) -> list[Question]:
        rows = read_rows(path, sentence=str, label=LABEL, label_des=str)
        beside = path.with_name("labels.json")
        named = rows + (read_rows(beside, label_des=str) if beside.is_file() else [])
        labels = tuple(sorted({str(row["label_des"]) for row in named}))
        questions = []
        for number, row in enumerate(rows):
            word = str(row["label_des"])
            options = sampled_options(word, labels, self.negatives, row["sentence"], self.seed)
            questions.append(Question(str(number), {"sentence": row["sentence"]}, options, options.index(word)))
        return questions
