"""One checkpoint written by all ranks together.

Every rank writes its shard into a folder that only rank 0 names, finishes and renames; the others wait at both ends.
A rank that fails on the way leaves a folder that no reader looks at.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.checkpoint.folder import write_manifest, write_shard
from pangu_lab.config import RunConfig
from pangu_lab.files import whole_folder
from pangu_lab.train.ranks import Ranks


def save_together(folder: Path, tensors: Mapping[str, np.ndarray], places, state: Mapping[str, Any],
                  config: RunConfig, ranks: Ranks) -> Path:
    """Write ``folder`` with one shard a rank; returns on every rank when it is whole and in place."""
    shards = folder.parent / f".{folder.name}.shards"
    if ranks.is_first:
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
    ranks.barrier()
    write_shard(shards, ranks.mesh.rank, tensors, places)
    ranks.barrier()
    if ranks.is_first:
        with whole_folder(folder, replace=True) as temporary:
            for shard in sorted(shards.iterdir()):
                shard.rename(temporary / shard.name)
            write_manifest(temporary, state, config)
        shards.rmdir()
    ranks.barrier()
    return folder
