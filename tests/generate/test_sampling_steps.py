"""The chain from logits to a token: every step by itself, the whole, and what may not influence it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.config import SAMPLING_RANGES, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import sampling
from pangu_lab.generate.sampling import Draws, History, check_ids, choose, explain, log_softmax, softmax
from pangu_lab.ranges import SMALLEST

logits_lists = st.lists(st.floats(-20, 20), min_size=2, max_size=40).map(lambda values: np.array(values, np.float32))


def kept(scores: np.ndarray) -> set[int]:
    return set(np.flatnonzero(scores > -np.inf).tolist())


def config(**settings) -> SamplingConfig:
    return SamplingConfig(**settings)


def test_probabilities_are_powers_of_e_and_not_of_ten():
    np.testing.assert_allclose(softmax(np.log(np.array([1.0, 3.0, 6.0]))), [0.1, 0.3, 0.6])
    found = log_softmax(np.log(np.array([[1.0, 3.0], [2.0, 2.0]])))
    np.testing.assert_allclose(found, np.log([[0.25, 0.75], [0.5, 0.5]]))


@given(logits_lists, st.integers(1, 50))
def test_top_k_keeps_the_k_likeliest(logits, k):
    found = kept(sampling.top_k(logits, config(top_k=k), History()))
    assert len(found) == min(k, logits.size)
    others = [logits[i] for i in range(logits.size) if i not in found]
    assert min(logits[list(found)]) >= max(others, default=-np.inf)


@given(logits_lists, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_hold_p(logits, p):
    probabilities = softmax(logits)
    found = kept(sampling.top_p(logits, config(top_p=p), History()))
    by_size = sorted(probabilities, reverse=True)
    total, count = 0.0, 0
    while total < p and count < len(by_size):
        total, count = total + by_size[count], count + 1
    assert abs(len(found) - count) <= (1 if abs(total - p) < 1e-9 else 0)
    assert sum(probabilities[list(found)]) >= p - 1e-9


def test_top_p_looks_at_all_candidates_of_a_flat_distribution():
    logits = np.zeros(40_000, np.float32)  # the reference looked at 5000 of them
    assert len(kept(sampling.top_p(logits, config(top_p=0.9), History()))) == 36_000


def test_top_p_by_guess_and_by_full_sort_agree():
    logits = np.random.default_rng(0).normal(0, 3, 20_000).astype(np.float32)
    for p in (0.5, 0.9, 0.99, 0.9999):
        order = np.argsort(-logits, kind="stable")
        count = int(np.searchsorted(np.cumsum(softmax(logits)[order]), p)) + 1
        assert kept(sampling.top_p(logits, config(top_p=p), History())) == set(order[:count].tolist())


def test_min_p_is_relative_to_the_likeliest():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    assert kept(sampling.min_p(logits, config(min_p=0.25), History())) == {0, 1, 2}


def test_penalties_count_the_generated_tokens_and_repetition_the_prompt_too():
    history = History(prompt=(1,), new=[2, 2, 3])
    logits = np.array([1.0, 1.0, 1.0, -1.0])
    found = sampling.frequency_and_presence(logits, config(frequency_penalty=0.5, presence_penalty=0.25), history)
    np.testing.assert_allclose(found, [1.0, 1.0, -0.25, -1.75])
    found = sampling.repetition_penalty(logits, config(repetition_penalty=2.0), history)
    np.testing.assert_allclose(found, [1.0, 0.5, 0.5, -2.0])
    np.testing.assert_allclose(logits, [1.0, 1.0, 1.0, -1.0])  # never changed in place


def test_no_repeat_ngram_forbids_what_would_complete_one():
    history = History(prompt=(1, 2, 3), new=[1, 2])
    assert kept(sampling.no_repeat_ngram(np.zeros(5), config(no_repeat_ngram=3), history)) == {0, 1, 2, 4}
    assert kept(sampling.no_repeat_ngram(np.zeros(5), config(no_repeat_ngram=1), history)) == {0, 4}
    assert kept(sampling.no_repeat_ngram(np.zeros(5), config(no_repeat_ngram=6), history)) == {0, 1, 2, 3, 4}


def test_the_unknown_piece_is_never_chosen():
    history = History(unknown=(0,))
    assert choose(np.array([9.0, 1.0, 0.0]), config(temperature=0), history, 0.0) == 1
    assert kept(sampling.no_unknown(np.zeros(3), config(), history)) == {1, 2}


def test_min_new_tokens_forbids_the_ends_until_then():
    for written, allowed in ((0, {1, 2}), (1, {1, 2}), (2, {0, 1, 2, 3})):
        history = History(new=[1] * written, ends=(0, 3))
        assert kept(sampling.min_new_tokens(np.zeros(4), config(min_new_tokens=2), history)) == allowed


def test_logit_bias_moves_single_tokens():
    settings = config(temperature=0, logit_bias={1: 5.0, 2: -100})
    assert choose(np.array([3.0, 0.0, 90.0]), settings, History(), 0.0) == 1


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
    assert choose(np.array([0.0, 2.0, 2.0]), config(temperature=0), History(), 0.9) == 1


@given(logits_lists, st.floats(0, 1, exclude_max=True), st.floats(0.1, 3))
def test_a_draw_inverts_the_cumulative_distribution(logits, random, temperature):
    index = choose(logits, config(temperature=temperature), History(), random)
    total = np.cumsum(softmax(logits / temperature))
    assert total[index] >= random - 1e-5 and (index == 0 or total[index - 1] <= random + 1e-5)


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    counts = np.zeros(3)
    draws = Draws(seed=7)
    for step in range(4000):
        counts[choose(logits, config(), History(), draws.at(step))] += 1
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2], atol=0.03)


def test_a_draw_depends_on_seed_sequence_and_step_alone():
    draws = Draws(3, 1)
    assert [draws.at(step) for step in (5, 0, 5)] == [Draws(3, 1).at(step) for step in (5, 0, 5)]
    values = {Draws(seed, number).at(step) for seed in (0, 1, 2**62) for number in (0, 1) for step in range(3)}
    assert len(values) == 18


def test_tiny_temperature_is_greedy_and_warns_of_nothing():
    with np.errstate(all="raise", under="ignore"):
        logits = np.array([1.0, 30.0, 29.9], np.float32)
        assert choose(logits, config(temperature=1e-30), History(), 0.999999) == 1


def test_explain_shows_the_distribution_after_every_step_in_order():
    settings = config(temperature=0.5, top_k=3, top_p=0.9, min_p=0.01, presence_penalty=1.0)
    stages = explain(np.array([1.0, 2.0, 3.0, 0.0]), settings, History(new=[2]))
    assert [stage.name for stage in stages] == [
        "model",
        "constraint",
        "logit_bias",
        "bad_words",
        "no_unknown",
        "no_repeat_ngram",
        "min_new_tokens",
        "repetition_penalty",
        "frequency_and_presence",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ]
    assert [stage.name for stage in stages if stage.changed] == [
        "model",
        "frequency_and_presence",
        "temperature",
        "top_k",
        "top_p",
    ]
    for stage in stages:
        np.testing.assert_allclose(stage.probabilities.sum(), 1.0)
    np.testing.assert_allclose(stages[0].probabilities, softmax(np.array([1.0, 2.0, 3.0, 0.0])))
    assert [index for index, _ in stages[-1].top(2)] == [1, 2]
    assert np.count_nonzero(stages[10].probabilities) == 3


def test_explain_of_greedy_ends_with_one_token():
    stages = explain(np.array([1.0, 2.0]), config(temperature=0))
    assert stages[-1].name == "greedy" and stages[-1].probabilities.tolist() == [0.0, 1.0]


def test_nothing_left_to_choose_from_is_said_plainly():
    with pytest.raises(InputError, match="no token is left to choose from"):
        choose(np.zeros(2), config(no_repeat_ngram=1), History(prompt=(0, 1)), 0.5)
    with pytest.raises(InputError, match="logits are not finite"):
        choose(np.array([np.nan, 1.0]), config(), History(), 0.5)


def test_ids_outside_the_vocabulary_are_refused_by_the_setting():
    with pytest.raises(InputError, match="sampling.stop_ids names token 9: the vocabulary has 0 to 8"):
        check_ids(config(stop_ids=(9,)), 9)
    with pytest.raises(InputError, match="sampling.logit_bias names token -1"):
        check_ids(config(logit_bias={-1: 1.0}), 9)


# --------------------------------------------------------------------------------------- settings at their extremes

HOSTILE = st.one_of(
    st.floats(),
    st.floats(width=32),
    st.integers(),
    st.sampled_from(
        [
            1e-320,
            -1e-320,
            5e-324,
            1e-45,
            2.0**-127,
            -0.0,
            1e308,
            -1e308,
            3.5e38,
            10**400,
            -(10**400),
            2**63,
            2**31,
            float("nan"),
            float("inf"),
            float("-inf"),
            np.float32("nan"),
            np.float32(1e-45),
            np.int64(3),
            True,
            "1",
            "nan",
        ]
    ),
)


def inside(low: float, high: float):
    """Any number of the range, its ends and the smallest numbers first."""
    if isinstance(low, int):
        return (
            st.sampled_from([low, high, np.int64(low)])
            | st.integers(low, high)
            | st.just(min(float(high), 2.0**31 - 1))
        )
    smallest = [
        value for value in (0.0, -0.0, SMALLEST, -SMALLEST, low, high, np.float32(high)) if low <= value <= high
    ]
    return st.sampled_from(smallest) | st.floats(low, high).map(lambda value: value if abs(value) >= SMALLEST else low)


def settings(numbers) -> st.SearchStrategy:
    """Any of all settings, each from ``numbers(low, high)``."""
    ranges = {
        **SAMPLING_RANGES,
        "top_p": (SMALLEST, 1.0),
        "max_new_tokens": (4, 2**31 - 1),
        "min_new_tokens": (0, 4),
        "num_return_sequences": (1, 1),
        "seed": (0, 2**31),
    }
    bias = st.dictionaries(st.integers(0, 7), numbers(-100.0, 100.0), max_size=3)
    return st.fixed_dictionaries(
        {}, optional={**{name: numbers(*bounds) for name, bounds in ranges.items()}, "logit_bias": bias}
    )


def logits_of_any_size() -> st.SearchStrategy:
    most = float(np.finfo(np.float32).max)
    values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([most, -most, 0.0, 1.0])
    return st.lists(values, min_size=8, max_size=40).map(lambda values: np.array(values, np.float32))


@given(
    logits_of_any_size(), settings(inside), st.lists(st.integers(0, 5), max_size=6), st.floats(0, 1, exclude_max=True)
)
def test_every_setting_inside_its_range_chooses_a_token_from_any_finite_logits(logits, values, seen, random):
    with np.errstate(all="raise", under="ignore"):
        chosen = choose(logits, SamplingConfig(**values), History(seen[:2], seen[2:], ends=(0,)), random)
    assert 0 <= chosen < logits.size


@given(
    logits_of_any_size(),
    settings(lambda low, high: inside(low, high) | HOSTILE),
    st.lists(st.integers(0, 5), max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_a_hostile_setting_is_refused_in_one_line_or_chooses_a_token(logits, values, seen, random):
    try:
        made = SamplingConfig(**values)
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("sampling.") and len(str(error)) < 250
    else:
        assert 0 <= choose(logits, made, History(seen[:2], seen[2:], ends=(0,)), random) < logits.size


@pytest.mark.parametrize("name", [name for name, (low, _) in SAMPLING_RANGES.items() if isinstance(low, float)])
@pytest.mark.parametrize(
    "value",
    [1e-320, float("nan"), float("inf"), -1e308, 10**400, 10**5000, "1", True],
    ids=["subnormal", "nan", "inf", "huge", "400 digits", "5000 digits", "text", "bool"],
)
def test_what_fp32_cannot_hold_is_refused_with_setting_value_and_range(name, value):
    low, high = SAMPLING_RANGES[name]
    with pytest.raises(InputError, match=rf"^sampling\.{name}=.*between {low} and {high}$"):
        SamplingConfig(**{name: value})


def test_a_penalty_that_leaves_fp32_forbids_nothing_and_allows_nothing_that_was_forbidden():
    most = np.finfo(np.float32).max
    logits = np.array([most, -most, 1.0, -np.inf], np.float32)
    for penalty in (0.01, 100.0):
        found = sampling.repetition_penalty(logits, config(repetition_penalty=penalty), History([0, 1, 2, 3]))
        assert np.isfinite(found[:3]).all() and found[3] == -np.inf


def test_the_lowest_temperature_is_greedy():
    logits = np.array([0.5, 0.500001, -3.0], np.float32)
    assert {choose(logits, config(temperature=SMALLEST), History(), random) for random in (0, 0.5, 0.999)} == {1}
