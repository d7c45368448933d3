"""Checkpoint folders: whole or refused by name, and readable across layouts."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint, latest_checkpoint, list_checkpoints, save_checkpoint
from pangu_lab.checkpoint.folder import Damaged, step_folder, write_manifest, write_shard
from pangu_lab.errors import InputError
from pangu_lab.presets import preset


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((6, 4)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float16),
        "c": np.array(3, np.int32),
    }


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
        write_shard(
            tmp_path, rank, {"w": whole[2 * rank : 2 * rank + 2], "same": whole[0]}, {"w": ((8, 6), (2 * rank, 0))}
        )
    write_manifest(tmp_path, {"step": 0}, preset("debug"))
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.read("w") == whole).all() and (checkpoint.read("same") == whole[0]).all()
    assert (checkpoint.read("w", (3, 2), (4, 3)) == whole[3:7, 2:5]).all()  # across shards, another axis too


def test_a_gap_between_shards_is_refused(tmp_path):
    write_shard(tmp_path, 0, {"w": np.zeros((2, 3), np.float32)}, {"w": ((4, 3), (0, 0))})
    write_manifest(tmp_path, {"step": 0}, preset("debug"))
    with pytest.raises(InputError, match="do not cover"):
        Checkpoint(tmp_path).read("w")


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path):
    for step in (1, 2, 2):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "12",
        "null",
        '{"format": 1}',
        '{"format": "1", "files": {}}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {"state.json": 3}}',
        '{"format": 1, "files": {"state.json": {}, "config.yaml": {}}}',
        "{",
        '{"format": 1, "files": {"state.json": {"size": 1, "sha256": "0"}}}',
        '{"format": 1, "files": {"config.yaml": {"size": 1, "sha256": "0"}, '
        '"state.json": {"size": "1", "sha256": 0}, "../x": {"size": 1, "sha256": ""}}}',
    ],
)
def test_a_manifest_of_another_shape_is_a_damaged_checkpoint(tmp_path, content):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(content)
    with pytest.raises(Damaged, match="manifest.json"):
        Checkpoint(step_folder(tmp_path, 2))
    warnings = []
    assert latest_checkpoint(tmp_path, warnings.append).step == 1 and "step-00000002" in warnings[0]


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = {"size": 0, "sha256": ""}
    path.write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="'../outside'"):
        Checkpoint(path.parent)


@pytest.mark.parametrize("state", ["[]", '{"step": "4"}', "{"])
def test_a_state_of_another_shape_is_a_damaged_checkpoint(tmp_path, state):
    path = save(tmp_path, 1)
    (path / "state.json").write_text(state)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="state.json"):
        Checkpoint(path)


def test_a_shard_that_is_none_is_a_damaged_checkpoint(tmp_path):
    path = save(tmp_path, 1)
    (path / "shard-00000.safetensors").write_bytes(b"no shard")
    (path / "manifest.json").unlink()
    write_manifest(path, {"step": 1}, preset("debug"))
    with pytest.raises(Damaged, match="shard-00000.safetensors: not a shard"):
        Checkpoint(path)


def test_a_newer_format_is_not_called_damaged(tmp_path):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text('{"format": 2, "pieces": []}')
    with pytest.raises(InputError, match="format 2 is not known") as caught:
        Checkpoint(path)
    assert not isinstance(caught.value, Damaged)


def test_only_names_that_are_exactly_ours_are_listed_and_in_the_order_of_their_numbers(tmp_path):
    for step in (99_999_999, 100_000_000, 7, 1_000_000_000):
        step_folder(tmp_path, step).mkdir()
    for name in (
        "best-step-00000004",
        "step-00000004.damaged",
        "step-4",
        "step-000000004",
        "step-00000004-copy",
        ".step-00000004.shards",
        "step-0000000٤",
        "step-00000005\n",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000006").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000007",
        "step-99999999",
        "step-100000000",
        "step-1000000000",
    ]
