"""TNEWS: the section of a news headline, one of 15. Published by CLUE, arXiv 2004.05986.

The paper's numbers offer the right label and three sampled ones; ``negatives=0`` offers all 15.
"""

from __future__ import annotations

from pathlib import Path

from pangu_lab.evaluate.tasks.base import LABEL, ChoiceTask, Question, known_label, read_rows, sampled_options


class TNEWS(ChoiceTask):
    """Labels are told by ``label_desc`` (news_story …), where it is there, else by number."""

    name, title = "tnews", "TNEWS"
    template = "这是关于{option}的文章：{sentence}"
    fields = ("sentence", "keywords", "option")
    file_format = "one JSON object a line with sentence and label_desc (or label)"
    default_negatives = 3
    words = {
        "story": "故事",
        "culture": "文化",
        "entertainment": "娱乐",
        "sports": "体育",
        "finance": "财经",
        "house": "房产",
        "car": "汽车",
        "edu": "教育",
        "tech": "科技",
        "military": "军事",
        "travel": "旅游",
        "world": "国际",
        "stock": "股票",
        "agriculture": "农业",
        "game": "游戏",
    }
    numbers = dict(
        zip(
            ("100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116"),
            words.values(),
        )
    )

    @property
    def fixed_labels(self) -> bool:  # type: ignore[override]
        return not self.negatives

    def read_file(self, path: Path) -> list[Question]:
        questions = []
        for number, row in enumerate(read_rows(path, sentence=str, label=LABEL)):
            if "label_desc" in row:
                word = known_label(path, self.words, str(row["label_desc"]).removeprefix("news_"), str(number))
            else:
                word = known_label(path, self.numbers, row["label"], str(number))
            options = sampled_options(word, tuple(self.words.values()), self.negatives, row["sentence"], self.seed)
            fields = {"sentence": row["sentence"], "keywords": str(row.get("keywords", ""))}
            questions.append(Question(str(number), fields, options, options.index(word)))
        return questions
