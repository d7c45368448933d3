"""The list of published files, and a download that is looked up in it."""

from __future__ import annotations

import hashlib
import re

import pytest

from pangu_lab.checkpoint import published
from pangu_lab.checkpoint.published import PUBLISHED, PublishedFile, recognise
from pangu_lab.errors import InputError


def test_every_published_file_has_a_page_and_a_digest_of_its_own():
    assert len({file.md5 for file in PUBLISHED}) == len(PUBLISHED) == 17
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) and file.page.startswith("https://") for file in PUBLISHED)
    assert [file.name for file in PUBLISHED if file.model == "13B"][1:5] == [f"13B_part{i}" for i in range(4)]


def test_a_whole_download_is_recognised_and_a_cut_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / "renamed"
    path.write_bytes(b"weights" * 1000)
    ours = PublishedFile("2.6B", "x", None, hashlib.md5(path.read_bytes()).hexdigest(), published.SINGLE)
    monkeypatch.setattr(published, "PUBLISHED", (*PUBLISHED, ours))
    assert recognise(path) == ours
    path.write_bytes(path.read_bytes()[:-1])
    assert recognise(path) is None
    with pytest.raises(InputError, match="no such file"):
        recognise(tmp_path / "nothing")
