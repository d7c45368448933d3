"""WPLC: the last word of a passage from a novel, which only its long context gives away. Ge et al. 2021 (EMNLP).

Reported is the perplexity of the missing words a token, and how many greedy writing would have found.
"""

from __future__ import annotations

from pathlib import Path

from pangu_lab.evaluate.tasks.base import Question, read_rows
from pangu_lab.evaluate.tasks.cloze import ClozeTask

GAP = "<mask>"


class WPLC(ClozeTask):
    """What stands after the gap is not read."""

    name, title = "wplc", "WPLC"
    metric = "perplexity"
    template = "{before}{|}{option}"
    fields = ("before", "option")
    file_format = "one JSON object a line with masked_text (<mask> for the missing word) and correct_word"

    def read_file(self, path: Path) -> list[Question]:
        return [
            Question(str(number), {"before": row["masked_text"].partition(GAP)[0]}, (row["correct_word"],))
            for number, row in enumerate(read_rows(path, masked_text=str, correct_word=str))
        ]
