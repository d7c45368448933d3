"""The tables of speed in both guides, and a few rows of them in both readmes, made from ``results.json``, which ``make bench ARGS=--keep`` brings up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
BEGIN, END = "<!-- made by `make bench ARGS=--keep`, not by hand -->\n", "<!-- end of what was made -->\n"
SIZES = {
    "yardstick": (6, 384, 256, 12, 8000),
    "nanogpt-cpu": (4, 128, 64, 12, 8000),
    "12x768": (12, 768, 512, 2, 40000),
}
PEERS = {"eager": "PyTorch", "torch.compile": "torch.compile"}
WORDS = {
    "en": {
        "head": "| what; beside what | ours | the other | ours is |",
        "train": "training, {} layers × {}, sequence {}, batch {}, vocabulary {}; {}",
        "decode, engine": "decode, one sequence, 12 layers × 768, vocabulary 40000; transformers",
        "decode, bundle": "decode from an exported bundle, the same size; transformers",
        "decode, int8": "decode with weights in int8, one sequence, 12 layers × 768, vocabulary 40000; transformers in fp32",
        "batch of 8, engine": "decode, eight sequences at once, the same size; one after the other",
        "steps of 8, engine": "the same, without the time that reading the prompts takes",
        "first token, engine": "first token of a prompt of 512, the same size; transformers",
        "peak": " MB at most",
        "s": " s",
        "speed": " tokens/s",
        "as quick": " × as quick",
    },
    "zh": {
        "head": "| 做什么；与谁相比 | 本项目 | 对方 | 本项目的速度是对方的 |",
        "train": "训练，{} 层 × {}，序列 {}，批大小 {}，词表 {}；{}",
        "decode, engine": "逐词生成，单条序列，12 层 × 768，词表 40000；transformers",
        "decode, bundle": "用导出包逐词生成，同样大小；transformers",
        "decode, int8": "用 int8 权重逐词生成，单条序列，12 层 × 768，词表 40000；fp32 的 transformers",
        "batch of 8, engine": "八条序列同时逐词生成，同样大小；逐条生成",
        "steps of 8, engine": "同上，不计读取提示的时间",
        "first token, engine": "512 个词元的提示到首个词元，同样大小；transformers",
        "peak": " MB（峰值）",
        "s": " 秒",
        "speed": " 词元/秒",
        "as quick": " 倍",
    },
}
FEW = ("train yardstick, eager", "decode, engine", "decode, int8", "first token, engine")  # on the front page
TABLES = {  # file → language, and the rows
    "docs/guide.md": ("en", None),
    "docs/guide.zh-CN.md": ("zh", None),
    "README.md": ("en", FEW),
    "README.zh-CN.md": ("zh", FEW),
}


def keep(found: dict) -> None:
    """Put these results among those that are kept, and make the tables anew."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(
        json.dumps({**known, **found}, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    for name in TABLES:
        path = ROOT / name
        path.write_text(with_table(name), encoding="utf-8")


def with_table(name: str) -> str:
    """The text of a guide or readme, its table as the results say."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(
        re.escape(BEGIN) + ".*?" + re.escape(END),
        lambda _: BEGIN + "\n" + table(*TABLES[name]) + "\n" + END,
        text,
        flags=re.DOTALL,
    )


def table(language: str, few: tuple[str, ...] | None) -> str:
    """Markdown, in the order of the words; rows of which nothing is known are left out, and all but ``few`` if given."""
    words = WORDS[language]
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [words["head"], "|---|---|---|---|"]
    captions = {
        f"train {size}, {peer}": words["train"].format(*numbers, PEERS[peer])
        for size, numbers in SIZES.items()
        for peer in PEERS
    }
    for name, caption in {**captions, **words}.items():
        found = results.get(name)
        if found and (few is None or name in few):
            rows.append(
                f"| {caption} | {_side(found, 'ours', words)} | {_side(found, 'peer', words)} | "
                f"{found['ratio']:.2f}{words['as quick']} |"
            )
    return "\n".join(rows) + "\n"


def _side(found: dict, side: str, words: dict[str, str]) -> str:
    speed = found.get(f"{side}_tokens_per_second")
    peak = found.get(side, {}).get("peak_mb")
    told = f"{found[f'{side}_seconds']:.2f}{words['s']}" if speed is None else f"{speed:,}{words['speed']}"
    return told + (f", {peak:,}{words['peak']}" if peak else "")
