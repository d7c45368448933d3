"""From the path of a run or a checkpoint to its weights."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from pangu_lab.checkpoint.best import named
from pangu_lab.checkpoint.folder import Checkpoint, latest_checkpoint
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import OneByOne, parameter_specs


def resolve_checkpoint(folder: Path | str) -> Checkpoint:
    """The checkpoint in ``folder``: the folder itself, or the newest intact one of a run, or its best (``runs/NAME@best``).

    Raises:
        InputError: there is none.
    """
    folder = named(folder)
    if (folder / "manifest.json").exists():
        return Checkpoint(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a run (runs/NAME) or a checkpoint folder")
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{folder}: holds no whole checkpoint; train first, or give another folder")
    return checkpoint


class StoredWeights(OneByOne):
    """The parameters of a checkpoint by published name, each read from the disk when it is accessed.

    ``shapes`` lists them without reading; ``checkpoint`` is where they lie.
    """

    def __init__(self, checkpoint: Checkpoint, config: RunConfig) -> None:
        specs = parameter_specs(config.model)
        check_parameters(checkpoint, specs)
        super().__init__(specs, checkpoint.read)
        self.shapes = {name: spec.shape for name, spec in specs.items()}
        self.checkpoint = checkpoint

    @functools.cached_property
    def dtype(self) -> str:
        """That all matrices are stored in, such as "float16"; "float32" when they differ."""
        found = {self.checkpoint.dtype(name) for name, shape in self.shapes.items() if len(shape) > 1}
        return found.pop() if len(found) == 1 else "float32"


def open_weights(folder: Path | str) -> tuple[StoredWeights, RunConfig]:
    """All weights of a run or checkpoint, whole, by published name, and the configuration they belong to.

    Raises:
        InputError: none there, damaged, or not the parameters that the configuration asks for.
    """
    checkpoint = resolve_checkpoint(folder)
    config = checkpoint.config
    return StoredWeights(checkpoint, config), config


def load_weights(folder: Path | str) -> tuple[dict[str, np.ndarray], RunConfig]:
    """As ``open_weights``, with every parameter in memory."""
    weights, config = open_weights(folder)
    return dict(weights), config


def largest_difference(first: Path | str, second: Path | str) -> float:
    """The largest difference between the weights of two runs or checkpoints; 0.0 when all are equal to the last bit.

    Raises:
        InputError: no checkpoint in one of them, or their parameters are not the same ones.
    """
    (one, _), (two, _) = open_weights(first), open_weights(second)
    if one.shapes != two.shapes:
        raise InputError(f"{first} and {second} hold networks of different sizes")
    largest = 0.0
    for name in one:
        left, right = one[name], two[name]
        if not np.array_equal(left, right):
            largest = max(largest, float(np.abs(left.astype(np.float64) - right).max()))
    return largest


def check_parameters(checkpoint: Checkpoint, specs) -> None:
    """Refuse a checkpoint that lacks a parameter or holds one of another shape."""
    for name, spec in specs.items():
        if checkpoint.shape(name) != spec.shape:
            raise InputError(
                f"{checkpoint.folder}: {name} has shape {checkpoint.shape(name)}, the configuration needs {spec.shape}"
            )


def tokenizer_folder(folder: Path | str) -> Path:
    """The tokenizer kept with a run or checkpoint.

    Raises:
        InputError: there is none.
    """
    folder = named(folder)
    for parent in (folder, folder.parent.parent):
        if (parent / "tokenizer").is_dir():
            return parent / "tokenizer"
    raise InputError(f"{folder}: no tokenizer is kept here; give one with --tokenizer")
