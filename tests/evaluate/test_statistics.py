"""Intervals against values known from the literature and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pangu_lab.evaluate import mean_interval, perplexity_interval, standard_error, wilson_interval


def test_wilson_interval_has_the_published_values():
    low, high = wilson_interval(15, 148)  # Newcombe 1998, table I: 0.0624 to 0.1605
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    low, high = wilson_interval(0, 20)  # the same table: 0 to 0.1611
    assert low == 0 and round(high, 4) == 0.1611
    low, high = wilson_interval(29, 29)  # 0.8830 to 1
    assert round(low, 4) == 0.8830 and high == 1


def test_wilson_interval_without_trials_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_standard_error_of_c3_at_53_percent_is_1_17_points():
    assert round(100 * standard_error(0.53, 1825), 2) == 1.17
    assert math.isnan(standard_error(0.5, 0))


def test_wilson_interval_holds_the_true_share_19_times_in_20():
    random = np.random.default_rng(0)
    for share, n in ((0.5, 40), (0.03, 60)):
        found = [wilson_interval(right, n) for right in random.binomial(n, share, 4000)]
        hits = [low <= share <= high for low, high in found]
        assert 0.92 < np.mean(hits) < 0.98


def test_mean_interval_holds_the_mean():
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and high - 2.5 == pytest.approx(2.5 - low)
    assert high - 2.5 == pytest.approx(1.96 * math.sqrt(5 / 3 / 4), rel=1e-3)
    assert mean_interval([3.0]) == (3.0, 3.0, 3.0) and math.isnan(mean_interval([])[0])


def test_perplexity_is_a_token_and_its_interval_comes_from_the_texts():
    value, low, high = perplexity_interval([4.0, 2.0, 6.0], [2, 1, 3])
    assert value == pytest.approx(math.e**2) and low == pytest.approx(high)  # every text has the same rate
    value, low, high = perplexity_interval([4.0, 1.0, 9.0], [2, 1, 3])
    assert low < value < high and value == pytest.approx(math.exp(14 / 6))
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        tokens = random.integers(1, 9, 80)
        losses = [random.exponential(2.0, count).sum() for count in tokens]
        _, low, high = perplexity_interval(list(losses), list(tokens))
        hits += low <= math.exp(2.0) <= high
    assert 0.90 < hits / 400 < 0.99
