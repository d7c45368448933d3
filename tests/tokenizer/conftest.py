"""A small text and vocabularies trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_lab.tokenizer import Tokenizer, train_vocabulary

TEXT = """老师，为什么夏天白天长，冬天白天短？
因为地球歪着身子绕太阳转。  两个空格，iPhone15-Pro 也在。

今天天气不错，我们去公园走走，好吗？当然好！
小明说：“我昨天读了一本书，书里讲了很多有趣的故事。”
"""


@pytest.fixture(scope="session")
def text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "小.txt"
    path.write_text(TEXT * 5, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """All characters of TEXT are in it."""
    return train_vocabulary(text_file, tmp_path_factory.mktemp("trained") / "vocabulary", 160)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's two files, for a vocabulary of our own."""
    import tokenizers

    folder = tmp_path_factory.mktemp("gpt2")
    engine = tokenizers.ByteLevelBPETokenizer()
    engine.train_from_iterator([TEXT * 3, "the quick brown fox"], vocab_size=320, special_tokens=["<|endoftext|>"])
    engine.save_model(str(folder))
    return folder
