"""The computed shuffle is a permutation, differs by seed and epoch, and looks random."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.data.order import shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 100, 1000, 1024, 1025, 99_991])
def test_every_record_comes_once(length: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (1, 7)):
        assert np.array_equal(np.sort(shuffled(np.arange(length), length, seed, epoch)), np.arange(length))


def test_any_part_can_be_asked_for_alone() -> None:
    whole = shuffled(np.arange(1000), 1000, 3, 2)
    places = np.array([999, 0, 500, 500])
    assert np.array_equal(shuffled(places, 1000, 3, 2), whole[places])


def test_seed_epoch_and_length_change_the_order() -> None:
    orders = {
        tuple(shuffled(np.arange(50), length, seed, epoch))
        for seed, epoch, length in ((0, 0, 50), (1, 0, 50), (0, 1, 50), (2**31 - 1, 10**6, 50), (0, 0, 51))
    }
    assert len(orders) == 5


def test_the_order_is_fixed_for_good() -> None:
    """A run resumed with a later version must meet the same records."""
    assert shuffled(np.arange(8), 8, 1, 0).tolist() == [1, 4, 2, 7, 0, 5, 3, 6]


def test_places_are_spread_evenly() -> None:
    """Where the first record of 11 goes, over many seeds, and its neighbour's distance: chi-square, 1 in 10^4."""
    length, seeds = 11, 4000
    orders = np.array([shuffled(np.arange(length), length, seed, 0) for seed in range(seeds)])
    for place in (0, 5, 10):
        counts = np.bincount(orders[:, place], minlength=length)
        assert ((counts - seeds / length) ** 2 / (seeds / length)).sum() < 35.6  # 10 degrees of freedom
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % length, minlength=length)[1:]
    assert ((steps - seeds / 10) ** 2 / (seeds / 10)).sum() < 33.7  # 9 degrees of freedom


def test_a_large_epoch_is_shuffled_without_a_pattern() -> None:
    order = shuffled(np.arange(100_000), 100_000, 5, 0)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.015
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.015
    assert len(np.unique(np.diff(order))) > 50_000
    huge = shuffled(np.arange(10**12, 10**12 + 5), 10**13, 5, 0)
    assert len(set(huge.tolist())) == 5 and (huge < 10**13).all()
