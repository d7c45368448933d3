"""What a run keeps of its checkpoints: good ones are counted, damaged ones set aside by name, nothing else touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_lab.checkpoint import keeping, list_checkpoints, save_checkpoint
from pangu_lab.checkpoint.folder import step_folder
from pangu_lab.checkpoint.keeping import Keeper
from pangu_lab.errors import InputError
from pangu_lab.presets import preset

ROOT = Path(__file__).resolve().parents[2]


def save(folder, *steps):
    for step in steps:
        tensors = {"a": np.full(1000, step, np.float32)}
        save_checkpoint(step_folder(folder, step), tensors, {"step": step}, preset("debug"))


def names(folder):
    return sorted(os.listdir(folder))


def cut_short(folder, step):
    shard = step_folder(folder, step) / "shard-00000.safetensors"
    os.truncate(shard, shard.stat().st_size // 2)


def flip(folder, step):
    """Damage that neither size nor time tells of."""
    shard = step_folder(folder, step) / "shard-00000.safetensors"
    status, data = shard.stat(), bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def told():
    return []


@pytest.fixture
def keeper(tmp_path, told):
    return Keeper(tmp_path, told.append)


# --------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("damage", [cut_short, flip])
def test_pruning_counts_good_checkpoints_only(tmp_path, keeper, told, damage):
    save(tmp_path, 392, 396, 400)
    damage(tmp_path, 400)
    keeper.prune(1)
    assert names(tmp_path) == ["step-00000396", "step-00000400.damaged"]
    assert "step-00000400" in told[0] and "set aside as step-00000400.damaged" in told[0]
    save(tmp_path, 397)
    keeper.prune(1)
    assert names(tmp_path) == ["step-00000397", "step-00000400.damaged"] and len(told) == 1


def test_a_save_that_is_damaged_on_the_disk_costs_nothing_older(tmp_path, keeper):
    save(tmp_path, 4)
    assert keeper.newest(False).step == 4
    save(tmp_path, 8)
    cut_short(tmp_path, 8)
    keeper.prune(1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]


def test_an_older_damaged_checkpoint_is_set_aside_and_not_deleted(tmp_path, keeper):
    save(tmp_path, 1, 2, 3)
    flip(tmp_path, 1)
    keeper.prune(1)
    assert names(tmp_path) == ["step-00000001.damaged", "step-00000003"]


def test_a_second_damaged_one_of_a_name_gets_a_number(tmp_path, keeper):
    for _ in range(3):
        save(tmp_path, 400)
        cut_short(tmp_path, 400)
        keeper.prune(1)
    assert names(tmp_path) == ["step-00000400.damaged", "step-00000400.damaged-2", "step-00000400.damaged-3"]


def test_what_a_person_put_there_stays(tmp_path, keeper):
    save(tmp_path, 4, 8, 12)
    shutil.copytree(step_folder(tmp_path, 4), tmp_path / "best-step-00000004")
    shutil.copytree(step_folder(tmp_path, 4), tmp_path / "step-00000004 (copy)")
    (tmp_path / "notes.txt").write_text("mine")
    outside = tmp_path.parent / "outside"
    step_folder(tmp_path, 4).rename(outside)
    step_folder(tmp_path, 4).symlink_to(outside)
    keeper.recover()
    keeper.prune(1)
    assert names(tmp_path) == [
        "best-step-00000004",
        "notes.txt",
        "step-00000004",
        "step-00000004 (copy)",
        "step-00000012",
    ]
    assert (outside / "manifest.json").exists()


def test_the_newest_of_nine_digits_is_kept(tmp_path, keeper):
    save(tmp_path, 99_999_999, 100_000_000)
    keeper.prune(1)
    assert names(tmp_path) == ["step-100000000"]


def test_a_checkpoint_of_a_newer_version_neither_counts_nor_goes(tmp_path, keeper, told):
    save(tmp_path, 1, 2, 3, 4)
    (step_folder(tmp_path, 4) / "manifest.json").write_text('{"format": 2}')
    keeper.prune(1)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    assert keeper.newest(False).step == 3 and "skipped checkpoint step-00000004" in told[0]
    keeper.clear_place(4)
    assert names(tmp_path) == ["step-00000003", "step-00000004.damaged"]


def test_each_checkpoint_is_read_once_and_again_only_when_it_changed(tmp_path, keeper, monkeypatch):
    read = []
    monkeypatch.setattr(keeping, "Checkpoint", lambda path: read.append(path.name))
    save(tmp_path, 1, 2)
    keeper.written("step-00000002", step_folder(tmp_path, 2))
    for _ in range(3):
        keeper.prune(5)
    assert read == ["step-00000001"]
    os.utime(step_folder(tmp_path, 2) / "state.json")
    keeper.prune(5)
    assert read == ["step-00000001", "step-00000002"]


# ------------------------------------------------------------------------------------------------------- the start


def test_the_newest_good_one_is_found_and_what_was_skipped_is_told(tmp_path, keeper, told):
    save(tmp_path, 392, 396, 400)
    cut_short(tmp_path, 400)
    assert keeper.newest(False).step == 396
    assert names(tmp_path) == ["step-00000392", "step-00000396", "step-00000400.damaged"]
    assert "step-00000400" in told[0] and "going on from step-00000396" in told[0]


def test_starting_over_needs_a_word_again_and_again(tmp_path, keeper, told):
    save(tmp_path, 4, 8)
    for step in (4, 8):
        cut_short(tmp_path, step)
    for _ in range(2):
        with pytest.raises(InputError, match="left, damaged are step-00000008, step-00000004 .*--start-over"):
            keeper.newest(False)
    assert names(tmp_path) == ["step-00000004", "step-00000008"] and told == []
    assert keeper.newest(True) is None
    assert names(tmp_path) == ["step-00000004.damaged", "step-00000008.damaged"] and len(told) == 2
    with pytest.raises(InputError, match="damaged are step-00000004.damaged, step-00000008.damaged:"):
        keeper.newest(False)  # nothing was saved since: it would start over once more


def test_nothing_there_is_a_new_beginning(tmp_path, keeper):
    assert keeper.newest(False) is None and Keeper(tmp_path / "none", print).newest(False) is None


def test_left_overs_of_killed_saves_go_and_nothing_that_only_looks_like_them(tmp_path, keeper, told):
    save(tmp_path, 4)
    ours = [".step-00000008.partial-abcd_123", ".step-00000008.shards", ".step-00000004.deleted"]
    others = [
        ".step-00000008.partial-",
        ".step-8.shards",
        ".step-00000008.shards.mine",
        ".step-00000008.partial-ABCDEFGH",
        "step-00000008.shards",
        ".best-step-00000008.shards",
    ]
    for name in ours + others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard").write_text("half")
    keeper.recover()
    assert names(tmp_path) == sorted([*others, "step-00000004"]) and told == []


KILLED = """
import os, signal, sys
import numpy as np
from pangu_lab import files
from pangu_lab.checkpoint import save_checkpoint
from pangu_lab.presets import preset

