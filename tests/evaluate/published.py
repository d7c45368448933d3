"""Files in the published format of each data set, made up for these tests, and what is to be read in them.

A new task is proved by its file here (``write_all``), the pairs of its first question and its right answers.
"""

from __future__ import annotations

import json
from pathlib import Path


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def c3_documents(count: int = 6, name: str = "d"):
    """Dialogues with two questions each; the answers stand in the passage, the other options hardly."""
    things = ["修自行车", "包饺子", "种番茄", "学游泳", "写毛笔字", "看日出", "练二胡", "补渔网"]
    documents = []
    for number in range(count):
        thing, other = things[number % 8], things[(number + 3) % 8]
        passage = [f"男：明天第{number + 1}节课以后你做什么?", f"女：我想和奶奶一起{thing}，你来吗?"]
        questions = [
            {"question": "女的明天想做什么?", "choice": [other, thing, "去医院"], "answer": thing},
            {"question": "谁和女的一起?", "choice": ["奶奶", "舅舅", "老师", "同学"], "answer": "奶奶"},
        ]
        documents.append([passage, questions, f"{name}-{number}"])
    return documents


def write_c3(folder: Path) -> Path:
    write_json(folder / "c3-d-dev.json", c3_documents())
    write_json(folder / "c3-m-dev.json", c3_documents(3, "m"))
    write_json(folder / "c3-d-test.json", c3_documents(2, "t"))
    return folder


PAIRS = [
    {"sentence1": "院子里的灯亮着", "sentence2": "院子里有灯", "label": "entailment", "id": 0},
    {"sentence1": "他每天坐船上班", "sentence2": "他从不坐船", "label": "contradiction", "id": 1},
    {"sentence1": "小店卖布鞋", "sentence2": "小店生意很好", "label": "neutral", "id": 2},
    {"sentence1": "天色不早了", "sentence2": "天亮了", "label": "-", "id": 3},
]

CMRC = {
    "version": "v1.0",
    "data": [
        {
            "title": "灯塔",
            "paragraphs": [
                {
                    "id": "DEV_0",
                    "context": "北港灯塔建于1911年，高三十二米，守塔人老秦在那里住了四十年。",
                    "qas": [
                        {
                            "id": "DEV_0_QUERY_0",
                            "question": "灯塔有多高？",
                            "answers": [
                                {"text": "三十二米", "answer_start": 14},
                                {"text": "高三十二米", "answer_start": 13},
                            ],
                        },
                        {
                            "id": "DEV_0_QUERY_1",
                            "question": "谁守灯塔？",
                            "answers": [{"text": "老秦", "answer_start": 22}],
                        },
                    ],
                }
            ],
        }
    ],
}

CLOZE = """1 ||| 从前 有 一 只 爱 唱歌 的 田鼠 。
2 ||| 田鼠 有 3 个 iPad mini 大 的 鼓 。
3 ||| 每 到 夜里 ， XXXXX 就 敲 起 鼓 来 。
4 ||| 每 到 夜里 ， XXXXX 就 敲 起 鼓 来 。 ||| 田鼠

1 ||| 村口 有 一 座 石桥 。
2 ||| 孩子 们 都 从 XXXXX 上 过 河 。
3 ||| 孩子 们 都 从 XXXXX 上 过 河 。 ||| 石桥
"""

WSC = [
    {
        "target": {"span1_text": "爷爷", "span1_index": 0, "span2_text": "他", "span2_index": 10},
        "idx": 4,
        "label": "true",
        "text": "爷爷把伞借给了客人，他自己淋着雨回来。",
    },
    {
        "target": {"span1_text": "客人", "span1_index": 7, "span2_text": "他", "span2_index": 10},
        "idx": 5,
        "label": "false",
        "text": "爷爷把伞借给了客人，他自己淋着雨回来。",
    },
    {
        "target": {"span1_text": "水缸", "span1_index": 0, "span2_text": "它", "span2_index": 6},
        "idx": 6,
        "label": "true",
        "text": "水缸裂了，把它抬走。",
    },
]


