"""One small model for all tests of evaluation: compiling it once is most of their time."""

from __future__ import annotations

import pytest

from tests.evaluate.letters import LetterTokenizer, debug_model


@pytest.fixture(scope="session")
def scorer():
    from pangu_lab.evaluate.scoring import LocalScorer

    config, weights = debug_model()
    return LocalScorer(config, weights, LetterTokenizer(), batch_tokens=512, name="debug")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run as training leaves it: a checkpoint of the debug model and a small vocabulary, not trained."""
    from pangu_lab.checkpoint import save_checkpoint
    from pangu_lab.data import sample_files
    from pangu_lab.presets import preset
    from pangu_lab.tokenizer import train_vocabulary

    run = tmp_path_factory.mktemp("runs") / "small"
    train_vocabulary([str(path) for path in sample_files("heldout")], run / "tokenizer", 500)
    _, weights = debug_model()
    save_checkpoint(run / "checkpoints" / "step-00000000", weights, {"step": 0}, preset("debug"))
    return run
