"""Text to ids and back: PanGu's tokenizer, GPT-2's, and vocabularies trained on the user's own text."""

from __future__ import annotations

from pangu_lab.tokenizer.base import TextStream, Tokenizer
from pangu_lab.tokenizer.display import Row, show
from pangu_lab.tokenizer.load import load_tokenizer
from pangu_lab.tokenizer.train import train_vocabulary

__all__ = ["Row", "TextStream", "Tokenizer", "load_tokenizer", "show", "train_vocabulary"]
