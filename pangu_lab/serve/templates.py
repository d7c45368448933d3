"""Few-shot prompts for a model that was not trained to follow instructions: it continues a pattern.

Each template is a few solved examples, then the reader's own case, then a place for the answer; the answer ends
where the pattern's next line would begin. The examples were written for this project. A pattern shows a small model
what to do, but does not give it knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One pattern.

    Attributes:
        examples: what stands before the reader's case.
        pattern: the reader's case; ``{passage}`` and ``{question}`` are filled in.
        stop: where the answer ends.
        new_tokens: room for an answer.
        question, passage: initial contents of the fields; without a passage there is no such field.
    """

    examples: str
    pattern: str
    stop: tuple[str, ...]
    new_tokens: int
    question: str
    passage: str = ""

    def prompt(self, question: str, passage: str = "", examples: str | None = None) -> str:
        """The whole prompt; line ends within the fields would break the pattern, and become blanks."""
        before = self.examples if examples is None else examples
        filled = self.pattern.replace("{passage}", _one_line(passage)).replace("{question}", _one_line(question))
        return before.rstrip("\n") + "\n" + filled if before.strip() else filled


def _one_line(text: str) -> str:
    return " ".join(text.split())


TEMPLATES: dict[str, Template] = {
    "qa": Template(
        "问：一年有几个季节？\n答：四个，春、夏、秋、冬。\n问：水烧开了会变成什么？\n答：水蒸气。\n"
        "问：太阳从哪边升起？\n答：东边。\n",
        "问：{question}\n答：",
        ("\n", "问："),
        40,
        "中国的首都是哪里？",
    ),
    "couplet": Template(
        "上联：春风送暖千山绿\n下联：瑞雪迎春万户新\n上联：书山有路勤为径\n下联：学海无涯苦作舟\n"
        "上联：一帆风顺年年好\n下联：万事如意步步高\n",
        "上联：{question}\n下联：",
        ("\n", "上联："),
        24,
        "山清水秀风光好",
    ),
    "poem": Template(
        "题目：春晓\n诗：晓日临窗照，春风入户来。枝头莺语闹，园里杏花开。\n"
        "题目：秋江\n诗：落日沉江水，秋风起荻花。渔舟归渡口，灯火两三家。\n",
        "题目：{question}\n诗：",
        ("\n", "题目："),
        48,
        "夏夜",
    ),
    "reading": Template(
        "短文：小明早上七点起床，吃过早饭后骑车去学校。\n问：小明怎么去学校？\n答：骑车。\n"
        "短文：图书馆周一闭馆，其余日子九点开门。\n问：图书馆哪天不开门？\n答：周一。\n",
        "短文：{passage}\n问：{question}\n答：",
        ("\n", "问：", "短文："),
        32,
        "奶奶在院子里种了什么？",
        "奶奶家有个小院子，春天她种了豆角和黄瓜，夏天我们就能吃到了。",
    ),
}
