"""The training kernels, called as MindSpore calls them, against numpy in double precision over random shapes.

Needs no MindSpore, so that `make test-native` can run it under AddressSanitizer.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_lab.compiling import compiler
from pangu_lab.ops.muon import orthogonalised
from pangu_lab.ops.native import train

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")  # with one they must be there
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes, seeds = st.integers(1, 70), st.integers(0, 2**31)


def call(name: str, inputs, shapes):
    """The outputs, of these shapes, of an operator."""
    outputs = [np.full(shape, np.nan, np.float32) for shape in shapes]  # what a kernel leaves out shows
    arrays = [np.ascontiguousarray(x) for x in inputs] + outputs
    count = len(arrays)
    rows = [(ctypes.c_int64 * max(1, x.ndim))(*x.shape) for x in arrays]
    pointers = (ctypes.c_void_p * count)(*(x.ctypes.data for x in arrays))
    dimensions = (ctypes.c_int * count)(*(x.ndim for x in arrays))
    each = (ctypes.POINTER(ctypes.c_int64) * count)(*(ctypes.cast(row, ctypes.POINTER(ctypes.c_int64)) for row in rows))
    assert getattr(train.library().functions, name)(count, pointers, dimensions, each, None, None, None) == 0
    return outputs if len(outputs) > 1 else outputs[0]


def close(found, wanted):
    """To 1e-5 of the largest number."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def normal(seed: int, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def double(*arrays):
    return [array.astype(np.float64) for array in arrays]


@many
@given(st.integers(1, 900), sizes, sizes, st.booleans(), seeds)
def test_linear_and_its_gradients(rows, inner, outer, transposed, seed):
    kind = "linear_transposed" if transposed else "linear_plain"
    x, weight, bias, dy = normal(
        seed, (rows, inner), (outer, inner) if transposed else (inner, outer), (outer,), (rows, outer)
    )
    X, W, B, D = double(x, weight, bias, dy)
    straight = W.T if transposed else W
    close(call(kind, [x, weight], [(rows, outer)]), X @ straight)
    close(call(kind, [x, weight, bias], [(rows, outer)]), X @ straight + B)
    dx, dw, db = call(f"{kind}_backward", [x, weight, dy], [x.shape, weight.shape, bias.shape])
    close(dx, D @ straight.T)
    close(dw, D.T @ X if transposed else X.T @ D)
    close(db, D.sum(0))


@many
@given(st.integers(1, 3), sizes, sizes, seeds)
def test_muons_orthogonal_update(count, rows, columns, seed):
    (x,) = normal(seed, (count, rows, columns))
    found = train.orthogonalised(train.library(), x)
    np.testing.assert_allclose(
        found, orthogonalised(*double(x)), rtol=0, atol=2e-3
    )  # five steps enlarge what is rounded


def test_muons_update_of_zeros_is_zero_and_of_nan_is_nan():
    assert not train.orthogonalised(train.library(), np.zeros((2, 5, 7), np.float32)).any()
    x = np.ones((2, 5, 7), np.float32)
    x[1, 2, 3] = np.nan
    found = train.orthogonalised(train.library(), x)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_products_of_every_kind_of_processor(bits):
    library = train.library().functions
    try:
        if library.set_up(1, bits) != bits:
            pytest.skip(f"this processor has no vectors of {bits} bits")
        for rows, inner, outer in ((1, 1, 1), (13, 400, 33), (96, 384, 192), (205, 777, 203), (5000, 3, 4)):
            for transposed in (False, True):
                test_linear_and_its_gradients.hypothesis.inner_test(rows, inner, outer, transposed, 8)
        test_linear_and_its_gradients.hypothesis.inner_test(3, 5, 5000, False, 9)
    finally:
        library.set_up(1, 512)


def gelu(x, name):
    if name == "gelu_erf":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    u = 1.702 * x if name == "fast_gelu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-u))


