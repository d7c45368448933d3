"""A real bundle of the debug preset, exported once, with room for many sequences."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def debug_bundle(debug_run, tmp_path_factory):
    from pangu_lab.export import export_run

    return export_run(debug_run, tmp_path_factory.mktemp("exports") / "debug", slots=1024)
