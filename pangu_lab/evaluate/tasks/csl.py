"""CSL: are these the real keywords of a scientific abstract. Published by CLUE, arXiv 2004.05986."""

from __future__ import annotations

from pathlib import Path

from pangu_lab.evaluate.tasks.base import LABEL, TEXTS, ChoiceTask, Question, known_label, read_rows


class CSL(ChoiceTask):
    """Label 1: all keywords are real; 0: some are not."""

    name, title = "csl", "CSL"
    template = "摘要：{abst}，关键词：{keyword}{option}真实关键词"
    fields = ("abst", "keyword", "option")
    file_format = "one JSON object a line with abst, keyword (a list) and label"
    words = {"0": "不是", "1": "是"}

    def read_file(self, path: Path) -> list[Question]:
        questions = []
        options = tuple(self.words.values())
        for number, row in enumerate(read_rows(path, abst=str, keyword=TEXTS, label=LABEL)):
            row_id = str(row.get("id", number))
            word = known_label(path, self.words, row["label"], row_id)
            keywords = row["keyword"] if isinstance(row["keyword"], str) else "、".join(row["keyword"])
            fields = {"abst": row["abst"], "keyword": keywords}
            questions.append(Question(row_id, fields, options, options.index(word)))
        return questions