@pytest.mark.parametrize("name", ["gelu", "gelu_erf", "fast_gelu"])
def test_activations_and_their_slopes(name):
    x = np.concatenate([np.linspace(-12, 12, 20011), [0.0, -300.0, 300.0]]).astype(np.float32)
    dy = np.cos(x).astype(np.float32)
    X = x.astype(np.float64)
    close(call(name, [x], [x.shape]), gelu(X, name))
    slope = (gelu(X + 1e-5, name) - gelu(X - 1e-5, name)) / 2e-5
    close(call(f"{name}_backward", [x, dy], [x.shape]), dy * slope)


@many
@given(st.integers(1, 300), sizes, sizes, st.sampled_from(["gelu", "gelu_erf", "fast_gelu"]), seeds)
def test_linear_after_an_activation_and_its_gradients(rows, inner, outer, name, seed):
    x, weight, bias, dy = normal(seed, (rows, inner), (inner, outer), (outer,), (rows, outer))
    x = 3 * x
    X, W, B, D = double(x, weight, bias, dy)
    close(call(f"linear_after_{name}", [x, weight], [(rows, outer)]), gelu(X, name) @ W)
    close(call(f"linear_after_{name}", [x, weight, bias], [(rows, outer)]), gelu(X, name) @ W + B)
    slope = (gelu(X + 1e-5, name) - gelu(X - 1e-5, name)) / 2e-5
    dx, dw, db = call(f"linear_after_{name}_backward", [x, weight, dy], [x.shape, weight.shape, bias.shape])
    close(dx, (D @ W.T) * slope)
    close(dw, gelu(X, name).T @ D)
    close(db, D.sum(0))
    for one, other in zip(call(f"linear_after_{name}_backward", [x, weight, dy], [x.shape, weight.shape]), (dx, dw)):
        assert (one == other).all()


@many
@given(sizes, st.integers(1, 150), seeds)
def test_layer_norm_and_its_gradients(rows, width, seed):
    x, gamma, beta, dy = normal(seed, (rows, width), (width,), (width,), (rows, width))
    x = 3 * x + 1
    eps = np.array([1e-5], np.float32)
    X, G, B, D = double(x, gamma, beta, dy)
    scale = 1 / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    normed = (X - X.mean(1, keepdims=True)) * scale
    close(call("layer_norm", [x, gamma, beta, eps], [x.shape]), normed * G + B)
    if width == 1:  # every number is the mean: the slope is a difference of equal numbers times 1 / √ε
        return
    dx, dgamma, dbeta = call("layer_norm_backward", [x, gamma, dy, eps], [x.shape, gamma.shape, beta.shape])
    slope = D * G
    want = scale * (slope - slope.mean(1, keepdims=True) - normed * (slope * normed).mean(1, keepdims=True))
    np.testing.assert_allclose(dx, want, rtol=0, atol=1e-5 * max(1.0, scale.max()) * max(1.0, np.abs(want).max()))
    close(dgamma, (D * normed).sum(0))
    close(dbeta, D.sum(0))


def test_a_rows_layer_norm_has_the_same_bits_wherever_it_lies():
    row, gamma, beta = normal(4, (1, 37), (37,), (37,))
    eps = np.array([1e-5], np.float32)
    x = np.repeat(row, 17, 0)  # 37 floats: each row begins at another address, as vectors see it
    found = call("layer_norm", [x, gamma, beta, eps], [x.shape])
    np.testing.assert_array_equal(found, np.repeat(found[:1], 17, 0))


def documents(seed: int, batch: int, seq: int):
    """Positions that begin again at 0 in places."""
    rng = np.random.default_rng(seed)
    positions = np.zeros((batch, seq), np.int32)
    for row in positions:
        for i in range(1, seq):
            row[i] = 0 if rng.random() < 0.04 else row[i - 1] + 1
    return positions


