"""One small model for all tests of evaluation: compiling it once is most of their time."""

from __future__ import annotations

import pytest

from tests.evaluate.letters import LetterTokenizer, debug_model


@pytest.fixture(scope="session")
def scorer():
    from pangu_lab.evaluate.scoring import LocalScorer

    config, weights = debug_model()
    return LocalScorer(config, weights, LetterTokenizer(), batch_tokens=512, name="debug")
