"""OCNLI: does one sentence entail the other, contradict it, or neither. Hu et al. 2020, arXiv 2010.05444."""

from __future__ import annotations

from pangu_lab.evaluate.tasks.clue_pairs import SentencePairTask


class OCNLI(SentencePairTask):
    """Lines whose annotators did not agree (label "-") are left out, as in the published scores."""

    name, title = "ocnli", "OCNLI"
    template = "{sentence1}？{option}，{sentence2}"
    words = {"entailment": "对", "neutral": "或许", "contradiction": "错"}
