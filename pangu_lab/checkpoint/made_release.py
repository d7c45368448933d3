"""A release made from a checkpoint, file by file as the published ones are; for practice and for tests.

The published weights were saved by 512 ranks: 8 tensor-parallel ones, each parameter cut further over 64 that share the
optimizer. Here the two numbers are arguments. Beside the parameters the shards hold what training left in them, which a
reader has to pass over; the three embedding tables are files of their own.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pangu_lab.checkpoint.layouts import NPY_FILES
from pangu_lab.checkpoint.mindspore_ckpt import write_ckpt
from pangu_lab.checkpoint.release_files import FILES, STRATEGY, TOKENIZER
from pangu_lab.checkpoint.source import load_weights, tokenizer_folder
from pangu_lab.errors import InputError
from pangu_lab.files import whole_folder


def write_release(
    source: Path | str, out: Path | str, tensor: int = 2, optimizer: int = 4, parts: int = 0, model: str = "13B"
) -> Path:
    """Write the folder ``out`` with ``checkpoint_file``, ``strategy_load_ckpt`` and ``tokenizer``, as they are published.

    Args:
        source: a run or a checkpoint, with its tokenizer.
        tensor, optimizer: ranks along which every matrix was cut; there are tensor × optimizer shards.
        parts: tar files to put the shards into, as they are downloaded; 0 leaves them as single files.
        model: the size in front of the names of parts and of the tables beside them.

    Returns:
        ``out``.

    Raises:
        InputError: the parameters cannot be cut so, the source has no tokenizer, or ``out`` exists.
    """
    weights, tokenizer, out = load_weights(source)[0], tokenizer_folder(source), Path(out)
    with whole_folder(out) as folder:
        for name in (FILES, STRATEGY):
            (folder / name).mkdir()
        shutil.copytree(tokenizer, folder / TOKENIZER)
        write_shards(folder / FILES, weights, tensor, optimizer)
        (folder / FILES / "strategy.ckpt").rename(folder / STRATEGY / f"pangu_alpha_{model}_ckpt_strategy.ckpt")
        if parts:
            _pack(folder / FILES, parts, model)
    return out


def write_shards(folder: Path, weights: Mapping[str, np.ndarray], tensor: int, optimizer: int) -> None:
    """``filerted_0.ckpt`` …, the three tables and ``strategy.ckpt`` in one folder.

    Raises:
        InputError: a parameter cannot be cut so.
    """
    tables = {name: file for name, file in NPY_FILES.items() if name in weights}
    (folder / "strategy.ckpt").write_bytes(_strategy(weights, tensor, optimizer))
    for rank in range(optimizer * tensor):
        pieces = (
            (name, _piece(name, value, rank, tensor, optimizer))
            for name, value in weights.items()
            if name not in tables
        )
        write_ckpt(folder / f"filerted_{rank}.ckpt", _as_trained(pieces))
    for name, file in tables.items():
        np.save(folder / file, weights[name])


def _as_trained(pieces: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters of a shard among the moments and counters that training left there."""
    yield "global_step", np.zeros((), np.float32)
    for name, piece in pieces:
        yield name, piece
        yield f"adam_m.{name}", np.zeros_like(piece)
        yield f"adam_v.{name}", np.ones_like(piece)
    yield "scale_sense", np.ones((), np.float32)


def _cut_axis(name: str) -> int | None:
    """The axis that tensor-parallel ranks cut; None for what every rank holds whole."""
    if name.endswith("output.mapping.weight"):
        return 1
    whole = ("_embedding.embedding_table", "gamma", "beta", "projection.bias")
    return None if name.endswith(whole) else 0


def _piece(name: str, value: np.ndarray, rank: int, tensor: int, optimizer: int) -> np.ndarray:
    """What a rank holds of a parameter: its tensor-parallel part, of which axis 0 is cut once more."""
    axis = _cut_axis(name)
    if axis is None:
        return value
    try:
        return np.split(np.split(value, tensor, axis)[rank % tensor], optimizer)[rank // tensor]
    except ValueError:
        raise InputError(f"{name} of shape {value.shape} cannot be cut for {tensor} × {optimizer} ranks") from None


def _strategy(weights: Mapping[str, np.ndarray], tensor: int, optimizer: int) -> bytes:
    """The strategy file, which says how each parameter is cut; in MindSpore's own messages."""
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    strategy = ParallelStrategyMap(current_stage=0)
    for name, value in weights.items():
        axis = _cut_axis(name)
        layout = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=[optimizer, tensor])
        layout.tensor_map.add(dim=[0 if place == axis else -1 for place in range(value.ndim)])
        layout.field, layout.opt_weight_shard_step = 0, tensor if axis is not None else 0
        layout.opt_weight_shard_size = -1 if axis is not None else 0
    return strategy.SerializeToString()


def _pack(folder: Path, parts: int, model: str) -> None:
    """Move the shards into tars, ``MODEL_part0`` …, and name the tables as they are downloaded, without ``.npy``."""
    shards = sorted(folder.glob("filerted_*.ckpt"), key=lambda path: int(path.stem.rpartition("_")[2]))
    for number, held in enumerate(np.array_split(np.arange(len(shards)), parts)):
        with tarfile.open(folder / f"{model}_part{number}", "w") as archive:
            for place in held:
                archive.add(shards[place], f"{model}/{shards[place].name}")
                shards[place].unlink()
    for file in NPY_FILES.values():
        (folder / file).rename(folder / f"{model}_{Path(file).stem}")
