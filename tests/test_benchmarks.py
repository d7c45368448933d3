"""The benchmarks' own book-keeping; what they measure is not tested."""

from __future__ import annotations

import pytest

from tests.benchmarks import table


@pytest.mark.parametrize("name", table.READMES)
def test_the_tables_of_speed_are_those_of_the_kept_results(name):
    assert (table.ROOT / name).read_text(encoding="utf-8") == table.with_table(name)
    assert table.BEGIN in table.with_table(name)
