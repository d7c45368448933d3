"""Looking into the network: what is seen is what the compiled network computes, and parts add up."""

from __future__ import annotations

import dataclasses
import struct

import mindspore as ms
import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.interpret import (
    parameters_by_part,
    plot_attention,
    plot_parameters,
    plot_query_distance,
    query_distance,
    trace,
)
from pangu_lab.model.parameters import QUERY, initial_weights
from pangu_lab.presets import PRESETS, preset

ms.set_context(mode=ms.GRAPH_MODE)
CONFIG = preset("debug").model
WEIGHTS = initial_weights(CONFIG, 5)


@pytest.fixture(scope="module")
def traced():
    ids = np.random.default_rng(0).integers(10, 500, (2, 7))
    return ids, [trace(WEIGHTS, CONFIG, ids[row : row + 1]) for row in (0, 1)]


def test_graphs_go_on_after_a_trace(traced):
    assert ms.get_context("mode") == ms.GRAPH_MODE


def test_dropout_belongs_to_training_and_is_not_seen(traced):
    ids, seen = traced
    training = dataclasses.replace(CONFIG, dropout_rate=0.5)
    assert np.array_equal(trace(WEIGHTS, training, ids[:1])["logits"], seen[0]["logits"])


def test_every_layer_is_seen_with_its_shapes_in_the_order_of_the_data(traced):
    seen = traced[1][0]
    names = list(seen)
    assert names[0] == "embedding" and names[-1] == "logits" and names.index("norm") < names.index("query_layer.norm1")
    assert seen["blocks.2.feed_forward.mapping"].shape == (7, 128) and seen["query_layer"].shape == (7, 32)
    assert seen["logits"].shape == (1, 7, 512) and "blocks.3" not in seen


def test_attention_is_seen_whole_and_never_looks_ahead(traced):
    ids, seen = traced
    both = trace(WEIGHTS, CONFIG, ids)
    for layer in ("blocks.0", "query_layer"):
        found = both[f"{layer}.attention.probabilities"]
        assert found.shape == (2, 4, 7, 7) and np.allclose(found.sum(-1), 1, atol=1e-5)
        assert not np.triu(found, 1).any()
        assert np.allclose(found[1], seen[1][f"{layer}.attention.probabilities"][0], atol=1e-5)


def test_the_query_layer_asks_the_same_whatever_the_text(traced):
    distance = query_distance(*traced[1])
    assert list(distance) == ["blocks.0", "blocks.1", "blocks.2", "query_layer"]
    assert all(distance[f"blocks.{block}"].min() > 0.1 for block in range(3)) and not distance["query_layer"].any()
    prefix = "backbone.top_query_layer.attention.dense1"
    by_hand = WEIGHTS[QUERY][:7] @ WEIGHTS[f"{prefix}.weight"].T + WEIGHTS[f"{prefix}.bias"]
    assert np.abs(by_hand - traced[1][0]["query_layer.attention.query"]).max() < 1e-6


def test_the_picture_of_a_longer_text_is_larger_so_that_its_tokens_can_be_read(tmp_path):
    sizes = []
    for seq in (7, 30):
        seen = trace(WEIGHTS, CONFIG, np.arange(10, 10 + seq)[None])
        wide = plot_query_distance({"query_layer": np.zeros(seq)}, tmp_path / "wide.png")
        both = (plot_attention(seen, ["query_layer"], list("春▃" * 15)[:seq], tmp_path / "large.png"), wide)
        sizes.append([struct.unpack(">II", png.read_bytes()[16:24]) for png in both])
    (short, narrow), (long, wide) = sizes
    assert long[0] > 1.7 * short[0] and long[1] > 1.5 * short[1] and wide[0] > 1.5 * narrow[0] and wide[1] == narrow[1]


@pytest.mark.parametrize("name", ["debug", "tiny_moe", "2.6B", "13B"])
def test_parts_add_up_to_all_parameters(name):
    assert sum(parameters_by_part(PRESETS[name]().model).values()) == preset(name).model.num_parameters


def test_pictures_are_drawn_and_wrong_ids_are_refused(traced, tmp_path):
    for png in (
        plot_parameters({"debug": CONFIG, "tiny_moe": preset("tiny_moe").model}, tmp_path / "a.png"),
        plot_query_distance(query_distance(*traced[1]), tmp_path / "b.png"),
        plot_attention(traced[1][0], ["blocks.0", "query_layer"], list("春天来了我们去"), tmp_path / "c.png"),
    ):
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5_000
    with pytest.raises(InputError, match="at most 64 tokens"):
        trace(WEIGHTS, CONFIG, np.zeros((1, 65), int))
    with pytest.raises(InputError, match="from 0 to 511"):
        trace(WEIGHTS, CONFIG, np.array([[512]]))
