"""Fixtures for all tests: quiet MindSpore, and the optional folder of real texts and reference files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("GLOG_v", "3")  # MindSpore: errors only; read when it is first imported
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder named by PANGU_LAB_DATA; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PANGU_LAB_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set PANGU_LAB_DATA to run this test")
    return folder
