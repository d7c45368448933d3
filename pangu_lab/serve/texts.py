"""Every word that the page shows, in English and Chinese, and the presets of its controls."""

from __future__ import annotations

ENGLISH = {
    "heading": "# PanGu-α\nA Chinese language model that continues your text.",
    "prompt": "Prompt", "placeholder": "Begin a text; the model continues it.",
    "write": "Continue", "stop": "Stop", "keep": "Keep", "clear": "Clear",
    "continuation": "Continuation",
    "preset": "Style", "exact": "Exact", "balanced": "Balanced", "wild": "Inventive",
    "new_tokens": "Length (tokens)",
    "temperature": "Temperature", "temperature_info": "0 always takes the likeliest token",
    "top_p": "Top-p", "top_p_info": "Fewest tokens that hold this probability; 1 is off",
    "top_k": "Top-k", "top_k_info": "Only the k likeliest tokens; 0 is off",
    "more": "More settings",
    "repetition": "Repetition penalty", "frequency": "Frequency penalty", "presence": "Presence penalty",
    "stop_texts": "Stop texts, one a line", "seed": "Seed (empty: a fresh one)",
    "starting": "Reading the prompt …",
    "speed": "{tokens} tokens, {rate:.1f} a second",
    "end_of_document": "the text came to its end", "length": "the length was reached",
    "sequence_full": "the model's sequence is full", "cancelled": "stopped",
    "seed_was": "seed {seed}", "refused": "Not possible:",
    "too_long": "The prompt has more than {limit} characters: shorten it.",
    "stop_reason": "a stop text was reached", "late": "the time was up",
    "queue": "Waiting: number {place} in the queue", "busy": "Too many are waiting; try again in a moment.",
    "count": "{tokens} of {most} tokens",
    "tab_write": "Continue writing", "tab_templates": "Templates", "tab_next": "Next token",
    "template": "Template", "template_qa": "Question", "template_couplet": "Couplet", "template_poem": "Poem",
    "template_reading": "Reading", "passage": "Passage", "case": "Your question, first line or title",
    "ask": "Answer", "answer": "Answer", "examples": "The examples before it",
    "examples_info": "The model goes on with this pattern; change it as you like",
    "look": "Look", "candidates": "What may follow, in per cent", "token": "Token",
    "choose": "Click a token to add it to the text.",
    "stage_model": "Model", "stage_penalties": "Penalties", "stage_temperature": "Temperature",
    "stage_top_k": "Top-k", "stage_top_p": "Top-p", "stage_chance": "Chance",
}

CHINESE = {
    "heading": "# 盘古 α\n中文语言模型：写个开头，它来续写。",
    "prompt": "开头", "placeholder": "写个开头，模型接着写。",
    "write": "续写", "stop": "停止", "keep": "采用", "clear": "清空",
    "continuation": "续写结果",
    "preset": "风格", "exact": "确定", "balanced": "平衡", "wild": "奔放",
    "new_tokens": "长度（词元）",
    "temperature": "温度", "temperature_info": "0 时总取最可能的词元",
    "top_p": "Top-p", "top_p_info": "只在合计达到此概率的最少词元中选；1 为关闭",
    "top_k": "Top-k", "top_k_info": "只在最可能的 k 个词元中选；0 为关闭",
    "more": "更多设置",
    "repetition": "重复惩罚", "frequency": "频率惩罚", "presence": "存在惩罚",
    "stop_texts": "停止文本，每行一个", "seed": "随机种子（留空则每次不同）",
    "starting": "正在读开头 ……",
    "speed": "{tokens} 个词元，每秒 {rate:.1f} 个",
    "end_of_document": "全文已写完", "length": "已到设定长度",
    "sequence_full": "已到模型的最大长度", "cancelled": "已停止",
    "seed_was": "种子 {seed}", "refused": "无法续写：",
    "too_long": "开头超过 {limit} 个字，请缩短。",
    "stop_reason": "遇到停止文本", "late": "时间到了",
    "queue": "排队中：第 {place} 位", "busy": "排队的人太多，请稍后再试。",
    "count": "{tokens} / {most} 个词元",
    "tab_write": "续写", "tab_templates": "模板", "tab_next": "下一个词元",
    "template": "模板", "template_qa": "问答", "template_couplet": "对联", "template_poem": "作诗",
    "template_reading": "阅读理解", "passage": "短文", "case": "你的问题、上联或题目",
    "ask": "回答", "answer": "回答", "examples": "前面的例子",
    "examples_info": "模型照着这些例子往下写，可以改",
    "look": "看看", "candidates": "接下来可能是什么（百分比）", "token": "词元",
    "choose": "点一个词元，把它接在后面。",
    "stage_model": "模型", "stage_penalties": "惩罚后", "stage_temperature": "温度后",
    "stage_top_k": "Top-k 后", "stage_top_p": "Top-p 后", "stage_chance": "机会",
}

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}

# temperature, top-p, top-k, repetition penalty
PRESETS: dict[str, tuple[float, float, int, float]] = {
    "exact": (0.0, 1.0, 0, 1.0), "balanced": (0.8, 0.9, 0, 1.05), "wild": (1.1, 0.98, 0, 1.05),
}


def language_of(accepted: str) -> str:
    """The language of a browser's ``Accept-Language`` header: zh where Chinese comes before English, else en."""
    for part in accepted.lower().split(","):
        language = part.split(";")[0].strip()[:2]
        if language in LANGUAGES:
            return language
    return "en"
