"""A network made of kernels beside the same network of MindSpore's operators."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from pangu_lab.ops.native.cells import Kernels, kernels_for
from pangu_lab.ops.portable import Portable
from pangu_lab.presets import preset
from pangu_lab.train import train
from pangu_lab.train.loop import Trainer
from tests.train.test_loop import losses
from tests.train.test_step import small_batch, small_network

pytestmark = pytest.mark.skipif(kernels_for(preset("debug").model) is None, reason="no C compiler")
ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_every_gradient_equal_those_of_mindspores_operators(dropout):
    from pangu_lab.train.step import GradientStep

    found = []
    for backend in (Portable(), kernels_for(preset("debug").model)):
        loss, parameters = small_network(dropout, backend)
        total, gradients = GradientStep(loss, list(parameters.values()))(*small_batch(), ms.Tensor(0.7, ms.float32))
        found.append([total.asnumpy(), *(gradient.asnumpy() for gradient in gradients)])
    for name, one, other in zip(["loss", *parameters], *found):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1.0, np.abs(one).max()), err_msg=name)


def test_a_run_without_kernels_has_the_same_losses(debug_config, debug_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pangu_lab.train.loop.training_backend", lambda config: Portable())
    monkeypatch.setattr("pangu_lab.train.graph_cache.training_backend", lambda config: Portable())
    train(debug_config, tmp_path / "run")
    without, with_them = losses(tmp_path / "run"), losses(debug_run)
    assert without.keys() == with_them.keys()
    assert max(abs(without[step] / with_them[step] - 1) for step in without) < 1e-5


@pytest.mark.parametrize(
    "setting, chosen",
    [({}, True), ({"model.compute_dtype": "float16"}, False), ({"model.softmax_dtype": "float16"}, False)],
)
def test_kernels_train_what_is_fp32_throughout(debug_config, setting, chosen):
    assert isinstance(Trainer(debug_config.replace(**setting), None, None, None).backend, Kernels) == chosen
