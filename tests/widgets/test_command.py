"""The command of a form gives exactly its settings back, through the real parser."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_tests
from hypothesis import strategies as st

from pangu_lab.cli import build_parser
from pangu_lab.cli.common import settings
from pangu_lab.presets import PRESETS, preset
from widgets.command import command_text, launch_words


def read_back(words):
    args = build_parser().parse_args(words[1:])
    return settings(args, data__path=args.data, data__eval_path=args.eval_data)


CHANGES = [
    {},
    {"train.steps": 7, "train.start_lr": 1e-7, "train.max_minutes": None, "data.eod_reset": False},
    {"data.path": "a folder/with 'quotes' and = 春天", "data.eval_path": "-odd", "tokenizer.path": "null"},
    {
        "sampling.stop": ["\n\n", "。", "yes"],
        "sampling.logit_bias": [[3, -1.5]],
        "sampling.top_p": 0.9,
        "tokenizer.eod": "9",
    },
]


@pytest.mark.parametrize("changes", CHANGES, ids=range(len(CHANGES)))
@pytest.mark.parametrize("name", PRESETS)
def test_the_command_of_every_preset_gives_its_settings(name, changes):
    config = preset(name).replace(**changes)
    words = launch_words(config, "runs/first")
    assert read_back(words) == config
    assert shlex.split(command_text(words).replace("\\\n", " ")) == words


@example("\n  a: [1")
@example("1e5")
@example("\x85\u2028\ufeff")
@settings_of_tests(max_examples=25)
@given(st.text(max_size=30))
def test_any_text_survives_the_command_line(text):
    config = preset("debug").replace(**{"tokenizer.path": text, "sampling.stop": (text,) if text else ()})
    assert read_back(launch_words(config, "runs/x")) == config


def test_the_command_is_short_and_says_how_many_processes():
    config = preset("debug").replace(**{"data.path": "d", "parallel.data": 2})
    text = command_text(launch_words(config, Path("runs/first")), width=None)
    assert text == "pangu-lab launch --run runs/first --nproc 2 --preset debug --data d --set parallel.data=2"
