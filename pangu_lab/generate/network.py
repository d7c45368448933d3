"""The network as generation uses it: new tokens in, logits out, keys and values kept in a cache inside the graph.

One graph with inputs of dynamic length serves prefill, decode and batches of sequences. The cache is paged: it is
a pool of places, each holding one position of some sequence, and every call says where to write the new positions
and where to read the old ones. Sequences may therefore share a prefix, fork (beam search) or move without a copy.
What was learned about MindSpore on CPU:

- the cache is kept head-major, rows of (head, place), because ``Gather`` then yields what ``BatchMatMul`` wants
  without a transpose; gathering only the valid places beats attending over the whole cache (35 ms → 28 ms a step);
- ``ScatterUpdate`` writes rows in place and returns the parameter, so that what reads it runs after it;
- one-row ``MatMul`` reaches the memory's read speed, best with weights stored (out, in); fusing q, k and v pays;
- dynamic shapes cost a few µs an operator, mostly in products: a graph compiled for one token is 10 % faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.moe import Router
from pangu_lab.model.parameters import FINAL_NORM, POSITION, QUERY, WORD, layer_prefix, parameter_specs
from pangu_lab.ops import activation
from pangu_lab.parallel.collectives import AllGather, AllReduce, Group
from pangu_lab.parallel.layers import local_ids
from pangu_lab.parallel.placement import Place

MASKED = -10000.0
Weights = Mapping[str, np.ndarray]  # read one by one
ALONE = Group("", (0,), 0)


def check_weights(weights: Weights, config: ModelConfig) -> None:
    """Refuse weights that are not those of ``config``.

    Raises:
        InputError: names the first parameter that is missing, of the wrong shape, or unknown.
    """
    specs = parameter_specs(config)
    shapes = getattr(weights, "shapes", None) or {name: value.shape for name, value in weights.items()}
    for name, spec in specs.items():
        if name not in weights:
            raise InputError(f"the weights lack {name}, which model.num_layers={config.num_layers} needs")
        shape = tuple(shapes[name])
        if shape != tuple(spec.shape):
            raise InputError(f"{name} has shape {shape}, the configuration needs {spec.shape}")
    unknown = [name for name in weights if name not in specs]
    if unknown:
        raise InputError(f"the weights hold {unknown[0]}, which the configuration does not have")


class _Part(Mapping[str, np.ndarray]):
    """What one of several tensor-parallel ranks holds of the weights; each is sliced when it is asked for."""

    def __init__(self, weights: Weights, config: ModelConfig, group: Group) -> None:
        self.weights, self.specs, self.group = weights, parameter_specs(config), group

    def __getitem__(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        if spec.tensor_axis is None:
            return self.weights[name]
        place = Place(spec.shape, (0,) * len(spec.shape), spec.shape)
        return place.slice(spec.tensor_axis, self.group.index, self.group.size).of(self.weights[name])

    def __iter__(self):
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _parameter(name: str, value: np.ndarray) -> Parameter:
    return Parameter(Tensor(np.ascontiguousarray(value, np.float32)), name=name, requires_grad=False)


class _Norm(nn.Cell):
    """LayerNorm over the last axis of (rows, hidden); forward only, so the one fused operator is the quickest."""

    def __init__(self, weights: Weights, prefix: str, eps: float):
        super().__init__(auto_prefix=False)
        self.gamma = _parameter(f"{prefix}.gamma", weights[f"{prefix}.gamma"])
        self.beta = _parameter(f"{prefix}.beta", weights[f"{prefix}.beta"])
        self.norm = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=eps)

    def construct(self, x):
        y, _, _ = self.norm(x, self.gamma, self.beta)
        return y


class _Linear(nn.Cell):
    """x (rows, in) · weightᵀ + bias, weight kept (out, in); summed over the ``group`` whose ranks split the inputs."""

    def __init__(self, name: str, weight: np.ndarray, bias: np.ndarray, group: Group = ALONE):
        super().__init__(auto_prefix=False)
        self.weight = _parameter(f"{name}.weight", weight)
        self.bias = _parameter(f"{name}.bias", bias)
        self.product = ops.MatMul(transpose_b=True)
        self.reduce = AllReduce(group)
        self.add = ops.Add()

    def construct(self, x):
        return self.add(self.reduce(self.product(x, self.weight)), self.bias)


class _FeedForward(nn.Cell):
    """x (rows, hidden) → 4·hidden → activation → hidden."""

    def __init__(self, weights: Weights, config: ModelConfig, prefix: str, group: Group):
        super().__init__(auto_prefix=False)
        self.up = _transposed(weights, f"{prefix}.mapping")
        self.down = _transposed(weights, f"{prefix}.projection", group)
        self.act = activation(config.hidden_act)

    def construct(self, x, one):
        return self.down(self.act(self.up(x)))


class _Experts(nn.Cell):
    """A mixture of experts over any number of rows; nothing is dropped.

    A single token reads the weights of its own experts alone. Several rows pass through every expert in turn, because
    how many rows an expert gets is not known when the graph is compiled, and are weighted by their gates, mostly 0.
    """

    def __init__(self, weights: Weights, config: ModelConfig, prefix: str, group: Group):
        super().__init__(auto_prefix=False)
        self.experts = config.num_experts
        self.router = Router(config, lambda name: _parameter(name, weights[name]), prefix)
        self.up, self.up_bias = self._stack(weights, f"{prefix}.experts.mapping")
        self.down, self.down_bias = self._stack(weights, f"{prefix}.experts.projection")
        self.act = activation(config.hidden_act)
        self.product, self.gather, self.add, self.mul = ops.MatMul(transpose_b=True), ops.Gather(), ops.Add(), ops.Mul()
        self.argmax, self.sum = ops.Argmax(-1, ms.int32), ops.ReduceSum(keep_dims=True)
        self.numbers = Tensor(np.arange(config.num_experts, dtype=np.int32))

    @staticmethod
    def _stack(weights: Weights, name: str):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return _parameter(f"{name}.weight", weight.transpose(0, 2, 1)), _parameter(f"{name}.bias", bias[:, 0])

    def construct(self, x, one):
        _, _, chosen, gates = self.router(x)
        total = self.mul(x, 0.0)
        if one:
            for j in range(len(chosen)):
                number = ops.reshape(self.argmax(chosen[j]), ())
                total = self.add(total, self.mul(self.expert(x, number), gates[:, j:j + 1]))
            return total
        for e in range(self.experts):
            gate = self.mul(chosen[0][:, e:e + 1], gates[:, 0:1])
            for j in range(1, len(chosen)):
                gate = self.add(gate, self.mul(chosen[j][:, e:e + 1], gates[:, j:j + 1]))
            total = self.add(total, self.mul(self.expert(x, self.numbers[e]), gate))
        return total

    def expert(self, x, number):
        inner = self.product(x, self.gather(self.up, number, 0))
        inner = self.act(self.add(inner, self.gather(self.up_bias, number, 0)))
        return self.add(self.product(inner, self.gather(self.down, number, 0)), self.gather(self.down_bias, number, 0))


def _transposed(weights: Weights, name: str, group: Group = ALONE) -> _Linear:
    return _Linear(name, weights[f"{name}.weight"].T, weights[f"{name}.bias"], group)


def _stacked(weights: Weights, prefix: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Several (out, in) products of the same input as one."""
    parts = [(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]) for name in names]
    return np.concatenate([weight for weight, _ in parts]), np.concatenate([bias for _, bias in parts])


