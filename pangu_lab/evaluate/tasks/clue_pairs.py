"""OCNLI, CMNLI and AFQMC: how two sentences relate, as words put between or before them.

Published by CLUE (Xu et al. 2020, arXiv 2004.05986) as one JSON object a line. Templates of the PanGu-α paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pangu_lab.evaluate.tasks.base import LABEL, ChoiceTask, Question, known_label, read_rows


class SentencePairTask(ChoiceTask):
    """Two sentences and a label; ``words`` says which word of the template stands for which label of the file."""

    words: Mapping[str, str]
    fields = ("sentence1", "sentence2", "option")
    file_format = "one JSON object a line with sentence1, sentence2 and label"

    def read_file(self, path: Path) -> list[Question]:
        questions = []
        options = tuple(self.words.values())
        for number, row in enumerate(read_rows(path, sentence1=str, sentence2=str, label=LABEL)):
            row_id = str(row.get("id", row.get("idx", number)))
            if row["label"] == "-":  # the annotators did not agree; the published scores leave these out
                continue
            word = known_label(path, self.words, row["label"], row_id)
            fields = {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
            questions.append(Question(row_id, fields, options, options.index(word)))
        return questions
