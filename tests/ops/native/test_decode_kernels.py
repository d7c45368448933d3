"""Decode steps and prompts by the kernels, against numpy in double precision over random shapes.

Needs no graph and no MindSpore, so that `make test-native` can run it under AddressSanitizer: every array is as large as
the kernels are told, the scratch too.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_lab.compiling import compiler
from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.native import QUERIES, NativeDecoder
from pangu_lab.ops.native import decode

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")  # with one they must be there
some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS, POSITIONS, VOCABULARY, SLOTS = "word_embedding.embedding_table", "position_embedding.embedding_table", 53, 150


def blocks(config: ModelConfig) -> list[str]:
    return [f"backbone.blocks.{i}" for i in range(config.num_layers - 1)] + ["backbone.top_query_layer"]


def random_parameters(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Everything a graph holds, by name; the cache empty."""
    rng, hidden, inner = np.random.default_rng(seed), config.hidden_size, 4 * config.hidden_size

    def normal(*shape: int, around: float = 0.0, size: float = 1.0) -> np.ndarray:
        return (around + size * rng.standard_normal(shape)).astype(np.float32)

    found = {
        f"backbone.{WORDS}": normal(VOCABULARY, hidden),
        f"backbone.{POSITIONS}": normal(config.num_positions, hidden),
        QUERIES: normal(config.num_positions, hidden, size=hidden**-0.5),
        "backbone.layernorm.gamma": normal(hidden, around=1.0),
        "backbone.layernorm.beta": normal(hidden),
    }
    for prefix in blocks(config):
        wide = 2 if prefix.endswith("query_layer") else 3
        for part, out, into in (
            ("attention.qkv", wide * hidden, hidden),
            ("attention.projection", hidden, hidden),
            ("output.mapping", inner, hidden),
            ("output.projection", hidden, inner),
        ):
            found[f"{prefix}.{part}.weight"] = normal(out, into, size=into**-0.5)
            found[f"{prefix}.{part}.bias"] = normal(out)
        for i in (1, 2):
            found[f"{prefix}.layernorm{i}.gamma"] = normal(hidden, around=1.0)
            found[f"{prefix}.layernorm{i}.beta"] = normal(hidden)
        for kind in ("keys", "values"):
            found[f"{prefix}.cache.{kind}"] = np.zeros(
                (config.num_heads * SLOTS, hidden // config.num_heads), np.float32
            )
    return found


class Tight(NativeDecoder):
    """Gets no more scratch for a call than that call asks for."""

    def _scratch_of(self, floats: int) -> int:
        self._scratch = np.empty(0, np.float32)
        return super()._scratch_of(floats)


def decoder_of(config: ModelConfig, parameters: dict[str, np.ndarray], kind: str) -> NativeDecoder:
    """The products' weights stored as ``kind``; the parameters are rounded likewise."""
    if kind in ("float32", "int8"):
        decoder = Tight(decode.library(), parameters, config, SLOTS)
        if kind == "int8":
            decoder.use_int8()
        return decoder
    arrays = dict(parameters)
    for name, value in parameters.items():
        if name.endswith((".weight", WORDS)):
            arrays[name] = decode.halved(value, kind)
            value[...] = rounded(value, kind)
    return Tight(decode.library(), arrays, config, SLOTS, kind)


def rounded(value: np.ndarray, kind: str) -> np.ndarray:
    """To the nearest number of 16 bits, by other means than the kernels'."""
    if kind == "float16":
        return value.astype(np.float16).astype(np.float32)
    mantissa, exponent = np.frexp(value.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)


def activated(x: np.ndarray, name: str) -> np.ndarray:
    if name == "gelu_erf":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    u = 1.702 * x if name == "fast_gelu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-u))


def reference(parameters: dict[str, np.ndarray], config: ModelConfig, ids: np.ndarray) -> np.ndarray:
    """Logits (batch, seq, vocabulary) of whole sequences (batch, seq), without a cache."""
    weights = {name.removeprefix("backbone."): value.astype(np.float64) for name, value in parameters.items()}
    (batch, seq), heads = ids.shape, config.num_heads

    def norm(x, name):
        scale = 1 / np.sqrt(x.var(-1, keepdims=True) + config.layernorm_eps)
        return (x - x.mean(-1, keepdims=True)) * scale * weights[f"{name}.gamma"] + weights[f"{name}.beta"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def by_head(x):
        return x.reshape(batch, seq, heads, -1).transpose(0, 2, 1, 3)

    x = weights[WORDS][ids] + weights[POSITIONS][:seq]
    for block in (name.removeprefix("backbone.") for name in blocks(config)):
        last = block == "top_query_layer"
        x = norm(x, "layernorm") if last else x
        parts = np.split(linear(norm(x, f"{block}.layernorm1"), f"{block}.attention.qkv"), 2 if last else 3, -1)
        query = np.tile(weights[QUERIES.removeprefix("backbone.")][:seq], (batch, 1, 1)) if last else parts[0]
        scores = by_head(query) @ by_head(parts[-2]).swapaxes(2, 3)
        scores = np.where(np.tri(seq, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ by_head(parts[-1])
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(batch, seq, -1), f"{block}.attention.projection")
        inner = activated(linear(norm(x, f"{block}.layernorm2"), f"{block}.output.mapping"), config.hidden_act)
        x = x + linear(inner, f"{block}.output.projection")
    return x @ weights[WORDS].T


@some
@given(
    st.integers(2, 3),
    st.integers(1, 3),
    st.one_of(st.integers(1, 37), st.sampled_from([40, 64, 75, 128])),
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from(sorted(decode.ACTIVATIONS)),
    st.sampled_from(sorted(decode.KINDS)),
    st.integers(0, 2**31),
)
@pytest.mark.parametrize("most", [14, 120])  # 120: more queries than a thread takes at once
def test_a_prompt_and_steps_after_it(most, layers, heads, dim, batch, steps, name, kind, seed):
    rng = np.random.default_rng(seed)
    batch = batch if most == 14 else 1
    heads = max(heads, -(-4 // dim))  # the norm of two or three numbers that are nearly equal magnifies any rounding
    prompt = int(rng.integers(2, most - steps + 1))  # one token each is a step
    config = ModelConfig(VOCABULARY, most, heads * dim, layers, heads, hidden_act=name, dropout_rate=0.0)
    parameters = random_parameters(config, seed)
    decoder = decoder_of(config, parameters, kind)
    ids = rng.integers(0, VOCABULARY, (batch, prompt + steps))
    slots = rng.permutation(SLOTS)[: ids.size].reshape(ids.shape)  # of the cache, in no order
    at = np.tile(np.arange(prompt + steps), (batch, 1))
    rows = rng.permutation(batch * prompt)[: int(rng.integers(1, batch * prompt + 1))]
    wanted = reference(parameters, config, ids)
    found = decoder.run(ids[:, :prompt], at[:, :prompt], slots[:, :prompt], slots[:, :prompt], rows)
    close(found, wanted[:, :prompt].reshape(-1, VOCABULARY)[rows])
    for t in range(prompt, prompt + steps):
        now = slice(t, t + 1)
        asked = rng.permutation(batch)[: int(rng.integers(1, batch + 1))]
        found = decoder.run(ids[:, now], at[:, now], slots[:, now], slots[:, : t + 1], asked)
        close(found, wanted[asked, t])


@some
@given(
    st.integers(1, 3),
    st.integers(4, 37),
    st.integers(2, 9),
    st.sampled_from(sorted(decode.ACTIVATIONS)),
    st.sampled_from(sorted(decode.KINDS)),
    st.integers(0, 2**31),
)
def test_a_step_gives_a_sequence_the_same_bits_alone_and_in_company(heads, dim, batch, name, kind, seed):
    """Of widths at which each row begins at another address, as vectors see it."""
    rng = np.random.default_rng(seed)
    config = ModelConfig(VOCABULARY, 14, heads * dim, 2, heads, hidden_act=name, dropout_rate=0.0)
    decoder = decoder_of(config, random_parameters(config, seed), kind)
    ids, at = rng.integers(0, VOCABULARY, (batch, 6)), np.tile(np.arange(6), (batch, 1))
    slots = rng.permutation(SLOTS)[: ids.size].reshape(ids.shape)
    decoder.run(ids[:, :5], at[:, :5], slots[:, :5], slots[:, :5], np.arange(batch))
    together = decoder.run(ids[:, 5:], at[:, 5:], slots[:, 5:], slots, np.arange(batch))
    for b in range(batch):
        one = slice(b, b + 1)
        alone = decoder.run(ids[one, 5:], at[one, 5:], slots[one, 5:], slots[one], np.arange(1))
        np.testing.assert_array_equal(alone, together[one])


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """To 1e-4 of the largest number: three layers in single precision."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_is_widened_exactly(dtype):
    """All finite numbers of 16 bits, denormals too, as words of a network whose logits are one of their dimensions."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = (
        bits.view(np.float16).astype(np.float32)
        if dtype == "float16"
        else (bits.astype(np.uint32) << 16).view(np.float32)
    )
    values = values[np.isfinite(values)]
    held = decode.halved(np.repeat(values[:, None], 32, 1), dtype)
    one = np.zeros((1, 32), np.float32)
    one[0, 21] = 1.0
    found = decode.product(held, one, dtype)[0]
    assert np.array_equal(found.view(np.uint32) << 1, values.view(np.uint32) << 1)  # but for the sign of zero
    assert np.array_equal(found, values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_product_of_many_sequences_and_long_rows_has_the_bits_of_each_alone(dtype):
    """More inputs and more sequences than are taken at once, and no whole numbers of either."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((23, 1100)).astype(np.float16).astype(np.float32)
    held = weight if dtype == "float32" else decode.halved(weight, dtype)
    x = rng.standard_normal((21, 1100)).astype(np.float32)
    found = decode.product(held, x, dtype)
    exact = x.astype(float) @ (weight if dtype != "bfloat16" else rounded_to_bfloat16(weight)).T.astype(float)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    for count in (1, 2, 3, 7, 16, 17):
        np.testing.assert_array_equal(decode.product(held, x[:count], dtype), found[:count])


def rounded_to_bfloat16(weight: np.ndarray) -> np.ndarray:
    """By MindSpore."""
    return ms.Tensor(weight).astype(ms.bfloat16).astype(ms.float32).asnumpy()


def test_what_does_not_fit_float16_is_refused():
    with pytest.raises(InputError, match="bfloat16"):
        decode.halved(np.full((1, 32), 70000.0, np.float32), "float16")
    assert decode.halved(np.full((1, 32), 70000.0, np.float32), "bfloat16").any()