def _projection_in(weights: Weights, prefix: str, names: tuple[str, ...], head_dim: int):
    """The fused q-k-v (or k-v) product with 1/√head_dim folded into the query, which saves a pass per layer."""
    weight, bias = _stacked(weights, prefix, names)
    if names[0] == "dense1":
        queries = len(weight) // len(names)
        weight[:queries] *= head_dim**-0.5
        bias[:queries] *= head_dim**-0.5
    return weight, bias


class _Layer(nn.Cell):
    """One block, or the query layer, over rows of new tokens.

    Shapes: x (batch·n, hidden); write (batch·n·heads,) and read (batch, heads, t) rows of the cache; mask
    (batch, 1, n, t); query (batch·n, hidden) the ready query of the query layer, ignored by the others. With a group
    of several ranks, heads and the inner size of the feed-forward part are this rank's share.
    """

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, places: int, group: Group):
        super().__init__(auto_prefix=False)
        prefix = layer_prefix(config, layer)
        self.is_query_layer = layer == config.num_layers - 1
        self.heads, self.head_dim = config.num_heads // group.size, config.head_dim
        self.hidden = self.heads * self.head_dim
        names = ("dense2", "dense3") if self.is_query_layer else ("dense1", "dense2", "dense3")
        self.norm1 = _Norm(weights, f"{prefix}.layernorm1", config.layernorm_eps)
        self.norm2 = _Norm(weights, f"{prefix}.layernorm2", config.layernorm_eps)
        self.qkv = _Linear(f"{prefix}.attention.qkv",
                           *_projection_in(weights, f"{prefix}.attention", names, config.head_dim))
        self.out = _transposed(weights, f"{prefix}.attention.projection", group)
        feed_forward = _Experts if layer in config.moe_layers else _FeedForward
        self.feed_forward = feed_forward(weights, config, f"{prefix}.output", group)
        shape = (self.heads * places, config.head_dim)
        self.keys = _parameter(f"{prefix}.cache.keys", np.zeros(shape, np.float32))
        self.values = _parameter(f"{prefix}.cache.values", np.zeros(shape, np.float32))
        self.split = ops.Split(1, len(names))
        self.scatter, self.gather = ops.ScatterUpdate(), ops.Gather()
        self.transpose, self.reshape = ops.Transpose(), ops.Reshape()
        self.scores, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.softmax, self.add = ops.Softmax(-1), ops.Add()

    def construct(self, x, query, write, read, mask, batch, n, one=False):
        query, k, v = self.project(x, query)
        keys = self.scatter(self.keys, write, self.reshape(k, (-1, self.head_dim)))
        values = self.scatter(self.values, write, self.reshape(v, (-1, self.head_dim)))
        return self.finish(x, query, self.gather(keys, read, 0), self.gather(values, read, 0), mask, batch, n,
                           one)

    def without_cache(self, x, query, mask, batch, n):
        """The same over whole sequences: nothing is read from the cache or kept in it."""
        query, k, v = self.project(x, query)
        return self.finish(x, query, self.by_head(k, batch, n), self.by_head(v, batch, n), mask, batch, n)

    def project(self, x, query):
        projected = self.split(self.qkv(self.norm1(x)))
        if self.is_query_layer:
            return query, projected[0], projected[1]
        return projected[0], projected[1], projected[2]

    def by_head(self, rows, batch, n):
        """(batch·n, hidden) → (batch, heads, n, head_dim)"""
        return self.transpose(self.reshape(rows, (batch, n, self.heads, self.head_dim)), (0, 2, 1, 3))

    def finish(self, x, query, keys, values, mask, batch, n, one=False):
        """Attention over keys and values (batch, heads, t, head_dim), then the feed-forward part."""
        scores = self.add(self.scores(self.by_head(query, batch, n), keys), mask)
        mixed = self.mix(self.softmax(scores), values)
        mixed = self.reshape(self.transpose(mixed, (0, 2, 1, 3)), (-1, self.hidden))
        x = self.add(x, self.out(mixed))
        return self.add(x, self.feed_forward(self.norm2(x), one))


