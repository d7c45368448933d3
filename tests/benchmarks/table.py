"""The tables of speed in both readmes, made from ``results.json``, which ``make bench ARGS=--keep`` brings up to date."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
BEGIN, END = "<!-- made by `make bench ARGS=--keep`, not by hand -->\n", "<!-- end of what was made -->\n"
SIZES = {"yardstick": "6 × 384, 256, 12 × 8000", "nanogpt-cpu": "4 × 128, 64, 12 × 8000", "12x768": "12 × 768, 512, 2 × 40000"}
READMES = {
    "README.md": {
        "head": "| | ours | the other | ours is |", "train": "training, layers × hidden, sequence, batch × vocabulary: ",
        "decode, engine": "decode, one sequence, 12 × 768 × 40000, beside transformers",
        "decode, bundle": "the same, from an exported bundle", "decode, int8": "the same, ours with weights in int8", "beside": " beside PyTorch ",
        "first token, engine": "first token of a prompt of 512, beside transformers", "peak": " MB at most", "s": " s",
        "speed": " tokens/s", "as quick": " × as quick"},
    "README.zh-CN.md": {
        "head": "| | 本项目 | 对方 | 本项目的速度是对方的 |", "train": "训练，层数 × 宽度，序列长度，批大小 × 词表：",
        "decode, engine": "逐词生成，单条序列，12 × 768 × 40000，与 transformers 相比",
        "decode, bundle": "同上，用导出包", "decode, int8": "同上，本项目用 int8 权重", "beside": " 与 PyTorch 相比，",
        "first token, engine": "512 个词元的提示到首个词元，与 transformers 相比", "peak": " MB（峰值）", "s": " 秒",
        "speed": " 词元/秒", "as quick": " 倍"},
}


def keep(found: dict) -> None:
    """Put these results among those that are kept, and make the tables anew."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, **found}, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    for name in READMES:
        path = ROOT / name
        path.write_text(with_table(name), encoding="utf-8")


def with_table(name: str) -> str:
    """The readme's text, its table as the results say."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + "\n" + table(READMES[name]) + "\n" + END, text,
                  flags=re.DOTALL)


def table(words: dict[str, str]) -> str:
    """Markdown; rows of which nothing is known are left out."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [words["head"], "|---|---|---|---|"]
    for name, found in results.items():
        caption = words.get(name)
        if name.startswith("train "):
            size, peer = name.removeprefix("train ").split(", ")
            caption = f"{words['train']}{SIZES[size]},{words['beside']}{peer}"
        if caption:
            rows.append(f"| {caption} | {_side(found, 'ours', words)} | {_side(found, 'peer', words)} | "
                        f"{found['ratio']:.2f}{words['as quick']} |")
    return "\n".join(rows) + "\n"


def _side(found: dict, side: str, words: dict[str, str]) -> str:
    speed = found.get(f"{side}_tokens_per_second")
    peak = found.get(side, {}).get("peak_mb")
    told = f"{found[f'{side}_seconds']:.2f}{words['s']}" if speed is None else f"{speed:,}{words['speed']}"
    return told + (f", {peak:,}{words['peak']}" if peak else "")
