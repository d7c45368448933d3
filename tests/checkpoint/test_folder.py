"""Checkpoint folders: whole or refused by name, and readable across layouts."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint, latest_checkpoint, list_checkpoints, save_checkpoint
from pangu_lab.checkpoint.folder import prune_checkpoints, step_folder, write_manifest, write_shard
from pangu_lab.errors import InputError
from pangu_lab.presets import preset


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((6, 4)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float16),
            "c": np.array(3, np.int32)}


def save(folder, step):
    return save_checkpoint(step_folder(folder, step), tensors(step), {"step": step}, preset("debug"))


def test_a_saved_checkpoint_reads_back_bit_for_bit(tmp_path):
    checkpoint = Checkpoint(save(tmp_path, 7))
    for name, value in tensors(7).items():
        got = checkpoint.read(name)
        assert got.dtype == value.dtype and (got == value).all()
    assert checkpoint.step == 7 and checkpoint.config == preset("debug")


def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(tmp_path):
    save(tmp_path, 1)
    shard = save(tmp_path, 2) / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    warnings = []
    assert latest_checkpoint(tmp_path, warnings.append).step == 1
    assert "step-00000002" in warnings[0] and "shard-00000.safetensors" in warnings[0]


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "state.json", "manifest.json", "config.yaml"])
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(InputError, match=name):
        Checkpoint(path)


def test_shards_of_any_layout_give_any_region(tmp_path):
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    for rank in range(4):  # four shards, split over rows
        write_shard(tmp_path, rank, {"w": whole[2 * rank:2 * rank + 2], "same": whole[0]},
                    {"w": ((8, 6), (2 * rank, 0))})
    write_manifest(tmp_path, {"step": 0}, preset("debug"))
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.read("w") == whole).all() and (checkpoint.read("same") == whole[0]).all()
    assert (checkpoint.read("w", (3, 2), (4, 3)) == whole[3:7, 2:5]).all()  # across shards, another axis too


def test_a_gap_between_shards_is_refused(tmp_path):
    write_shard(tmp_path, 0, {"w": np.zeros((2, 3), np.float32)}, {"w": ((4, 3), (0, 0))})
    write_manifest(tmp_path, {"step": 0}, preset("debug"))
    with pytest.raises(InputError, match="do not cover"):
        Checkpoint(tmp_path).read("w")


def test_saving_again_replaces_and_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 3):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
