"""The schedule of a pipeline as its ranks keep it: a few steps, whole lines, and a picture of them."""

from __future__ import annotations

import pytest

from pangu_lab.config import ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.runs.pipeline_log import STEPS, PipelineLog, idle_share, log_file, plot_schedule, read_passes

TWO = ParallelConfig(pipeline=2, micro_batches=2)


def work(log: PipelineLog, steps: int) -> None:
    for _ in range(steps):
        log("step", 0)
        for kind, number in (("forward", 0), ("forward", 1), ("backward", 0), ("backward", 1)):
            log(kind, number)
            log("wait", number)


def test_the_steps_after_the_first_are_kept_and_no_more(tmp_path):
    for rank in (0, 1):
        work(PipelineLog(tmp_path, Mesh(TWO, rank)), STEPS + 5)
    passes = read_passes(tmp_path)
    assert {item.step for item in passes} == set(range(2, STEPS + 2)) and {item.stage for item in passes} == {0, 1}
    one = [item for item in passes if item.rank == 0 and item.step == 2]
    assert [(item.kind, item.micro_batch) for item in one] == [
        ("forward", 0),
        ("forward", 1),
        ("backward", 0),
        ("backward", 1),
    ]
    assert all(before.end <= after.start for before, after in zip(one, one[1:]))
    assert 0 <= idle_share(passes, 2) < 1


def test_a_new_process_begins_anew_and_a_half_written_line_is_left_out(tmp_path):
    work(PipelineLog(tmp_path, Mesh(TWO, 0)), 2)
    assert read_passes(tmp_path) == []  # written with the next step
    log = PipelineLog(tmp_path, Mesh(TWO, 0))
    work(log, 3)
    with open(log_file(tmp_path, 0), "a") as handle:
        handle.write('{"step": 3, "sta')
    assert len(read_passes(tmp_path)) == 4


def test_the_schedule_is_drawn_or_its_absence_said(tmp_path):
    with pytest.raises(InputError, match="no pipeline schedule to draw"):
        plot_schedule(tmp_path, tmp_path / "s.png")
    work(PipelineLog(tmp_path, Mesh(TWO, 0)), 5)
    assert plot_schedule(tmp_path, tmp_path / "s.png").stat().st_size > 5000
