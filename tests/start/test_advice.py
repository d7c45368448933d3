"""What is proposed for a text and so many minutes, with speeds that the test gives."""

from __future__ import annotations

import math
import random
import shlex

import pytest
import yaml

from pangu_lab import cli
from pangu_lab.config import config_from_dict
from pangu_lab.corpus import Reading
from pangu_lab.data import sample_folder
from pangu_lab.errors import InputError
from pangu_lab.presets import preset
from pangu_lab.start import timing
from pangu_lab.start.advice import EPOCHS, SIZES, _operations, advise, bigram_bits, default_folder
from pangu_lab.start.timing import measured_speed

BLOCKS = Reading(documents="block")
SAMPLE = sample_folder() / "train"


def machine(operations: float):
    """A machine that does so many operations a second, and what it was asked."""
    asked = []

    def measure(config):
        asked.append((config.model.hidden_size, config.model.num_layers))
        return operations / _operations(config)

    return measure, asked


@pytest.fixture
def novel(tmp_path):
    """A long text: the sample over and over, which does for its size."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SAMPLE.glob("*.txt")))
    path = tmp_path / "novel.txt"
    path.write_text("\n".join([text] * 20), encoding="utf-8")
    return path


def test_more_minutes_or_a_quicker_machine_allow_a_larger_model(novel):
    sizes = []
    for minutes, operations in ((1, 5e10), (10, 5e10), (60, 5e10), (60, 5e12)):
        measure, asked = machine(operations)
        advice = advise(novel, minutes, measure=measure)
        model = advice.config.model
        sizes.append(SIZES.index((model.hidden_size, model.num_layers, model.num_heads)))
        assert (model.hidden_size, model.num_layers) in asked, "the size that is proposed was timed"
        assert len(asked) <= 3
        assert advice.tokens_per_second == pytest.approx(operations / _operations(advice.config))
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_a_small_text_is_not_read_more_often_than_it_is_good_for():
    measure, _ = machine(5e12)
    advice = advise(SAMPLE, 60, how=BLOCKS, measure=measure)
    assert advice.epochs == pytest.approx(EPOCHS) and any(
        "the text is the limit" in reason for reason in advice.reasons
    )
    a_step = advice.config.data.batch_size * advice.config.data.seq_length
    assert advice.config.train.steps == advice.steps == round(advice.tokens / a_step)
    assert advice.config.train.patience and advice.config.model.dropout_rate > 0


def test_steps_are_those_that_the_minutes_hold_and_the_most_leaves_room(novel):
    measure, _ = machine(5e10)
    advice = advise(novel, 5, measure=measure)
    a_step = advice.config.data.batch_size * advice.config.data.seq_length
    assert advice.tokens <= advice.tokens_per_second * 300 and advice.steps == round(advice.tokens / a_step)
    assert advice.config.train.steps > advice.steps and advice.config.train.minutes == 5
    assert advice.config.train.schedule == "wsd" and advice.config.train.optimizer == "muon"


def test_chinese_of_this_length_is_read_in_characters_and_english_in_pieces(novel, tmp_path):
    measure, _ = machine(5e10)
    advice = advise(novel, 5, measure=measure)
    assert advice.kind == "char" and advice.config.model.vocab_size == advice.pieces
    path = tmp_path / "english.txt"
    path.write_text(
        "\n".join(f"It was the best of times, it was number {n} of times." for n in range(4000)), encoding="utf-8"
    )
    assert advise(path, 5, measure=measure).kind == "bpe"


def test_what_is_given_is_kept_and_the_rest_is_fitted_around_it():
    measure, asked = machine(5e10)
    changes = {"model.hidden_size": 96, "data.seq_length": 256, "train.start_lr": 0.02, "model.vocab_size": 900}
    advice = advise(SAMPLE, 5, how=BLOCKS, measure=measure, changes=changes)
    model = advice.config.model
    assert (model.hidden_size, model.num_positions, advice.config.train.start_lr, model.vocab_size) == (
        96,
        256,
        0.02,
        900,
    )
    assert set(asked) == {(96, 4)} and advice.pieces == 900
    with pytest.raises(InputError, match="unknown setting 'train.start'"):
        advise(SAMPLE, 5, how=BLOCKS, measure=measure, changes={"train.start": 1})


def test_yaml_over_its_preset_and_the_command_say_the_same(tmp_path):
    measure, _ = machine(5e10)
    advice = advise(SAMPLE, 5, how=BLOCKS, out=str(tmp_path / "mine"), measure=measure)
    values = yaml.safe_load(advice.yaml())
    assert config_from_dict(values, preset(values["preset"])).replace(**{"train.minutes": 5.0}) == advice.config
    words = shlex.split(advice.command())
    args = cli.build_parser().parse_args(words[1:])
    assert (args.text, args.minutes, args.out, args.documents) == ([str(SAMPLE)], 5.0, str(tmp_path / "mine"), "block")


@pytest.mark.parametrize(
    "given, folder",
    [
        ("books/novel.txt", "runs/novel"),
        ("books/*.txt", "runs/books"),
        ("书 1/", "runs/书 1"),
        ("*.txt", "runs/text"),
        ("../a.tar.gz", "runs/a"),
    ],
)
def test_the_folder_is_called_after_the_text(given, folder):
    assert default_folder((given,)) == folder


@pytest.mark.parametrize(
    "key, why", [("parallel.tensor", "one process trains here"), ("data.path", "comes from the text")]
)
def test_what_one_process_on_one_text_cannot_take_is_refused(key, why):
    with pytest.raises(InputError, match=why):
        advise(SAMPLE, 5, how=BLOCKS, changes={key: 2}, measure=lambda config: 1.0)


def test_the_command_that_is_proposed_has_the_settings_that_were_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pangu_lab.start.advice.measured_speed", lambda config: 1e4)
    words = ["advise", str(SAMPLE), "--documents", "block", "--minutes", "1", "--set", "model.hidden_size=96"]

    def proposed() -> str:
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")).removeprefix(
            "next: "
        )

    assert cli.main(words) == 0 and proposed() == shlex.join(
        ["pangu-lab", "start", str(SAMPLE), "--minutes", "1", "--documents", "block", "--set", "model.hidden_size=96"]
    )
    assert cli.main([*words, "--yaml", "mine.yaml"]) == 0 and proposed().endswith("--config mine.yaml")
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["model"]["hidden_size"] == 96
    assert cli.main([*words, "--yaml", "mine.yaml"]) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_minutes_must_be_some(minutes):
    with pytest.raises(InputError, match="must be above 0"):
        advise(SAMPLE, minutes, measure=lambda config: 1.0)


def test_bigrams_of_a_text_that_repeats_itself_need_few_bits_and_of_chance_many():
    assert bigram_bits(["天地" * 500], ["天地" * 50]) < 0.1
    letters = "".join(random.Random(1).choices([chr(0x4E00 + n) for n in range(256)], k=4000))
    assert bigram_bits([letters[:3000]], [letters[3000:]]) > 4.0
    assert bigram_bits(["天地" * 500], ["玄黄" * 50]) > 8.0, "what was never seen"


def test_what_to_expect_lies_around_a_share_of_the_bigram_model():
    measure, _ = machine(5e10)
    low, high = advise(SAMPLE, 5, how=BLOCKS, measure=measure).bits
    assert 6.0 < low < high < 9.5 and high / low == pytest.approx(1.06 / 0.94)


def test_a_few_real_steps_are_timed_in_a_process_of_their_own():
    assert 100 < measured_speed(preset("debug").replace(**{"train.optimizer": "muon"})) < 10_000_000


def test_a_model_that_cannot_be_timed_says_why(monkeypatch):
    monkeypatch.setattr(timing, "LIMIT", 0.01)
    with pytest.raises(InputError, match="take more than 0.01 s"):
        measured_speed(preset("debug"))
    monkeypatch.setattr(timing.sys, "executable", "false")
    with pytest.raises(InputError, match="could not be timed: exit code 1"):
        measured_speed(preset("debug"))
