"""Pipeline stages: one after the other they are the whole network, and each has only its own layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.runner import network_runner
from pangu_lab.model.inference import check_split, inference_shapes
from pangu_lab.parallel.mesh import Mesh
from tests.generate.fakes import random_weights, small_config

SLOTS = 64
CONFIG = dataclasses.replace(small_config(48), num_layers=4)


@pytest.fixture(scope="module")
def network():
    """Weights of four layers, and the runner of one process."""
    weights = random_weights(CONFIG)
    return weights, network_runner(weights, CONFIG, SLOTS)


def runners(weights, count):
    return [
        network_runner(weights, CONFIG, SLOTS, Mesh(ParallelConfig(pipeline=count), stage)) for stage in range(count)
    ]


def through(stages, *arrays):
    """A call as the front end makes it: each stage gets what the one before made."""
    x, *rest = arrays
    for runner in stages:
        x = runner.call(x, *rest)
    return x


@pytest.mark.parametrize("count", [2, 3])
def test_stages_in_turn_give_the_logits_of_one_process(network, count):
    weights, whole = network
    stages = runners(weights, count)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 7))
    positions = np.tile(np.arange(6), (2, 1))
    slots = np.arange(14).reshape(2, 7)
    calls = [
        (ids[:, :6], positions, slots[:, :6], slots[:, :6], np.array([5, 11])),
        (ids[:, 6:], np.full((2, 1), 6), slots[:, 6:], slots, np.arange(2)),
        (ids[:1, 6:], np.full((1, 1), 6), slots[:1, 6:], slots[:1], np.arange(1)),
    ]  # by the graph of one token
    for arrays in calls:
        np.testing.assert_allclose(through(stages, *arrays), whole.call(*arrays), rtol=0, atol=1e-5)


def test_stages_in_half_precision_give_nearly_the_same(network):
    weights, whole = network
    stages = [
        network_runner(weights, CONFIG, SLOTS, Mesh(ParallelConfig(pipeline=2), stage), "float16") for stage in range(2)
    ]
    arrays = (np.arange(6)[None], *[np.arange(6)[None]] * 3, np.arange(6))
    wanted = whole.call(*arrays)
    difference = np.abs(through(stages, *arrays) - wanted).max() / np.abs(wanted).max()
    assert 0 < difference < 0.01
    kinds = {parameter.name: str(parameter.dtype) for parameter in stages[1]._graph.get_parameters()}
    assert kinds["backbone.top_query_layer.output.mapping.weight"] == "Float16" and {*kinds.values()} == {
        "Float16",
        "Float32",
    }


def test_a_stage_holds_the_parameters_of_its_layers_alone(network):
    weights, whole = network
    held = [
        {parameter.name: parameter.shape for parameter in runner._graph.get_parameters()}
        for runner in runners(weights, 3)
    ]
    for stage, shapes in enumerate(held):
        assert shapes == inference_shapes(CONFIG, SLOTS, Mesh(ParallelConfig(pipeline=3), stage))
    everything = {parameter.name for parameter in whole._graph.get_parameters()}
    assert set().union(*held) == everything
    assert sum(map(len, held)) == len(everything) + 1  # the word embedding is on the first and on the last


def test_more_stages_than_layers_are_refused():
    with pytest.raises(InputError, match="5 pipeline stages are more than model.num_layers=4"):
        check_split(CONFIG, 1, 5)
