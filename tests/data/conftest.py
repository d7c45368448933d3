"""A small text, a vocabulary, and a data set made of both."""

from __future__ import annotations

from pathlib import Path

import pytest
from numbered import lines

from pangu_lab.data import TokenDataset, open_dataset, prepare
from pangu_lab.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def pangu() -> Tokenizer:
    return load_tokenizer("pangu")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n".join(lines(200)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def dataset(text_file: Path, pangu: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Some 200 records of 33 tokens, in two files."""
    folder = tmp_path_factory.mktemp("data") / "set"
    prepare(text_file, folder, pangu, record_length=33, shards=2)
    return open_dataset(folder)
