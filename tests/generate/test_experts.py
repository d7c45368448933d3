"""A mixture of experts in the cached network: the training network's logits, fed whole or token by token, and exported."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.config import SamplingConfig
from pangu_lab.export import export_bundle, load_bundle
from pangu_lab.generate import engine_from_weights, generate, network_runner
from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts
from pangu_lab.model.pangu import Weights as Made
from pangu_lab.tokenizer import load_tokenizer
from tests.generate.fakes import random_weights, small_config

ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("choices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_whole_and_token_by_token_the_logits_are_those_of_the_training_network(tokenizer, choices):
    config = dataclasses.replace(small_config(tokenizer.vocab_size), num_experts=4, experts_per_token=choices,
                                 dropout_rate=0.0)
    weights = random_weights(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12)).astype(np.int32)
    positions = np.tile(np.arange(12, dtype=np.int32), (2, 1))
    want = PanguLogits(PanguStage(Parts(config, Made(weights), seq_length=12)))(Tensor(ids), Tensor(positions)).asnumpy()
    runner = network_runner(weights, config, slots=64)
    slots = positions + np.array([[0], [12]])
    found = runner.run(ids, positions, slots, slots, np.arange(24)).reshape(want.shape)
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-5)
    for place in range(9, 12):
        found = runner.run(ids[:1, place:place + 1], np.array([[place]]), slots[:1, place:place + 1], slots[:1, :place + 1])
        np.testing.assert_allclose(found[0], want[0, place], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_an_exported_mixture_writes_the_tokens_of_the_python_engine(debug_data, tmp_path):
    tokenizer = load_tokenizer(str(debug_data / "tokenizer"))
    config = dataclasses.replace(small_config(tokenizer.vocab_size), num_experts=4, experts_per_token=2, moe_every=2)
    weights = random_weights(config)
    greedy = SamplingConfig(temperature=0, max_new_tokens=12, min_new_tokens=12)
    here = generate(engine_from_weights(weights, config, tokenizer, slots=64), "春天来了", greedy)
    export_bundle(weights, config, tokenizer, tmp_path / "bundle", slots=64)
    there = generate(load_bundle(tmp_path / "bundle"), "春天来了", greedy)
    assert there.ids == here.ids and len(here.ids) >= 12
