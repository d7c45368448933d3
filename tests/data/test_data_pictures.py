"""Pictures of data: what they are drawn from is right, and they are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.data import open_dataset, sample_files
from pangu_lab.data.pictures import compression, document_lengths, plot_compression, plot_lengths, plot_record, visible
from pangu_lab.errors import InputError


def test_what_may_be_seen_is_what_the_network_masks():
    import mindspore as ms

    from pangu_lab.ops.attention import DocumentMask

    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 7]], np.int32)
    bias = DocumentMask(8)(ms.Tensor(positions)).asnumpy()[:, 0]
    assert np.array_equal(visible(positions), bias == 0)


def test_documents_of_the_sample_are_counted_as_preparing_counts_them(debug_data):
    dataset = open_dataset(debug_data / "train")
    tokenizer = dataset.load_tokenizer()
    lengths = document_lengths(tokenizer, sample_files("train"))
    assert len(lengths) == dataset.metadata["documents"]
    assert lengths.sum() + len(lengths) == dataset.metadata["tokens"]  # each has an end of its own
    found = compression(tokenizer, sample_files("train"))
    assert found.tokens == lengths.sum() and found.characters == dataset.metadata["characters"]
    assert 0 < found.unknown_share < 1 and 0.5 < found.characters_a_token < 4


def test_the_pictures_are_drawn(debug_data, tmp_path):
    dataset = open_dataset(debug_data / "heldout")
    tokenizer = dataset.load_tokenizer()
    found = compression(tokenizer, sample_files("heldout"))
    lengths = {"held out": document_lengths(tokenizer, sample_files("heldout"))}
    batch = next(dataset.batches(2, seed=1))
    for png in (
        plot_lengths(lengths, tmp_path / "a.png", 65),
        plot_compression([found, found], 32, tmp_path / "b.png"),
        plot_record(batch, 1, tokenizer, tmp_path / "c.png"),
    ):
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5_000


def test_a_text_without_documents_is_refused(tmp_path, pangu):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no document"):
        compression(pangu, tmp_path / "empty.txt")
