"""Bits per character: a loss that compares between vocabularies."""

from __future__ import annotations

import json
import math

import pytest

from pangu_lab.cli import main
from pangu_lab.runs.comparison import compare_runs
from pangu_lab.runs.units import BITS, LOSS, NONE, Vocabulary, bits_per_character, common_unit
from tests.runs.conftest import write_run


def test_a_loss_of_ln_2_a_token_is_a_bit_and_a_token_of_two_characters_halves_it():
    assert bits_per_character(math.log(2), 1.0) == pytest.approx(1.0)
    assert bits_per_character(math.log(2), 2.0) == pytest.approx(0.5)


def test_what_is_not_known_is_absent_and_never_wrong():
    assert bits_per_character(3.0, None) is None and bits_per_character(None, 2.0) is None
    assert bits_per_character(math.nan, 2.0) is None


def test_runs_compare_by_loss_only_where_the_vocabulary_is_the_same():
    one, other = Vocabulary(512, "a", 1.5), Vocabulary(512, "b", 1.1)
    assert common_unit([one, one]) == LOSS and common_unit([one, Vocabulary(512)]) == LOSS  # an older run
    assert common_unit([one, other]) == BITS and common_unit([one, Vocabulary(40000, "c")]) == NONE


def _vocabulary(folder, **facts):
    path = folder / "events.jsonl"
    start = json.dumps({"v": 1, "kind": "start", "time": 1.0, "resumed_from": 0, **facts})
    path.write_text(start + "\n" + path.read_text())


def test_a_comparison_of_different_vocabularies_is_in_bits_per_character_and_says_so(tmp_path, capsys):
    small = write_run(tmp_path / "small", [4.0] * 5, **{"model.vocab_size": 300})
    large = write_run(tmp_path / "large", [6.0] * 5)
    _vocabulary(small, vocabulary="a", characters_per_token=1.0)
    _vocabulary(large, vocabulary="b", characters_per_token=2.0)
    found = compare_runs([small, large])
    assert found.unit == BITS
    assert found.losses[5] == pytest.approx([4.0 / math.log(2), 3.0 / math.log(2)])  # the large one is the better one
    assert main(["runs", str(tmp_path), "--compare", "small", "large"]) == 0
    out = capsys.readouterr().out
    assert "their vocabularies differ: losses and perplexities do not compare" in out and "bits per character" in out


def test_where_a_run_does_not_know_its_characters_the_comparison_says_it(tmp_path, capsys):
    write_run(tmp_path / "small", [4.0] * 5, **{"model.vocab_size": 300})
    write_run(tmp_path / "large", [6.0] * 5)
    assert main(["runs", str(tmp_path), "--compare", "small", "large"]) == 0
    assert "a run does not know its bits per character" in capsys.readouterr().out
