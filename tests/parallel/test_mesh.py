"""Coordinates, groups and stages of the mesh, and the layouts it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import parameter_specs
from pangu_lab.parallel.mesh import Mesh, check_layout
from pangu_lab.parallel.sharding import is_owner, parameter_shards
from pangu_lab.presets import preset

LAYOUT = ParallelConfig(pipeline=2, data=3, tensor=4, micro_batches=2)


def test_every_rank_has_its_own_coordinates_and_finds_itself_again():
    places = [tuple(Mesh(LAYOUT, rank).coordinates.values()) for rank in range(24)]
    assert len(set(places)) == 24
    assert all(Mesh(LAYOUT, 5).rank_at(**Mesh(LAYOUT, rank).coordinates) == rank for rank in range(24))


def test_groups_partition_the_world_and_tensor_ranks_are_neighbours():
    for dimensions in (("tensor",), ("data",), ("pipeline",), ("pipeline", "tensor")):
        groups = {tuple(Mesh(LAYOUT, rank).group(*dimensions)) for rank in range(24)}
        assert sorted(rank for group in groups for rank in group) == list(range(24))
    assert Mesh(LAYOUT, 5).group("tensor") == [4, 5, 6, 7]


def test_stages_hold_all_layers_once_and_evenly():
    for stages in range(1, 8):
        layers = [Mesh(ParallelConfig(pipeline=stages, micro_batches=stages), rank).layers(7) for rank in range(stages)]
        assert [i for stage in layers for i in stage] == list(range(7))
        assert max(map(len, layers)) - min(map(len, layers)) <= 1


def test_every_element_of_every_parameter_counts_once_in_the_norm():
    config = preset("debug").model
    specs = parameter_specs(config)
    layout = ParallelConfig(pipeline=2, tensor=2, micro_batches=2)
    counted = {name: np.zeros(spec.shape, int) for name, spec in specs.items()}
    for rank in range(4):
        mesh = Mesh(layout, rank)
        for name, shard in parameter_shards(specs, mesh, config.num_layers).items():
            if is_owner(specs[name], mesh):
                shard.of(counted[name])[...] += 1
    assert all((count == 1).all() for count in counted.values())


@pytest.mark.parametrize(
    "change,key",
    [
        ({"parallel.tensor": 3}, "model.num_heads"),
        ({"parallel.tensor": 4, "model.vocab_size": 510}, "model.vocab_size"),
        ({"parallel.pipeline": 8, "parallel.micro_batches": 8, "data.batch_size": 8}, "parallel.pipeline"),
        ({"parallel.pipeline": 4, "parallel.micro_batches": 2}, "parallel.micro_batches"),
        (
            {"parallel.tensor": 3, "model.num_heads": 6, "model.hidden_size": 48, "model.vocab_size": 513},
            "power of two",
        ),
    ],
)
def test_an_impossible_layout_is_refused_by_its_key_in_one_line(change, key):
    with pytest.raises(InputError, match=key) as caught:
        check_layout(preset("debug").replace(**change))
    assert "\n" not in str(caught.value)


def test_ascend_wants_powers_of_two_of_data_ranks_and_others_do_not():
    three = preset("debug").replace(**{"parallel.data": 3, "data.batch_size": 6})
    check_layout(three)
    with pytest.raises(InputError, match="parallel.data=3 must be a power of two on Ascend: take 2 or 4"):
        check_layout(three, powers_of_two=True)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(InputError, match="rank 24"):
        Mesh(LAYOUT, 24)
