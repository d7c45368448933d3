"""From text files to batches: preparing a data set, opening it, and the sample texts."""

from __future__ import annotations

from pangu_lab.data.dataset import Batch, TokenDataset, open_dataset, vocabulary_of
from pangu_lab.data.pictures import compression, document_lengths, plot_compression, plot_lengths, plot_record
from pangu_lab.data.preparation import PreparedData, prepare
from pangu_lab.data.sample import sample_files, sample_folder

__all__ = [
    "Batch",
    "PreparedData",
    "TokenDataset",
    "compression",
    "document_lengths",
    "open_dataset",
    "plot_compression",
    "plot_lengths",
    "plot_record",
    "prepare",
    "sample_files",
    "sample_folder",
    "vocabulary_of",
]