def keeping(rate: float, rows, columns):
    """Factors of a dropout, (rows, columns), written from ``ops/dropout.py``; and the operators' two numbers."""
    value = (rows.astype(np.uint32)[:, None] ^ columns.astype(np.uint32)[None]).astype(np.uint64)
    value = value * 0x7FEB352D & 0xFFFFFFFF
    value = (value ^ value >> 16) * 0x846CA68B & 0xFFFFFFFF
    value = (value ^ value >> 16).astype(np.uint32).view(np.int32)
    threshold, scale = np.array([int(rate * 2**32) - 2**31], np.int32), np.array([1 / (1 - rate)], np.float32)
    return (value >= threshold[0]) * scale[0], (threshold, scale)


def words(seed: int, count: int):
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count).astype(np.int32)


@many
@given(sizes, st.integers(1, 150), st.sampled_from([0.1, 0.5, 0.9]), seeds)
def test_dropout_keeps_what_the_hash_says(rows, width, rate, seed):
    (x,) = normal(seed, (rows, width))
    keys, columns = words(seed, rows), words(seed + 1, width)
    factors, numbers = keeping(rate, keys, columns)
    np.testing.assert_array_equal(
        call("dropout", [x, keys[:, None], columns[None], *numbers], [x.shape]), x * factors.astype(np.float32)
    )


