"""CMNLI: natural language inference, translated from English. Published by CLUE, arXiv 2004.05986."""

from __future__ import annotations

from pangu_lab.evaluate.tasks.ocnli import OCNLI


class CMNLI(OCNLI):
    """The same question and template as OCNLI, on other sentences."""

    name, title = "cmnli", "CMNLI"
