"""Both catalogues hold the same words, with the same places to fill in; scripts ask for words that exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig, all_keys
from pangu_lab.errors import InputError
from pangu_lab.generate import explain
from pangu_lab.generate.sequence import CANCELLED, END_OF_DOCUMENT, FULL, LENGTH, STOP
from pangu_lab.planner.memory import KINDS
from pangu_lab.runs import ranks
from pangu_lab.runs.heartbeat import BEFORE_TRAINING
from pangu_lab.texts import catalogue
from widgets.base import HERE, set_language
from widgets.run_state import ENDED


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_english_and_chinese_have_the_same_keys_and_places():
    english, chinese = dict(flat(catalogue("en"))), dict(flat(catalogue("zh")))
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        places = sorted(re.findall(r"\{\w+\}", str(text)))
        assert text and chinese[key] and places == sorted(re.findall(r"\{\w+\}", str(chinese[key]))), key


def test_every_setting_has_a_name_and_an_explanation_in_both_languages():
    for language in ("en", "zh"):
        assert list(catalogue(language)["form"]["labels"]) == list(catalogue(language)["form"]["help"]) == all_keys()


@pytest.mark.parametrize(
    "path", sorted(path for path in (HERE / "static").glob("*.js") if path.stem != "common"), ids=lambda path: path.stem
)
def test_the_words_a_script_asks_for_are_in_the_catalogue(path: Path):
    source = path.read_text(encoding="utf-8")
    section = re.search(r'wordsOf\([\w.]+, "(\w+)"\)', source)[1]
    known = {**catalogue("en")["common"], **catalogue("en")[section]}
    asked = set(re.findall(r'\bt\("(\w+)"', source))
    assert asked and not asked - known.keys()


@pytest.mark.parametrize(
    "section, prefix, found",
    [
        (
            "next",
            "stage_",
            {stage.name for heat in (0, 1) for stage in explain(np.arange(5.0), SamplingConfig(temperature=heat))},
        ),
        ("monitor", "state_", {*ENDED, "starting", "compiling", "training", "evaluating", "saving"}),
        (
            "monitor",
            "rank_",
            {
                *BEFORE_TRAINING,
                *ranks.ENDED,
                "silent",
                "compiling",
                "training",
                "evaluating",
                "saving",
                "finished",
                "stopped",
            },
        ),
        ("pad", "reason_", {END_OF_DOCUMENT, STOP, LENGTH, FULL, CANCELLED}),
        ("form", "section_", {key.partition(".")[0] for key in all_keys() if "." in key}),
        ("form", "memory_", set(KINDS)),
    ],
)
def test_words_that_scripts_put_together_are_in_the_catalogue(section, prefix, found):
    known = {**catalogue("en")["common"], **catalogue("en")[section]}
    assert found and not {prefix + name for name in found} - known.keys()


def test_scripts_never_make_markup_of_text_and_load_nothing_from_elsewhere():
    for path in (HERE / "static").glob("*.js"):
        source = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "import ", "fetch(", "https://"):
            assert word not in source.replace('"http://www.w3.org/2000/svg"', ""), f"{path.name}: {word}"


def test_an_unknown_language_is_refused_by_name():
    with pytest.raises(InputError, match="there are en and zh"):
        set_language("english")
