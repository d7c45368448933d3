"""AFQMC: do two questions of a payment service's customers mean the same. Published by CLUE, arXiv 2004.05986."""

from __future__ import annotations

from pangu_lab.evaluate.tasks.clue_pairs import SentencePairTask


class AFQMC(SentencePairTask):
    """Label 1: the same meaning; 0: not."""

    name, title = "afqmc", "AFQMC"
    template = "下面两个句子语义{option}：{sentence1}。{sentence2}"
    words = {"0": "不同", "1": "相同"}
