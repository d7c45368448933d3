"""Weights of runs and checkpoints, compared."""

from __future__ import annotations

import pytest

from pangu_lab.checkpoint import save_checkpoint
from pangu_lab.checkpoint.source import largest_difference
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import WORD, initial_weights
from pangu_lab.presets import preset


def saved(folder, weights, config=preset("debug")):
    save_checkpoint(folder, weights, {"step": 1}, config)
    return folder


def test_equal_weights_differ_by_nothing_and_one_changed_number_is_found(tmp_path):
    weights = initial_weights(preset("debug").model, 1)
    changed = {**weights, WORD: weights[WORD].copy()}
    changed[WORD][3, 4] += 0.25
    first, same, other = (
        saved(tmp_path / name, arrays)
        for name, arrays in (("first", weights), ("same", dict(weights)), ("other", changed))
    )
    assert largest_difference(first, same) == 0.0
    assert largest_difference(first, other) == pytest.approx(0.25, abs=1e-6)


def test_networks_of_different_sizes_are_not_compared(tmp_path):
    wide = preset("debug").replace(**{"model.vocab_size": 600})
    one = saved(tmp_path / "one", initial_weights(preset("debug").model, 1))
    two = saved(tmp_path / "two", initial_weights(wide.model, 1), wide)
    with pytest.raises(InputError, match="different sizes"):
        largest_difference(one, two)