def write_all(folder: Path) -> Path:
    """Every task's files under one folder, each in a folder of its name."""
    write_c3(folder / "c3")
    write_lines(folder / "ocnli" / "dev.json", PAIRS)
    write_lines(
        folder / "cmnli" / "dev.json", [{key: row[key] for key in ("sentence1", "sentence2", "label")} for row in PAIRS]
    )
    write_lines(
        folder / "afqmc" / "dev.json",
        [
            {"sentence1": "怎么改密码", "sentence2": "密码如何修改", "label": "1", "idx": 0},
            {"sentence1": "怎么改密码", "sentence2": "怎么退款", "label": "0", "idx": 1},
        ],
    )
    write_lines(
        folder / "tnews" / "dev.json",
        [
            {"label": "104", "label_desc": "news_finance", "sentence": "小镇银行上调存款利率", "keywords": "银行,利率"},
            {"label": "103", "label_desc": "news_sports", "sentence": "少年队在雨中踢完决赛", "keywords": ""},
        ],
    )
    write_lines(
        folder / "iflytek" / "dev.json",
        [
            {"label": "1", "label_des": "地图导航", "sentence": "离线也能找路，步行骑车都可以。" * 3},
            {"label": "4", "label_des": "菜谱", "sentence": "一千道家常菜，一步一图。"},
        ],
    )
    write_lines(
        folder / "iflytek" / "labels.json",
        [
            {"label": str(i), "label_des": name}
            for i, name in enumerate(["打车", "地图导航", "记账", "相机", "菜谱", "音乐"])
        ],
    )
    write_lines(
        folder / "csl" / "dev.json",
        [
            {"id": 7, "abst": "本文研究山地梯田的蓄水方法。", "keyword": ["梯田", "蓄水"], "label": "1"},
            {"id": 8, "abst": "本文研究山地梯田的蓄水方法。", "keyword": ["梯田", "航空"], "label": "0"},
        ],
    )
    write_lines(
        folder / "chid" / "dev.json",
        [
            {
                "id": 3,
                "candidates": ["雨过天晴", "画蛇添足", "车水马龙"],
                "content": "下午#idiom#，孩子们跑了出来。",
                "answer": 0,
            },
            {"id": 5, "candidates": ["雨过天晴", "画蛇添足", "车水马龙"], "content": "街上#idiom#。", "answer": 2},
        ],
    )
    write_lines(folder / "cluewsc" / "dev.json", WSC)
    write_json(folder / "cmrc2018" / "cmrc2018_dev.json", CMRC)
    for name in ("cft.test.human", "pd.test"):
        (folder / name.partition(".")[0]).mkdir()
        (folder / name.partition(".")[0] / name).write_text(CLOZE, encoding="utf-8")
    write_lines(
        folder / "wplc" / "dev.json",
        [
            {"masked_text": "他害怕黑夜，一到晚上就点灯。可是油用完了，他只好坐着，心里<mask>", "correct_word": "害怕"},
            {"masked_text": "她等的船没有来，第二天还是没有<mask>。", "correct_word": "来"},
        ],
    )
    return folder


ASKED = {  # the pairs of each task's first question
    "ocnli": [("", f"院子里的灯亮着？{word}，院子里有灯") for word in ("对", "或许", "错")],
    "cmnli": [("", f"院子里的灯亮着？{word}，院子里有灯") for word in ("对", "或许", "错")],
    "afqmc": [("", f"下面两个句子语义{word}：怎么改密码。密码如何修改") for word in ("不同", "相同")],
    "csl": [("", f"摘要：本文研究山地梯田的蓄水方法。，关键词：梯田、蓄水{word}真实关键词") for word in ("不是", "是")],
    "chid": [("", f"下午{idiom}，孩子们跑了出来。") for idiom in ("雨过天晴", "画蛇添足", "车水马龙")],
    "cluewsc": [(f"爷爷把伞借给了客人，{noun}", "自己淋着雨回来。") for noun in ("爷爷", "客人")],
    "c3": [
        (
            f"问：女的明天想做什么?\n答：{option}\n该答案来自对话：",
            "男：明天第1节课以后你做什么?女：我想和奶奶一起修自行车，你来吗?",
        )
        for option in ("学游泳", "修自行车", "去医院")
    ],
    "cft": [("从前有一只爱唱歌的田鼠。田鼠有3个iPad mini大的鼓。每到夜里，", "田鼠")],
    "pd": [("从前有一只爱唱歌的田鼠。田鼠有3个iPad mini大的鼓。每到夜里，", "田鼠")],
    "wplc": [("他害怕黑夜，一到晚上就点灯。可是油用完了，他只好坐着，心里", "害怕")],
}

ANSWERS = {  # the right option of every question of the file
    "ocnli": ["对", "错", "或许"],
    "cmnli": ["对", "错", "或许"],
    "afqmc": ["相同", "不同"],
    "csl": ["是", "不是"],
    "chid": ["雨过天晴", "车水马龙"],
    "tnews": ["财经", "体育"],
    "iflytek": ["地图导航", "菜谱"],
    "cft": ["田鼠", "石桥"],
    "pd": ["田鼠", "石桥"],
    "wplc": ["害怕", "来"],
}
