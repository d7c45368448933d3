"""The cached network: equal to an independent implementation, however the text is fed and wherever it is kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import network_runner
from tests.generate.fakes import random_weights, small_config

PARITY = {"gelu": "parity_small.npz", "fast_gelu": "parity_small_quick.npz"}


@pytest.fixture(scope="module", params=PARITY)
def parity(request, data_folder):
    """A runner over the reference's weights, its ids and its logits."""
    weights = np.load(data_folder / "parity" / "parity_small.npz")
    expected = np.load(data_folder / "parity" / PARITY[request.param])
    config = ModelConfig(
        vocab_size=331, num_positions=48, hidden_size=64, num_layers=4, num_heads=4, hidden_act=request.param
    )
    named = {name[2:]: weights[name] for name in weights.files if name.startswith("w/")}
    return network_runner(named, config, slots=96), expected["ids"], expected["logits"]


def test_prefill_gives_the_logits_of_the_independent_implementation(parity):
    runner, ids, logits = parity
    positions = np.tile(np.arange(48), (2, 1))
    slots = positions + np.array([[0], [48]])
    found = runner.run(ids, positions, slots, slots, np.arange(96)).reshape(logits.shape)
    np.testing.assert_allclose(found, logits, rtol=0, atol=2e-5)


def test_tokens_fed_one_by_one_give_the_same_logits(parity):
    runner, ids, logits = parity
    slots = np.random.default_rng(0).permutation(96)[:48][None]  # anywhere in the cache
    runner.run(ids[:1, :20], np.arange(20)[None], slots[:, :20], slots[:, :20])
    for place in range(20, 48):
        found = runner.run(
            ids[:1, place : place + 1], np.array([[place]]), slots[:, place : place + 1], slots[:, : place + 1]
        )
        np.testing.assert_allclose(found[0], logits[0, place], rtol=0, atol=2e-5)


def test_sequences_of_different_lengths_in_one_call_do_not_touch_each_other(parity):
    runner, ids, logits = parity
    slots = np.stack([np.arange(48), np.arange(48, 96)])
    for sequence, length in ((0, 11), (1, 37)):
        own = slots[sequence : sequence + 1, :length]
        runner.run(ids[sequence : sequence + 1, :length], np.arange(length)[None], own, own)
    for step in range(5):
        positions = np.array([[11 + step], [37 + step]])
        new = np.take_along_axis(ids, positions, 1)
        found = runner.run(new, positions, np.take_along_axis(slots, positions, 1), slots)
        np.testing.assert_allclose(found, logits[[0, 1], positions[:, 0]], rtol=0, atol=2e-5)


def test_texts_that_begin_alike_can_share_that_part_of_the_cache(parity):
    runner, ids, logits = parity
    shared, other = np.arange(10), np.arange(50, 60)
    runner.run(ids[:1, :10], np.arange(10)[None], shared[None], shared[None])
    changed = ids[0].copy()
    changed[10] = (changed[10] + 1) % 331
    read = np.stack([np.concatenate([shared, [20]]), np.concatenate([shared, other[:1]])])
    found = runner.run(np.array([[ids[0, 10]], [changed[10]]]), np.full((2, 1), 10), read[:, -1:], read)
    alone = np.arange(60, 71)[None]
    wanted = runner.run(changed[None, :11], np.arange(11)[None], alone, alone)
    np.testing.assert_allclose(found[0], logits[0, 10], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[1], wanted[0], rtol=0, atol=2e-5)


def test_the_exact_gelu_differs_a_little_from_the_approximate_one(tokenizer):
    config = small_config(tokenizer.vocab_size)
    exact = dataclasses.replace(config, hidden_act="gelu_erf")
    weights, ids, place = random_weights(config), np.array([[3, 9, 4]]), np.arange(3)[None]
    found = [network_runner(weights, item).run(ids, place, place, place) for item in (config, exact)]
    assert 0 < np.abs(found[0] - found[1]).max() < 0.2


def test_weights_of_another_model_are_refused_by_the_parameter(tokenizer):
    config = small_config(tokenizer.vocab_size)
    weights = random_weights(config)
    with pytest.raises(InputError, match="the weights lack backbone.blocks.2.layernorm1.gamma"):
        network_runner(weights, dataclasses.replace(config, num_layers=4))
    with pytest.raises(InputError, match="word_embedding.embedding_table has shape"):
        network_runner(weights, dataclasses.replace(config, vocab_size=20))
    with pytest.raises(InputError, match="hold backbone.blocks.1.layernorm1.gamma, which"):
        network_runner(weights, dataclasses.replace(config, num_layers=2))
    with pytest.raises(InputError, match="slots=8 must be at least model.num_positions=32"):
        network_runner(weights, config, slots=8)
