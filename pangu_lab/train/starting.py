"""Initial weights of a new run: drawn from the seed, or taken from existing weights.

``train.init_from`` is incremental training: the weights of a run, a checkpoint or a converted release are the
starting point, and everything else (schedule, optimizer, loss scale, position in the data) starts fresh. The network
and the vocabulary must be the same; only the number of positions may be smaller, and then the first ones are kept.
Regions are read straight from the shards, so each rank of any layout reads only its own part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pangu_lab.checkpoint.folder import Checkpoint
from pangu_lab.checkpoint.source import resolve_checkpoint, tokenizer_folder
from pangu_lab.config import ModelConfig, RunConfig
from pangu_lab.data import TokenDataset
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import initial_value, parameter_specs
from pangu_lab.parallel.sharding import Shard
from pangu_lab.tokenizer import load_tokenizer

Read = Callable[..., Any]
# Fields that a run may choose freely; every other field of the model determines what the weights mean.
FREE = {
    "num_positions",
    "dropout_rate",
    "init_std",
    "compute_dtype",
    "softmax_dtype",
    "capacity_factor",
    "balance_loss",
    "z_loss",
}


@dataclass(frozen=True)
class StartingPoint:
    """``read(name, offset, shape)`` gives a region of a parameter's initial value; ``notes`` describe any changes."""

    read: Read
    notes: tuple[str, ...] = ()


def starting_values(config: RunConfig) -> Read:
    """A ``read`` for ``Trainer.build`` that gives regions of the initial values drawn from the seed."""
    specs = parameter_specs(config.model)

    def read(name: str, offset: tuple[int, ...], shape: tuple[int, ...]):
        return Shard(specs[name].shape, offset, shape).of(initial_value(specs[name], config.train.seed))

    return read


def starting_point(config: RunConfig, dataset: TokenDataset | None = None) -> StartingPoint:
    """The initial weights of a new run.

    Args:
        dataset: the training data; its tokenizer must match the one stored with the weights, if there is one.

    Raises:
        InputError: ``train.init_from`` names no weights, or those of another network or vocabulary.
    """
    if not config.train.init_from:
        return StartingPoint(starting_values(config))
    checkpoint = resolve_checkpoint(config.train.init_from)
    notes = _check_network(checkpoint, config.model)
    notes += _check_vocabulary(config.train.init_from, dataset)

    def read(name: str, offset: tuple[int, ...], shape: tuple[int, ...]):
        return checkpoint.read(name, offset, shape).astype(np.float32, copy=False)

    return StartingPoint(read, tuple(notes))


def _check_network(checkpoint: Checkpoint, wanted: ModelConfig) -> list[str]:
    theirs = checkpoint.config.model
    for field in fields(ModelConfig):
        mine, there = getattr(wanted, field.name), getattr(theirs, field.name)
        if field.name not in FREE and mine != there:
            raise InputError(
                f"{checkpoint.folder}: its weights are of model.{field.name}={there}, this run asks for "
                f"{mine}: leave out --preset, or give --set model.{field.name}={there}"
            )
    if wanted.num_positions > theirs.num_positions:
        raise InputError(
            f"{checkpoint.folder}: its weights know {theirs.num_positions} positions, fewer than "
            f"model.num_positions={wanted.num_positions}: a sequence cannot become longer"
        )
    if wanted.num_positions == theirs.num_positions:
        return []
    return [
        f"the first {wanted.num_positions} of {theirs.num_positions} positions are taken: the new model reads "
        f"texts of at most {wanted.num_positions} tokens"
    ]


def _check_vocabulary(folder: str, dataset: TokenDataset | None) -> list[str]:
    try:
        kept = load_tokenizer(tokenizer_folder(folder))
    except InputError:
        return [f"{folder}: no tokenizer is kept there, so it could not be checked that the data set has the same"]
    if dataset is not None and kept.fingerprint != dataset.fingerprint:
        raise InputError(
            f"{dataset.folder}: made with another tokenizer than the weights of {folder}: prepare it with "
            f"--tokenizer {tokenizer_folder(folder)}"
        )
    return []
