"""The real network, small and random, and a tokenizer of characters."""

from __future__ import annotations

import pytest

from tests.generate.fakes import CharacterTokenizer, random_weights, small_config


@pytest.fixture(scope="session")
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


@pytest.fixture(scope="session")
def engine(tokenizer):
    """The real network, compiled once for all tests."""
    from pangu_lab.generate import engine_from_weights

    config = small_config(tokenizer.vocab_size)
    return engine_from_weights(random_weights(config), config, tokenizer, slots=160)
