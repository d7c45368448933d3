"""Saving a checkpoint from all ranks, and choosing the one from which all resume.

Every rank writes its shard into a folder that rank 0 makes before and renames after; the others wait at both points. If
a rank fails in between, it leaves a folder that no reader uses. Only rank 0 checks which checkpoint is good, and the
others open that one: otherwise each would hash all of it, and two that found different ones would diverge.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.checkpoint.folder import Checkpoint, step_folder, write_manifest, write_shard
from pangu_lab.config import RunConfig
from pangu_lab.files import whole_folder
from pangu_lab.train.ranks import Ranks
from pangu_lab.train.run_folder import RunFolder


def save_together(
    run: RunFolder,
    step: int,
    tensors: Mapping[str, np.ndarray],
    regions,
    state: Mapping[str, Any],
    config: RunConfig,
    ranks: Ranks,
) -> Path:
    """Write the step's checkpoint with one shard per rank; returns on every rank when it is complete and in place.

    Raises:
        LockLost: another process has taken over the run.
    """
    folder = step_folder(run.checkpoints, step)
    shards = folder.parent / f".{folder.name}.shards"
    if ranks.is_first:
        run.check()
        run.keeper.clear_place(step)
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
    ranks.barrier()
    write_shard(shards, ranks.mesh.rank, tensors, regions)
    ranks.barrier()
    if ranks.is_first:
        _finish(run, folder, shards, state, config)
    ranks.barrier()
    return folder


def _finish(run: RunFolder, folder: Path, shards: Path, state: Mapping[str, Any], config: RunConfig) -> None:
    with whole_folder(folder, replace=True) as temporary:
        for shard in sorted(shards.iterdir()):
            shard.rename(temporary / shard.name)
        write_manifest(temporary, state, config)
        run.keeper.written(folder.name, temporary)
        run.check()  # writing takes long: if this process was suspended meanwhile, it may have lost the run
    shards.rmdir()


def newest_together(run: RunFolder, start_over: bool, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to resume from, the same on every rank; None for a new run.

    Raises:
        InputError: every checkpoint is damaged, and ``start_over`` was not given.
    """
    newest = run.keeper.newest(start_over) if ranks.is_first else None
    [step], *_ = ranks.by_rank([-1.0 if newest is None else float(newest.folder.name.partition("-")[2])])
    if ranks.is_first or step < 0:
        return newest
    return Checkpoint(step_folder(run.checkpoints, int(step)), verify=False)
