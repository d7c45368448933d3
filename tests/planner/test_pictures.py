"""Pictures of plans and meshes are drawn, and a mesh too large for one is refused."""

from __future__ import annotations

import pytest

from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.planner import plan, plot_mesh, plot_plan
from pangu_lab.presets import preset


@pytest.mark.parametrize("layout", [ParallelConfig(), ParallelConfig(4, 2, 2), ParallelConfig(1, 1, 4)])
def test_a_mesh_is_drawn(tmp_path, layout):
    assert plot_mesh(layout, 8, tmp_path / "mesh.png").stat().st_size > 3000


def test_a_plan_is_drawn_whether_something_fits_or_not(tmp_path):
    for devices in (8, 16):
        assert plot_plan(plan(preset("13B"), devices), tmp_path / "plan.png").stat().st_size > 10_000


def test_a_mesh_too_large_to_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="2048 ranks is too large to draw"):
        plot_mesh(preset("200B").parallel, 64, tmp_path / "mesh.png")
