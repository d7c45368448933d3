"""The order of passes on each of four stages, without processes: warm-up, one forward and one backward in turn, cool-down."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.config import ParallelConfig
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.train.pipeline import PipelineGradients


class Ends:
    """Neighbours that answer at once; ``crossing`` notes whether both directions carried something."""

    def __init__(self, mesh):
        self.previous, self.next = not mesh.is_first_stage or None, not mesh.is_last_stage or None

    def up(self, give, shape):
        return None if self.next is None else "gradient"

    def down(self, give, shape):
        return None if self.previous is None else "rows"


def passes(stage, stages, micro_batches):
    mesh = Mesh(ParallelConfig(pipeline=stages, micro_batches=micro_batches), stage)
    told = []
    schedule = PipelineGradients.__new__(PipelineGradients)
    schedule.mesh, schedule.is_last, schedule.neighbours, schedule.hidden = mesh, mesh.is_last_stage, Ends(mesh), 2
    schedule.stage, schedule.word, schedule.counts = (lambda *inputs: "rows"), None, None
    answer = (Tensor(1.0), "gradient", (1,)) if mesh.is_last_stage else ("gradient", (1,))
    schedule.backward, schedule.add = (lambda *inputs: answer), (lambda a, b: (a + b,))
    schedule.log = lambda kind, number: told.append((kind, number))
    part = [None, np.zeros((1, 4)), None, None, None]
    _, gradients = schedule([part] * micro_batches, None)
    return [item for item in told if item[0] in ("forward", "backward")], schedule.most_kept, gradients[0]


@pytest.mark.parametrize("stages,micro_batches", [(2, 2), (4, 4), (4, 9)])
def test_each_stage_warms_up_alternates_and_cools_down(stages, micro_batches):
    for stage in range(stages - 1):
        order, kept, gradients = passes(stage, stages, micro_batches)
        warm = stages - 1 - stage
        assert order[:warm] == [("forward", i) for i in range(warm)]
        steady = [item for i in range(micro_batches - warm) for item in (("forward", warm + i), ("backward", i))]
        assert order[warm : warm + len(steady)] == steady
        assert order[warm + len(steady) :] == [("backward", i) for i in range(micro_batches - warm, micro_batches)]
        assert kept <= stages - stage and gradients == micro_batches
    order, kept, _ = passes(stages - 1, stages, micro_batches)
    assert order == [("backward", i) for i in range(micro_batches)] and kept == 1
