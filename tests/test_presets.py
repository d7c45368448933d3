"""Every preset builds, says its true size, and the published ones match the lists of released parameters."""

from __future__ import annotations

import json
import math

import pytest

from pangu_lab.config import RunConfig, config_from_dict
from pangu_lab.errors import InputError
from pangu_lab.presets import ALIASES, PRESETS, describe, preset

# Counted from the architecture: (vocabulary + 2 × 1024) × h + layers × (12 h² + 13 h) + 2 h.
PUBLISHED = {"350M": 345_368_576, "0.26B": 244_598_784, "2.6B": 2_625_295_360, "13B": 12_800_870_400}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_under_its_name_and_survives_plain_values(name):
    config = preset(name)
    assert isinstance(config, RunConfig) and config.preset == name
    assert config_from_dict(config.to_dict()) == config
    assert PRESETS[name].__doc__ or name == "self_define"


@pytest.mark.parametrize("name, count", PUBLISHED.items())
def test_published_sizes_have_their_true_parameter_count(name, count):
    assert preset(name).model.num_parameters == count


@pytest.mark.parametrize("name, billions", [("1.3B", 1.3), ("200B", 207), ("2.6B_moe36", 59.5)])
def test_sizes_without_a_released_list_are_what_their_name_says(name, billions):
    assert preset(name).model.num_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_active_parameters_of_a_mixture_are_those_of_the_dense_size_and_its_routers():
    for name, dense in (("tiny_moe", "tiny"), ("2.6B_moe36", "2.6B")):
        model = preset(name).model
        routers = len(model.moe_layers) * model.hidden_size * model.num_experts
        assert model.active_parameters == preset(dense).model.num_parameters + routers


@pytest.mark.parametrize("name", ["350M", "2.6B", "13B"])
def test_parameter_counts_equal_the_sum_of_released_shapes(name, data_folder):
    listed = json.loads((data_folder / "released" / f"released_{name}_params.json").read_text(encoding="utf-8"))
    shapes = listed.values() if isinstance(listed, dict) else [row["shape"] for row in listed]
    assert preset(name).model.num_parameters == sum(math.prod(shape) for shape in shapes)


def test_the_reference_name_of_a_mislabelled_size_is_an_alias_that_says_so():
    assert preset("reference-1.3B") == preset("0.26B")
    assert "244,598,784" in describe("reference-1.3B") and "the reference calls" in describe("reference-1.3B")
    assert "the reference calls" not in describe("1.3B")
    assert all(target in PRESETS and alias not in PRESETS for alias, target in ALIASES.items())


@pytest.mark.parametrize("name", PRESETS)
def test_descriptions_are_one_line_with_the_true_count(name):
    line = describe(name)
    assert "\n" not in line and f"{preset(name).model.num_parameters:,} parameters" in line


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"unknown preset 'tinny' \(did you mean 'tiny'\?\); there are debug"):
        preset("tinny")


def test_200b_fills_2048_devices_as_published():
    parallel = preset("200B").parallel
    assert (parallel.pipeline, parallel.tensor, parallel.data, parallel.world_size) == (16, 8, 16, 2048)
