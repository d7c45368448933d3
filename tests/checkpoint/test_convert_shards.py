"""The sharded release, made here in its published form: the real strategy, all 512 files, 2.6B's structure, hidden 512.

512 is the smallest hidden size that 8 tensor-parallel slices × 64 optimizer shards divide. The slicing below is
written from the description of the release, not with the code under test.
"""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.checkpoint.convert import convert_checkpoint
from pangu_lab.checkpoint.mindspore_ckpt import write_ckpt
from pangu_lab.checkpoint.releases import open_source
from pangu_lab.checkpoint.strategy import read_strategy
from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import parameter_specs

MODEL = ModelConfig(vocab_size=96, num_positions=32, hidden_size=512, num_layers=32, num_heads=8)
SETTINGS = {"model.num_heads": 8, "model.hidden_act": "gelu"}
STRATEGY = "pangu_alpha_2.6B_ckpt_strategy.ckpt"
TABLES = ("word_embedding", "position_embedding", "top_query_embedding")
COLUMNS = ("output.mapping.weight",)  # cut along axis 1 by the tensor-parallel index
ROWS = (
    "dense1.weight",
    "dense2.weight",
    "dense3.weight",
    "dense1.bias",
    "dense2.bias",
    "dense3.bias",
    "attention.projection.weight",
    "output.mapping.bias",
    "output.projection.weight",
)


def slice_of(name, value, rank):
    """What rank holds: a tensor-parallel slice (rank % 8), cut again along axis 0 (rank // 8)."""
    if name.endswith(COLUMNS):
        part = np.split(value, 8, axis=1)[rank % 8]
    elif name.endswith(ROWS):
        part = np.split(value, 8, axis=0)[rank % 8]
    else:
        return value
    rows = len(part) // 64
    return part[rank // 8 * rows : (rank // 8 + 1) * rows]


def shard(weights, rank):
    yield "global_step", np.zeros((), np.float32)
    for number, (name, value) in enumerate(weights.items()):
        if "_embedding." not in name:
            piece = slice_of(name, value, rank)
            if number < 40:
                yield f"adam_m.{name}", np.zeros(piece.shape, np.float32)
            yield name, piece


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(1)
    return {
        name: random.standard_normal(spec.shape, np.float32).astype(np.float16)
        for name, spec in parameter_specs(MODEL).items()
    }


@pytest.fixture(scope="module")
def release(tmp_path_factory, data_folder, weights):
    folder = tmp_path_factory.mktemp("release")
    keep, os.fsync = os.fsync, lambda descriptor: None  # 512 small files need not reach the disk
    try:
        for rank in range(512):
            write_ckpt(folder / f"filerted_{rank}.ckpt", shard(weights, rank))
    finally:
        os.fsync = keep
    for name in TABLES:
        np.save(folder / f"{name}.npy", weights[f"backbone.{name}.embedding_table"])
    shutil.copy(data_folder / "released" / STRATEGY, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(release, tmp_path):
    """The same release by hard links: replace a file, never change one."""
    folder = tmp_path / "release"
    shutil.copytree(release, folder, copy_function=os.link)
    return folder


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


@pytest.mark.slow
def test_all_512_shards_are_merged_bit_for_bit(release, tmp_path, weights):
    done = convert_checkpoint(release, tmp_path / "out", overrides=SETTINGS, dtype="float16")
    checkpoint = Checkpoint(tmp_path / "out", verify=False)
    assert checkpoint.tensors.keys() == weights.keys() and done.config.model.num_layers == 32
    for name, value in weights.items():
        got = checkpoint.read(name)
        assert got.dtype == value.dtype and np.array_equal(got, value), name


@pytest.mark.slow
def test_missing_shards_are_named(copy, tmp_path):
    (copy / "filerted_7.ckpt").unlink()
    (copy / "filerted_500.ckpt").unlink()
    with pytest.raises(InputError, match="2 of 512 shards missing: filerted_7.ckpt, filerted_500.ckpt"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_a_truncated_shard_is_named(copy, tmp_path):
    path = copy / "filerted_11.ckpt"
    replace(path, path.read_bytes()[:-10])
    with pytest.raises(InputError, match="filerted_11.ckpt: .*ends in the middle of a value"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_a_shard_under_two_names_is_named(copy, tmp_path):
    os.link(copy / "filerted_3.ckpt", copy / "filerted_03.ckpt")
    with pytest.raises(InputError, match="filerted_03.ckpt and filerted_3.ckpt are both shard 3"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_a_copy_of_another_shard_is_named(copy, tmp_path):
    replace(copy / "filerted_20.ckpt", (copy / "filerted_12.ckpt").read_bytes())
    with pytest.raises(InputError, match="filerted_20.ckpt holds the same weights as filerted_12.ckpt"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_shard_without_a_parameter_is_named(copy, tmp_path, weights):
    write_ckpt(copy / "new", (pair for pair in shard(weights, 2) if pair[0] != "backbone.layernorm.beta"))
    (copy / "new").replace(copy / "filerted_2.ckpt")
    with pytest.raises(InputError, match="filerted_2.ckpt: lacks 'backbone.layernorm.beta'"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_a_strategy_of_another_size_is_refused(copy, tmp_path, data_folder):
    (copy / STRATEGY).unlink()
    other = data_folder / "released" / "pangu_alpha_13B_cktp_strategy.ckpt"
    with pytest.raises(InputError, match="13B_cktp_strategy.ckpt: .*strategy of another model size"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS, strategy=other)
    with pytest.raises(InputError, match="needs its strategy file"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_a_missing_table_is_named(copy, tmp_path):
    (copy / "position_embedding.npy").unlink()
    with pytest.raises(InputError, match="position_embedding.npy is missing"):
        convert_checkpoint(copy, tmp_path / "out", overrides=SETTINGS)


@pytest.mark.slow
def test_one_shard_alone_is_no_release(release):
    with pytest.raises(InputError, match="one shard of many"):
        open_source(release / "filerted_0.ckpt")


@pytest.mark.parametrize("size,layers", [("2.6B_ckpt", 32), ("13B_cktp", 40)])
def test_the_real_strategies_cover_every_published_parameter(data_folder, size, layers):
    import json

    layouts = read_strategy(data_folder / "released" / f"pangu_alpha_{size}_strategy.ckpt")
    published = json.loads((data_folder / "released" / f"released_{size.split('_')[0]}_params.json").read_text())
    assert layouts.keys() == published.keys() and {layout.ranks for layout in layouts.values()} == {512}
    assert sum("attention.dense1.weight" in name for name in layouts) == layers
    for name, shape in published.items():
        layout, shape = layouts[name], tuple(shape)
        piece = layout.tensor_shape(shape)
        if piece[0] % layout.optimizer_shards == 0:  # MindSpore leaves whole what the optimizer shards do not divide
            piece = (piece[0] // layout.optimizer_shards, *piece[1:])
        starts = {layout.offset(rank, shape, piece) for rank in range(512)}
        assert len(starts) * np.prod(piece) == np.prod(shape), name  # disjoint and complete


def test_a_damaged_strategy_is_named(data_folder, tmp_path):
    content = (data_folder / "released" / STRATEGY).read_bytes()
    for broken in (content[:-3], b"nonsense", re.sub(rb"backbone", b"backbune", content)):
        (tmp_path / "x_strategy.ckpt").write_bytes(broken)
        with pytest.raises(InputError, match="x_strategy.ckpt: .*give the strategy file that came with the release"):
            read_strategy(tmp_path / "x_strategy.ckpt")
