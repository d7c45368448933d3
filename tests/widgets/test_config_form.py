"""The form: nothing is lost on the way through it, what is wrong is said at once, the figures follow."""

from __future__ import annotations

import pytest

from pangu_lab.config import all_keys
from pangu_lab.errors import InputError
from pangu_lab.presets import PRESETS, preset
from widgets.config_form import ConfigForm


@pytest.mark.parametrize("name", PRESETS)
def test_typing_every_value_of_a_preset_again_gives_the_preset(name, monkeypatch):
    monkeypatch.setattr(
        "widgets.config_form.figures_of", lambda config, hardware: {}
    )  # 80 edits: estimates take a while
    form = ConfigForm("debug")
    form.config = preset(name)
    assert list(form.values) == all_keys(form.config)
    for key, text in dict(form.values).items():
        form.edit(key, text)
    assert form.config == preset(name) and form.error == {} and form.changed == []
    form.load(ConfigForm(name).to_yaml())
    assert form.config == preset(name)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("train.start_lr", "1e-4", 1e-4),
        ("train.max_minutes", "", None),
        ("train.max_minutes", "2.5", 2.5),
        ("data.path", "a b: 'c'", "a b: 'c'"),
        ("tokenizer.path", "", None),
        ("tokenizer.eod", "9", 9),
        ("tokenizer.eod", "<eot>", "<eot>"),
        ("sampling.stop", "['。', 'x']", ("。", "x")),
        ("data.eod_reset", "false", False),
        ("parallel.optimizer", "off", False),
        ("parallel.optimizer", "states", True),
        ("parallel.optimizer", "parameters", "parameters"),
    ],
)
def test_what_is_typed_is_taken_for_what_it_looks_like(key, text, value):
    form = ConfigForm("debug")
    form.edit(key, text)
    section, name = key.split(".")
    assert form.error == {} and getattr(getattr(form.config, section), name) == value
    before = form.config
    form.config = before
    form.edit(key, form.values[key])
    assert form.config == before


def test_what_cannot_work_is_said_by_its_key_and_the_last_good_settings_stay():
    form = ConfigForm("debug")
    form.edit("model.num_heads", "5")
    assert form.error["key"] == "model.num_heads" and "must divide model.hidden_size=32" in form.error["text"]
    assert form.config == preset("debug") and form.values["model.num_heads"] == "5"
    form.edit("model.hidden_size", "40")
    assert form.error == {} and (form.config.model.num_heads, form.config.model.hidden_size) == (5, 40)
    form.edit("train.steps", "many")
    assert form.error == {"key": "train.steps", "text": "train.steps='many' must be a whole number"}


def test_parameters_memory_and_time_follow_what_is_typed():
    form = ConfigForm("debug")
    before = form.figures
    form.edit("model.hidden_size", "64")
    assert form.figures["parameters"] == form.config.model.num_parameters > before["parameters"]
    assert form.figures["total"] > before["total"] and form.figures["seconds"] > before["seconds"]
    form.edit("train.steps", "40")
    assert form.command.replace("\\", "").split()[-4:-2] == ["--set", "model.hidden_size=64"] and form.command.endswith(
        "train.steps=40"
    )


def test_a_layout_that_cannot_be_estimated_says_why():
    form = ConfigForm("debug")
    form.edit("parallel.tensor", "8")
    assert form.config.parallel.tensor == 8 and "note" in form.figures and "total" not in form.figures


def test_yaml_that_is_none_is_refused_and_changes_nothing():
    form = ConfigForm("debug")
    for text in ("[1, 2", "5", "model:\n  hiden_size: 3\n"):
        with pytest.raises(InputError):
            form.load(text)
    assert form.config == preset("debug")
    form._received(form, {"do": "load", "text": "5"}, [])  # from the page: shown there, never raised


def test_a_form_can_be_saved_and_another_preset_keeps_the_data(tmp_path):
    form = ConfigForm("debug")
    form.edit("data.path", "datasets/mine")
    form.save(tmp_path / "c.yaml")
    other = ConfigForm("tiny")
    other.load((tmp_path / "c.yaml").read_text())
    assert other.config == form.config
    other._received(other, {"do": "preset", "name": "small"}, [])
    assert other.config == preset("small").replace(**{"data.path": "datasets/mine"})
    assert "<table>" in form._repr_mimebundle_()[0]["text/html"]


def test_the_form_takes_the_vocabulary_of_the_data_set_unless_one_was_typed(debug_data):
    form = ConfigForm("tiny")
    form.edit("data.path", str(debug_data / "train"))
    assert form.config.model.vocab_size == 512 and form.values["model.vocab_size"] == "512"
    assert "--set model.vocab_size=512" in form.command and not form.error
    form = ConfigForm("tiny")
    form.edit("model.vocab_size", "600")
    form.edit("data.path", str(debug_data / "train"))
    assert form.config.model.vocab_size == 600