@many
@given(
    st.integers(1, 3), st.integers(1, 150), st.integers(1, 3), st.integers(1, 20), st.sampled_from([0.0, 0.3]), seeds
)
def test_attention_within_documents_and_its_gradients(batch, seq, heads, dim, rate, seed):
    rows, width = batch * seq, heads * dim
    positions = documents(seed, batch, seq)
    q, k, v, dy = normal(seed, *[(rows, width)] * 4)
    split = [x.reshape(batch, seq, heads, dim).transpose(0, 2, 1, 3) for x in double(q, k, v, dy)]
    at = np.arange(seq)
    seen = (at <= at[:, None]) & (at >= at[:, None] - positions[:, :, None])
    scores = np.where(seen[:, None], split[0] @ split[1].swapaxes(2, 3) / math.sqrt(dim), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights /= total

    keep, more = 1.0, []
    if rate:
        keys, columns, head_keys = words(seed, rows), words(seed + 1, seq + 3), words(seed + 2, heads)
        both = (keys.reshape(batch, 1, seq) + head_keys[:, None]).reshape(-1)
        keep, numbers = keeping(rate, both, columns[:seq])
        keep = keep.reshape(batch, heads, seq, seq)
        more = [keys[:, None], columns[None], head_keys, *numbers]

    def joined(x):
        return x.transpose(0, 2, 1, 3).reshape(rows, width)

    mixed, logsum = call("attention", [q, k, v, positions, *more], [q.shape, (batch * heads, seq)])
    close(mixed, joined((weights * keep) @ split[2]))
    close(logsum, (np.log(total) + scores.max(-1, keepdims=True)).reshape(batch * heads, seq))
    slope = split[3] @ split[2].swapaxes(2, 3) * keep
    slope = weights * (slope - (slope * weights).sum(-1, keepdims=True)) / math.sqrt(dim)
    found = call("attention_backward", [q, k, v, positions, mixed, logsum, dy, *more], [q.shape] * 3)
    for one, want in zip(
        found, (slope @ split[1], slope.swapaxes(2, 3) @ split[0], (weights * keep).swapaxes(2, 3) @ split[3])
    ):
        close(one, joined(want))


@many
@given(st.sampled_from([1, 7, 511, 512, 513, 1030]), sizes, st.integers(2, 300), seeds)
def test_the_heads_loss_and_its_gradients(rows, width, vocabulary, seed):
    hidden, table = normal(seed, (rows, width), (vocabulary, width))
    rng = np.random.default_rng(seed)
    labels, weights = rng.integers(0, vocabulary, rows).astype(np.int32), rng.random(rows).astype(np.float32)
    H, T, W = double(hidden, table, weights)
    logits = H @ T.T
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -(W * np.log(probabilities[np.arange(rows), labels])).sum()
    probabilities[np.arange(rows), labels] -= 1
    slope = probabilities * W[:, None]
    arrays = [hidden, table, labels, weights]
    close(call("head_loss_value", arrays, [(1,)]), [loss])
    found, d_hidden, d_table = call("head_loss_gradients", arrays, [(1,), hidden.shape, table.shape])
    close(found, [loss])
    close(d_hidden, slope @ T)
    close(d_table, slope.T @ H)


@many
@given(st.integers(1, 300), sizes, st.integers(1, 300), seeds)
def test_the_tied_embeddings_gradient(rows, width, vocabulary, seed):
    d_rows, of_head = normal(seed, (rows, width), (vocabulary, width))
    ids = np.random.default_rng(seed).integers(0, vocabulary, rows).astype(np.int32)
    wanted = of_head.astype(np.float64)
    np.add.at(wanted, ids, d_rows.astype(np.float64))
    close(call("tied_backward", [ids, d_rows, of_head], [of_head.shape]), wanted)


def test_adamw_and_the_norm_over_several_pieces():
    weight, gradient = normal(3, (40000,), (40000,))
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    W, G = double(weight, gradient)
    assert train.squared_norm(train.library(), [gradient, gradient]) == pytest.approx(2 * (G**2).sum(), rel=1e-12)
    train.update(train.library(), [(weight, first, second, gradient, True)], 0.5, 0.01, 0.999, 0.9, 0.95, 1e-8)
    close(first, 0.1 * 0.5 * G)
    close(second, 0.05 * 0.25 * G**2)
    close(weight, W * 0.999 - 0.01 * 0.05 * G / (math.sqrt(0.05 * 0.25) * np.abs(G) + 1e-8))
    with pytest.raises(ValueError, match="contiguous fp32"):
        train.update(train.library(), [(weight, first, second[::2], gradient, True)], 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    x, gamma, table = normal(5, (4, 8), (8,), (9, 8))
    x[1, 3] = bad
    eps, ones, labels = np.array([1e-5], np.float32), np.ones(4, np.float32), np.zeros(4, np.int32)
    with np.errstate(all="ignore"):
        assert not np.isfinite(call("layer_norm", [x, gamma, gamma, eps], [x.shape])[1]).all()
        assert not np.isfinite(call("gelu", [x], [x.shape])[1]).all()
        assert not np.isfinite(call("head_loss_value", [x, table, labels, ones], [(1,)])).all()
        assert not np.isfinite(call("linear_plain", [x, table.T.copy()], [(4, 9)])[1]).all()
        assert not np.isfinite(
            call("attention", [x, x, x, np.arange(4, dtype=np.int32)[None]], [x.shape, (1, 4)])[0]
        ).all()


def test_ids_labels_and_positions_out_of_bounds_reach_no_memory():
    x, table = normal(6, (4, 8), (9, 8))
    outside = np.array([-1, 9, 2**31 - 1, -(2**31)], np.int32)
    assert (call("tied_backward", [outside, x, table], [table.shape]) == table).all()
    for label in (-1, 9, 2**31 - 1):
        labels = np.array([0, 1, label, 2], np.int32)
        found = call("head_loss_gradients", [x, table, labels, np.ones(4, np.float32)], [(1,), x.shape, table.shape])
        assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()
    for position in (-5, 77):
        positions = np.array([[0, 1, position, 3]], np.int32)
        mixed, logsum = call("attention", [x, x, x, positions], [x.shape, (2, 4)])
        assert np.isfinite(mixed).all()
        found = call("attention_backward", [x, x, x, positions, mixed, logsum, x], [x.shape] * 3)
        assert all(np.isfinite(one).all() for one in found)


def test_the_same_call_gives_the_same_bits():
    x, weight, dy = normal(7, (1500, 64), (64, 96), (1500, 96))
    once, again = (call("linear_plain_backward", [x, weight, dy], [x.shape, weight.shape, (96,)]) for _ in range(2))
    for a, b in zip(once, again):
        np.testing.assert_array_equal(a, b)
