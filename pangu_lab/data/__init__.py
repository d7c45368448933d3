"""From text files to batches: preparing a data set, opening it, and the sample texts."""

from __future__ import annotations

from pangu_lab.data.dataset import Batch, TokenDataset, open_dataset
from pangu_lab.data.preparation import PreparedData, prepare
from pangu_lab.data.sample import sample_files, sample_folder

__all__ = ["Batch", "PreparedData", "TokenDataset", "open_dataset", "prepare", "sample_files", "sample_folder"]