def _query_table(weights: Weights, config: ModelConfig) -> np.ndarray:
    """The query layer's query of every position: dense1 of its query embedding, scaled. It needs no input at
    all."""
    prefix = f"{layer_prefix(config, config.num_layers - 1)}.attention.dense1"
    table = weights[QUERY].astype(np.float32) @ weights[f"{prefix}.weight"].astype(np.float32).T
    return (table + weights[f"{prefix}.bias"]) * np.float32(config.head_dim**-0.5)


def check_group(config: ModelConfig, group: Group) -> None:
    """Refuse a number of tensor-parallel ranks that cannot share this network.

    Raises:
        InputError: names what is not divisible.
    """
    for name, amount in (("num_heads", config.num_heads), ("vocab_size", config.vocab_size)):
        if amount % group.size:
            raise InputError(f"{group.size} tensor-parallel ranks cannot share model.{name}={amount}: take a number "
                             "that divides it")
    if group.size > 1 and config.moe_layers:
        raise InputError("a mixture of experts runs in one process here: leave tensor parallelism at 1")


class CachedNetwork(nn.Cell):
    """PanGu-α over a paged cache of ``places`` positions.

    ``construct(ids, positions, write, read, rows)``, all int32:
        ids (batch, n): the new tokens of each sequence;
        positions (batch, n): their positions, below ``num_positions``;
        write (batch, n): the place where each new position is kept; all different;
        read (batch, t): the place of position 0, 1, 2 … of each sequence, the new ones included; what lies beyond
            a sequence's end may be any place, since a token never looks at positions after its own;
        rows (m,): which of the batch·n new tokens to give logits for.
    Returns logits (m, vocab_size) float32. Short sequences of a batch are padded at the right: a padded position
    is written over before anything reads it.

    Tensor parallel, each rank of ``group`` holds its share of the heads, of the feed-forward part and of the
    vocabulary; all are called with the same inputs and all return the whole logits.
    """

    def __init__(self, weights: Weights, config: ModelConfig, places: Optional[int] = None, group: Group = ALONE):
        super().__init__(auto_prefix=False)
        check_weights(weights, config)
        check_group(config, group)
        self.places = places or config.num_positions
        self.split, self.heads = group.size > 1, config.num_heads // group.size
        self.part = config.vocab_size // group.size
        self.first = self.part * group.index
        self.reduce, self.gather_parts = AllReduce(group), AllGather(group)
        weights = _Part(weights, config, group) if self.split else weights
        self.words = _parameter(WORD, weights[WORD])
        self.positions = _parameter(POSITION, weights[POSITION])
        self.queries = _parameter("backbone.top_query_layer.query_of_position", _query_table(weights, config))
        self.blocks = nn.CellList([_Layer(weights, config, layer, self.places, group)
                                   for layer in range(config.num_layers - 1)], auto_prefix=False)
        self.query_layer = _Layer(weights, config, config.num_layers - 1, self.places, group)
        self.final_norm = _Norm(weights, FINAL_NORM, config.layernorm_eps)
        self.head_rows = Tensor(np.arange(self.heads, dtype=np.int32).reshape(1, 1, -1) * self.places)
        self.index = Tensor(np.arange(config.num_positions, dtype=np.int32))
        self.gather, self.reshape, self.add = ops.Gather(), ops.Reshape(), ops.Add()
        self.product, self.transpose = ops.MatMul(transpose_b=True), ops.Transpose()
        self.set_train(False)

    def construct(self, ids, positions, write, read, rows):
        return self.logits(ids, positions, write, read, rows, False)

    def logits(self, ids, positions, write, read, rows, one):
        """``one``: there is a single token, known when the graph is compiled."""
        batch, n = ids.shape
        t = read.shape[1]
        flat = self.reshape(positions, (-1,))
        x = self.embed(self.reshape(ids, (-1,)), flat)
        write_rows = self.reshape(self.add(self.reshape(write, (batch, n, 1)), self.head_rows), (-1,))
        read_rows = self.add(self.reshape(read, (batch, 1, t)), self.reshape(self.head_rows, (1, self.heads, 1)))
        later = self.reshape(self.index[:t], (1, 1, 1, t)) > self.reshape(positions, (batch, 1, n, 1))
        mask = ops.cast(later, ms.float32) * MASKED
        for block in self.blocks:
            x = block(x, x, write_rows, read_rows, mask, batch, n, one)
        x = self.final_norm(x)
        x = self.query_layer(x, self.gather(self.queries, flat, 0), write_rows, read_rows, mask, batch, n)
        return self.head(self.gather(x, rows, 0))

    def head(self, x):
        """Logits of rows x (m, hidden): (m, vocab_size)."""
        if not self.split:
            return self.product(x, self.words)
        return self.transpose(self.gather_parts(self.product(self.words, x)), (1, 0))

    def embed(self, ids, positions):
        return self.add(self.embed_words(ids), self.gather(self.positions, positions, 0))

    def embed_words(self, ids):
        if not self.split:
            return self.gather(self.words, ids, 0)
        inside, local = local_ids(ids, self.first, self.part)
        rows = self.gather(self.words, local, 0)
        return self.reduce(ops.mul(rows, ops.expand_dims(ops.cast(inside, ms.float32), 1)))


class FixedNetwork(nn.Cell):
    """The same parameters and cache, compiled for a fixed number of tokens: the products have fixed shapes.

    ``one``: for a single token of a single sequence.
    """

    def __init__(self, network: CachedNetwork, one: bool = True):
        super().__init__(auto_prefix=False)
        self.network, self.one = network, one
        self.set_train(False)

    def construct(self, ids, positions, write, read, rows):
        return self.network.logits(ids, positions, write, read, rows, self.one)


def dynamic_inputs() -> tuple[Tensor, ...]:
    """Placeholders of the five inputs: any batch, length and number of rows."""
    return tuple(Tensor(shape=shape, dtype=ms.int32)
                 for shape in ([None, None], [None, None], [None, None], [None, None], [None]))


def fixed_inputs(batch: int, n: int) -> tuple[Tensor, ...]:
    """Placeholders for n tokens each of ``batch`` sequences; of a single token, how many positions are looked at is
    open."""
    shapes = ([batch, n], [batch, n], [batch, n], [batch, None if n == 1 else n], [batch])
    return tuple(Tensor(shape=shape, dtype=ms.int32) for shape in shapes)
