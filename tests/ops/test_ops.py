"""Each fused operation against a plain numpy or autodiff form of the same function."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from pangu_lab.ops.attention import BranchMask, CausalAttention, DocumentMask, DroppedAttention
from pangu_lab.ops.dropout import Dropout
from pangu_lab.ops.loss import TiedHeadLoss
from pangu_lab.ops.norm import LayerNorm
from pangu_lab.ops.portable import Portable

ms.set_context(mode=ms.GRAPH_MODE)
rng = np.random.default_rng(0)


def tensor(*shape, scale=1.0):
    return Tensor((rng.standard_normal(shape) * scale).astype(np.float32))


def _phi(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


REFERENCE = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x * _phi(x),
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_activation_equals_its_formula(name):
    x = tensor(64, 33, scale=3.0)
    assert np.allclose(
        Portable().activation(name)(x).asnumpy(), REFERENCE[name](x.asnumpy().astype(np.float64)), atol=2e-6
    )


def test_layer_norm_equals_its_formula_also_far_from_zero():
    x, gamma, beta = tensor(7, 32) + 100.0, tensor(32), tensor(32)
    a = x.asnumpy().astype(np.float64)
    want = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * gamma.asnumpy() + beta.asnumpy()
    assert np.allclose(LayerNorm(1e-5)(x, gamma, beta).asnumpy(), want, atol=1e-4)


class PlainAttention(nn.Cell):
    """The textbook form, differentiated by MindSpore."""

    def construct(self, q, k, v, bias, keep):
        rows, seq, dim = q.shape
        scores = ops.matmul(q, ops.swapaxes(k, 1, 2)) / dim**0.5
        scores = ops.reshape(ops.reshape(scores, (bias.shape[0], -1, seq, seq)) + bias, (rows, seq, seq))
        return ops.matmul(ops.softmax(scores, -1) * keep, v)


class Gradients(nn.Cell):
    def __init__(self, cell, ours, dropout):
        super().__init__()
        self.cell, self.ours, self.dropout = cell, ours, dropout
        self.grad = ops.GradOperation(get_all=True)

    def _loss(self, q, k, v, bias, keep, weight):
        if not self.ours:
            return ops.sum(self.cell(q, k, v, bias, keep) * weight)
        if self.dropout:
            return ops.sum(self.cell(q, k, v, bias, keep)[0] * weight)
        return ops.sum(self.cell(q, k, v, bias)[0] * weight)

    def construct(self, q, k, v, bias, keep, weight):
        return self.grad(self._loss)(q, k, v, bias, keep, weight)


@pytest.mark.parametrize("dropout", [False, True])
def test_attention_output_and_gradients_equal_the_textbook_form(dropout):
    q, k, v, weight = (tensor(6, 8, 4) for _ in range(4))
    positions = Tensor(np.array([[0, 1, 2, 0, 1, 2, 3, 4], range(8)], np.int32))
    bias = DocumentMask(8)(positions)
    keep = Tensor((rng.random((6, 8, 8)) > 0.3).astype(np.float32) / 0.7) if dropout else Tensor(1.0, ms.float32)
    attention = (DroppedAttention if dropout else CausalAttention)(3, 4, ms.float32)
    assert np.allclose(
        attention(q, k, v, bias, *([keep] if dropout else []))[0].asnumpy(),
        PlainAttention()(q, k, v, bias, keep).asnumpy(),
        atol=1e-6,
    )
    ours = Gradients(attention, True, dropout)(q, k, v, bias, keep, weight)
    plain = Gradients(PlainAttention(), False, dropout)(q, k, v, bias, keep, weight)
    for a, b in zip(ours[:3], plain[:3]):
        assert np.allclose(a.asnumpy(), b.asnumpy(), atol=2e-6)


def test_document_mask_shows_the_own_document_up_to_the_query_and_nothing_else():
    positions = np.array([[0, 1, 0, 1, 2, 0]], np.int32)
    seen = DocumentMask(6)(Tensor(positions)).asnumpy()[0, 0] == 0
    document = np.cumsum(positions[0] == 0)
    want = np.tril(np.ones((6, 6), bool)) & (document[:, None] == document[None, :])
    assert (seen == want).all()


def test_branch_mask_shows_the_shared_beginning_and_the_own_branch_up_to_the_query():
    branches = np.array([[0, 0, 1, 1, 2, 2]], np.int32)
    seen = BranchMask()(Tensor(branches), Tensor(np.arange(6, dtype=np.int32))).asnumpy()[0, 0] == 0
    want = np.tril(np.ones((6, 6), bool)) & ((branches == 0) | (branches == branches.T))
    assert (seen == want).all()


class HeadGradients(nn.Cell):
    def __init__(self, cell, plain):
        super().__init__()
        self.cell, self.plain = cell, plain
        self.grad = ops.GradOperation(get_all=True)

    def _loss(self, hidden, table, labels, weights):
        if self.plain:
            logs = ops.log_softmax(ops.matmul(hidden, table.T), -1)
            return -ops.sum(ops.gather_elements(logs, 1, labels.reshape((-1, 1))).reshape((-1,)) * weights) * 3.0
        return self.cell(hidden, table, labels, weights)[0] * 3.0

    def construct(self, hidden, table, labels, weights):
        return self._loss(hidden, table, labels, weights), self.grad(self._loss)(hidden, table, labels, weights)


@pytest.mark.parametrize("dtype,tolerance", [(ms.float32, 1e-5), (ms.float16, 2e-2)])
def test_head_loss_and_gradients_equal_the_plain_form_with_token_weights(dtype, tolerance):
    hidden, table = tensor(10, 8), tensor(30, 8)
    labels, weights = Tensor(rng.integers(0, 30, 10).astype(np.int32)), Tensor((np.arange(10) % 3).astype(np.float32))
    ours, plain = HeadGradients(TiedHeadLoss(dtype), False), HeadGradients(None, True)
    loss, gradients = ours(hidden, table, labels, weights)
    want, wanted = plain(hidden, table, labels, weights)
    assert np.allclose(loss.asnumpy(), want.asnumpy(), rtol=tolerance)
    for a, b in zip(gradients[:2], wanted[:2]):
        assert np.allclose(a.asnumpy(), b.asnumpy(), atol=tolerance * 5)


def keys(count):
    return Tensor((np.arange(count, dtype=np.int64) * 0x165667B1).astype(np.uint32).view(np.int32).reshape(-1, 1))


def test_dropout_drops_its_share_and_keeps_the_mean():
    out = Dropout(0.1, seed=3, site="here", width=400)(Tensor(np.ones((500, 400), np.float32)), keys(500)).asnumpy()
    assert abs((out == 0).mean() - 0.1) < 0.005
    assert abs(out.mean() - 1.0) < 0.005
    columns, rows = (out == 0).mean(0), (out == 0).mean(1)
    assert columns.std() < 0.03 and rows.std() < 0.03  # no row or column is favoured


def test_dropout_neighbours_are_independent():
    gone = (
        Dropout(0.5, seed=3, site="here", width=300)(Tensor(np.ones((400, 300), np.float32)), keys(400)).asnumpy() == 0
    )
    for a, b in ((gone[1:], gone[:-1]), (gone[:, 1:], gone[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_dropout_split_over_ranks_is_the_same_mask():
    x = tensor(20, 16)
    whole = Dropout(0.4, 1, "p", 16)(x, keys(20)).asnumpy()
    right = Dropout(0.4, 1, "p", 8, first_column=8)(x[:, 8:], keys(20)).asnumpy()
    assert (whole[:, 8:] == right).all()


def test_dropout_differs_by_seed_and_place_and_repeats_otherwise():
    x = Tensor(np.ones((20, 50), np.float32))
    first, again = (Dropout(0.5, 1, "a", 50)(x, keys(20)).asnumpy() for _ in range(2))
    assert (first == again).all()
    assert (first != Dropout(0.5, 2, "a", 50)(x, keys(20)).asnumpy()).any()
    assert (first != Dropout(0.5, 1, "b", 50)(x, keys(20)).asnumpy()).any()
