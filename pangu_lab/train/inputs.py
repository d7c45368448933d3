"""What a training reads: its data set and the held-out one, and whether they go together with the settings."""

from __future__ import annotations

import hashlib

from pangu_lab.checkpoint.folder import Checkpoint
from pangu_lab.config import RunConfig, TokenizerConfig
from pangu_lab.data import TokenDataset, open_dataset
from pangu_lab.errors import InputError
from pangu_lab.tokenizer import load_tokenizer


def open_data(config: RunConfig) -> tuple[TokenDataset, TokenDataset | None]:
    """The data set to learn from, and the held-out one where ``data.eval_path`` names one.

    Raises:
        InputError: they do not go together with the settings, or with each other.
    """
    if not config.data.path:
        raise InputError("data.path is empty: name a folder made by `pangu-lab prepare` (--data DIR)")
    dataset = _check_dataset(open_dataset(config.data.path, config.data.column), config, "data.path")
    if not config.data.eval_path:
        return dataset, None
    evalset = _check_dataset(open_dataset(config.data.eval_path, config.data.column), config, "data.eval_path")
    if data_identity(evalset) == data_identity(dataset):
        raise InputError(
            f"data.eval_path={config.data.eval_path} holds the records of data.path: what a model has learned says "
            "nothing about other text; prepare a held-out part for --eval-data (`pangu-lab start` makes both)"
        )
    if evalset.fingerprint != dataset.fingerprint:
        raise InputError("data.path and data.eval_path were made with different tokenizers: prepare both with one")
    return dataset, evalset


def with_tokenizer(config: RunConfig, dataset: TokenDataset) -> RunConfig:
    """The configuration with the data set's end-of-document and padding ids; values already set must agree."""
    given = config.tokenizer
    if given != TokenizerConfig():
        chosen = load_tokenizer(given.path or dataset.tokenizer_folder, given.eod, given.pad)
        dataset.check_tokenizer(chosen)
    return config.replace(**{"tokenizer.eod": dataset.eod_id, "tokenizer.pad": dataset.pad_id})


def _check_dataset(dataset: TokenDataset, config: RunConfig, key: str) -> TokenDataset:
    if dataset.vocab_size > config.model.vocab_size:
        unset = "" if config.train.init_from else ", or leave it out: the command line takes it from the data set"
        raise InputError(
            f"{key}: its tokenizer has {dataset.vocab_size} pieces, more than "
            f"model.vocab_size={config.model.vocab_size}; set model.vocab_size={dataset.vocab_size}{unset}"
        )
    if dataset.record_length != config.data.seq_length + 1:
        raise InputError(
            f"{key}: its records hold {dataset.record_length} tokens, data.seq_length="
            f"{config.data.seq_length} needs {config.data.seq_length + 1}; set data.seq_length="
            f"{dataset.record_length - 1} or prepare again with --seq-length {config.data.seq_length + 1}"
        )
    return dataset


def data_identity(dataset: TokenDataset) -> str:
    """A hash of the content of a data set, wherever it is stored."""
    text = "".join(item["sha256"] for item in dataset.metadata["files"])
    return hashlib.sha256(text.encode()).hexdigest()


def check_same_data(checkpoint: Checkpoint, dataset: TokenDataset) -> None:
    """Raise InputError if the checkpoint was trained on other data."""
    if checkpoint.state.get("dataset") != data_identity(dataset):
        raise InputError(
            f"{dataset.folder}: not the data set that {checkpoint.folder} was trained on; "
            "give that one, or start a new run"
        )
