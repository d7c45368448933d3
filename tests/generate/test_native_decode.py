"""Decode steps by the C kernels: the graph's logits, the same bits in any company, and what happens without them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import network_runner
from pangu_lab.generate.native import Trust
from pangu_lab.model.parameters import initial_weights
from pangu_lab.ops.native import decode

pytestmark = pytest.mark.skipif(decode.library() is None, reason="no C compiler here")
CONFIG = ModelConfig(101, 48, 40, 2, 4, hidden_act="gelu", dropout_rate=0.0)  # 40, 101: nothing fills whole vectors
PROMPT = np.array([[5, 9, 2, 77, 31]])


def runner_of(config: ModelConfig = CONFIG, slots: int = 96):
    weights = {
        name: 8 * value if name.endswith("weight") else value for name, value in initial_weights(config, 3).items()
    }
    return network_runner(weights, config, slots)


@pytest.fixture(scope="module")
def runner():
    runner = runner_of()
    at = np.arange(PROMPT.shape[1])[None]
    runner.run(PROMPT, at, at, at)
    return runner


def token(runner, index: int, position: int = 5, batch: int = 1):
    """The next token of ``batch`` sequences that share their prompt: (batch, vocab)."""
    write = 5 + np.arange(batch)[:, None]
    read = np.concatenate([np.tile(np.arange(5), (batch, 1)), write], 1)
    return runner.run(index + np.arange(batch)[:, None], np.full((batch, 1), position), write, read)


def test_a_sequence_gets_the_same_bits_alone_and_in_company(runner):
    together = {batch: token(runner, 7, batch=batch) for batch in (*range(1, 9), 16)}
    for batch, logits in together.items():
        np.testing.assert_array_equal(logits, together[16][:batch])


def feed(runner, ids, start=0, rows=None):
    """Tokens of some sequences from position ``start`` on, each sequence with 20 slots of its own."""
    batch, n = ids.shape
    at = start + np.tile(np.arange(n), (batch, 1))
    slots = 20 * np.arange(batch)[:, None] + (np.arange(start + n) * 7) % 20  # in no order
    return runner.run(ids, at, slots[:, start:], slots, rows)


def cache_of(runner):
    return {name: value.copy() for name, value in runner._native._arrays.items() if ".cache." in name}


@pytest.mark.parametrize("activation", ["gelu", "gelu_erf", "fast_gelu"])
def test_prompts_give_the_graphs_logits_and_cache(activation, monkeypatch):
    made = runner_of(dataclasses.replace(CONFIG, hidden_act=activation))
    ids = np.random.default_rng(1).integers(0, 101, (3, 17))
    for rows in (None, np.arange(51), np.array([50, 3, 20]), np.arange(9, 40)):
        found = feed(made, ids, rows=rows)
        assert made._native.prompts.value
        kept = cache_of(made)
        with monkeypatch.context() as patch:
            patch.setattr(made._native.prompts, "value", False)
            expected = feed(made, ids, rows=rows)
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
        for name, value in cache_of(made).items():
            np.testing.assert_allclose(kept[name], value, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name)


@pytest.mark.parametrize("batch", [2, 8])  # 8: the whole has more rows than are multiplied turned, the parts fewer
def test_a_prompt_fed_in_parts_leaves_the_bits_of_one_fed_whole(batch):
    runner = runner_of(slots=160)
    ids = np.random.default_rng(2).integers(0, 101, (batch, 18))
    runner._native.prompts.value = True
    whole = feed(runner, ids)
    kept = cache_of(runner)
    feed(runner, ids[:, :7])
    parts = feed(runner, ids[:, 7:], start=7)
    np.testing.assert_array_equal(parts, whole)
    for name, value in cache_of(runner).items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_a_nan_in_the_cache_reaches_the_logits(runner):
    keys = next(value for name, value in runner._native._arrays.items() if name.endswith("cache.keys"))
    saved, keys[2] = keys[2].copy(), np.nan
    found = token(runner, 7)
    keys[2] = saved
    assert np.isnan(found).all() and np.isfinite(token(runner, 7)).all()


def test_what_lies_outside_the_arrays_is_refused(runner):
    token(runner, 7)
    with pytest.raises(InputError, match="a token of a decode step is outside 0 to 100"):
        token(runner, 101)
    with pytest.raises(InputError, match="a position of a decode step is outside 0 to 5"):
        token(runner, 7, position=6)
    runner._native.prompts.value = True
    with pytest.raises(InputError, match="a row of a decode step is outside 0 to 33"):
        feed(runner, np.ones((2, 17), int), rows=np.array([34]))


def test_a_step_that_differs_from_the_graphs_is_not_taken(runner, caplog):
    by_graph, trust = np.ones((1, 3)), Trust()
    assert np.array_equal(trust.check(lambda: by_graph + 1, lambda: by_graph), by_graph)
    assert trust.value is False and "the graph is used" in caplog.text
    trust.check(lambda: by_graph, lambda: by_graph)
    assert trust.value


def test_without_the_kernels_the_graph_writes_the_same(monkeypatch, runner):
    found = token(runner, 7)
    monkeypatch.setattr(decode, "library", lambda: None)
    plain = runner_of()
    at = np.arange(5)[None]
    plain.run(PROMPT, at, at, at)
    np.testing.assert_allclose(token(plain, 7), found, atol=1e-5 * np.abs(found).max())
    with pytest.raises(InputError, match="int8 weights need the C kernels"):
        plain.use_int8()


def test_with_int8_the_graph_and_the_kernels_hold_one_rounded_model(monkeypatch):
    runner = runner_of()
    at = np.arange(5)[None]
    before = runner.run(PROMPT, at, at, at)
    runner.use_int8()
    after = runner.run(PROMPT, at, at, at)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    native = token(runner, 7)
    monkeypatch.setattr(runner, "_native", None)
    np.testing.assert_allclose(native, token(runner, 7), atol=1e-5 * max(1.0, np.abs(native).max()))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 130), st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30))
def test_bytes_and_factors_give_every_weight_back_to_half_a_step(out, width, seed, size):
    weight = (np.random.default_rng(seed).standard_normal((out, width)) * size).astype(np.float32)
    rounded = weight.copy()
    quantised, scale = decode.quantise(rounded)
    np.testing.assert_allclose(rounded, weight, atol=0.5001 * scale.max())
    assert np.abs(quantised).max() <= 127
    np.testing.assert_array_equal(np.abs(quantised).max(1), 127)
