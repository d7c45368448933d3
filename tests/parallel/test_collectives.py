"""Every collective, forward and gradient, between real processes; and alone it is an identity."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.launch import launch
from pangu_lab.parallel import collectives
from pangu_lab.parallel.collectives import make_group


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_collectives_equal_numpy_forward_and_gradient(debug_config, tmp_path, world):
    config = debug_config.replace(**{"parallel.data": world})
    result = launch(config, tmp_path / "run", world, program=("-m", "tests.parallel.collectives_program"))
    assert result.reason == "checked"


@pytest.mark.parametrize("name", ["AllReduce", "ReduceGradient", "AllGather", "ReduceScatter", "AllToAll"])
def test_alone_a_collective_is_an_identity(name):
    ms.set_context(mode=ms.GRAPH_MODE)
    x = Tensor(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert (getattr(collectives, name)(make_group((0,), 0))(x).asnumpy() == x.asnumpy()).all()
