"""The network against an independent implementation's logits, and the properties its definition promises."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.config import ModelConfig
from pangu_lab.model.pangu import PanguLogits, PanguLoss, PanguStage, Parts, Weights
from pangu_lab.model.parameters import initial_weights, parameter_specs
from pangu_lab.presets import PRESETS, preset

ms.set_context(mode=ms.GRAPH_MODE)
PARITY = ModelConfig(vocab_size=331, num_positions=48, hidden_size=64, num_layers=4, num_heads=4, dropout_rate=0.0)


@pytest.mark.parametrize("file,activation", [("parity_small.npz", "gelu"), ("parity_small_quick.npz", "fast_gelu")])
def test_logits_equal_the_independent_implementation(data_folder, file, activation):
    weights = np.load(data_folder / "parity" / "parity_small.npz")
    reference = np.load(data_folder / "parity" / file)
    config = ModelConfig(**{**PARITY.__dict__, "hidden_act": activation})
    arrays = {name[2:]: weights[name] for name in weights.files if name.startswith("w/")}
    positions = np.tile(np.arange(48, dtype=np.int32), (2, 1))
    logits = PanguLogits(PanguStage(Parts(config, Weights(arrays))))(Tensor(reference["ids"]), Tensor(positions))
    assert np.abs(logits.asnumpy() - reference["logits"]).max() < 2e-5


def logits_of(config, ids, positions):
    net = PanguLogits(PanguStage(Parts(config, Weights(initial_weights(config, 5)), seq_length=ids.shape[1])))
    return net(Tensor(ids), Tensor(positions)).asnumpy()


def test_a_document_in_a_packed_record_is_computed_as_if_it_stood_alone():
    config = preset("debug").model
    ids = np.random.default_rng(0).integers(10, 500, (1, 12)).astype(np.int32)
    packed = logits_of(config, ids, np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]], np.int32))
    alone = logits_of(config, ids[:, 5:], np.arange(7, dtype=np.int32)[None])
    assert np.allclose(packed[:, 5:], alone, atol=1e-5)


def test_a_token_changes_nothing_before_it():
    config = preset("debug").model
    ids = np.random.default_rng(0).integers(10, 500, (1, 12)).astype(np.int32)
    positions = np.arange(12, dtype=np.int32)[None]
    changed = ids.copy()
    changed[0, 8] = 9
    before, after = logits_of(config, ids, positions), logits_of(config, changed, positions)
    assert np.allclose(before[:, :8], after[:, :8], atol=1e-6)
    assert np.abs(before[:, 8:] - after[:, 8:]).max() > 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameter_table_holds_what_the_configuration_counts(name):
    config = preset(name).model
    assert sum(spec.size for spec in parameter_specs(config).values()) == config.num_parameters


@pytest.mark.parametrize("name", ["350M", "2.6B", "13B"])
def test_names_and_shapes_are_those_of_the_release(data_folder, name):
    import json

    published = json.loads((data_folder / "released" / f"released_{name}_params.json").read_text())
    ours = {key: list(spec.shape) for key, spec in parameter_specs(preset(name).model).items()}
    assert ours == published


def test_the_loss_is_the_weighted_sum_of_negative_log_likelihoods():
    config = preset("debug").model
    random = np.random.default_rng(1)
    ids, labels = random.integers(0, 512, (2, 2, 16)).astype(np.int32)
    positions, weights = np.tile(np.arange(16, dtype=np.int32), (2, 1)), random.random((2, 16)).astype(np.float32)
    logits = logits_of(config, ids, positions).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -(np.take_along_axis(log_probs, labels[..., None], -1)[..., 0] * weights).sum()
    net = PanguLoss(PanguStage(Parts(config, Weights(initial_weights(config, 5)), seq_length=16)))
    samples = np.arange(2, dtype=np.int32)
    got = net(*[Tensor(a) for a in (ids, positions, samples, labels, weights)]).asnumpy()
    assert np.isclose(got, want, rtol=1e-5)


def test_starting_values_depend_on_seed_and_name_alone():
    config = preset("debug").model
    first, again, other = initial_weights(config, 1), initial_weights(config, 1), initial_weights(config, 2)
    name = "backbone.blocks.0.attention.dense1.weight"
    assert (first[name] == again[name]).all() and (first[name] != other[name]).any()
    assert abs(first[name].std() - config.init_std) < 0.002