rename, place = os.rename, sys.argv[2]
def watched(source, target):
    if sys.argv[1] == "before" and str(target) == place:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if sys.argv[1] == "after" and str(target) == place:
        os.kill(os.getpid(), signal.SIGKILL)
files.os.rename = watched
save_checkpoint(place, {"a": np.zeros(4, np.float32)}, {"step": 4, "new": True}, preset("debug"))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(tmp_path, keeper, told, moment):
    save(tmp_path, 4)
    place = step_folder(tmp_path, 4)
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(place)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL and place.exists() == (moment == "after")
    keeper.recover()
    assert names(tmp_path) == ["step-00000004"]
    assert keeper.newest(False).state.get("new") == (True if moment == "after" else None)
    assert bool(told) == (moment == "before")


def test_the_old_one_comes_back_when_the_new_one_is_damaged(tmp_path, keeper, told):
    save(tmp_path, 4)
    place, old = step_folder(tmp_path, 4), tmp_path / ".step-00000004.old-abcdefgh"
    old.mkdir()
    shutil.copytree(place, old / "old")
    cut_short(tmp_path, 4)
    keeper.recover()
    assert names(tmp_path) == ["step-00000004", "step-00000004.damaged"] and keeper.newest(False).step == 4
    assert len(told) == 2
