"""The network as generation uses it: new tokens in, logits out, keys and values kept in a cache inside the graph.

One graph with inputs of dynamic length serves prefill, decode and batches of sequences. The cache is paged: it is
a pool of slots, each holding one position of some sequence, and every call says where to write the new positions
and where to read the old ones. Sequences may therefore share a prefix, fork (beam search) or move without a copy.

The order of the layers is in ``model/pangu.py``; here are the parts, made for inference. Findings about MindSpore on
CPU:

- the cache is kept head-major, rows of (head, slot), because ``Gather`` then yields what ``BatchMatMul`` needs
  without a transpose; gathering only the valid slots beats attending over the whole cache (35 ms → 28 ms a step);
- ``ScatterUpdate`` writes rows in place and returns the parameter, so that its readers run after it;
- one-row ``MatMul`` reaches the memory's read speed, best with weights stored (out, in); fusing q, k and v pays;
- dynamic shapes cost a few µs an operator, mostly in products: a graph compiled for one token is 10 % faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.inference import QUERIES, check_split, is_product
from pangu_lab.model.moe import Router
from pangu_lab.model.pangu import Stack
from pangu_lab.model.parameters import POSITION, QUERY, WORD, layer_prefix, parameter_specs
from pangu_lab.ops.attention import MASKED
from pangu_lab.ops.native.decode import halved, quantise
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import AllGather, AllReduce, Group
from pangu_lab.parallel.layers import WordEmbedding
from pangu_lab.parallel.sharding import Shard

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
    """One tensor-parallel rank's part of the weights; each is sliced when it is asked for."""

    def __init__(self, weights: Weights, config: ModelConfig, group: Group) -> None:
        self.weights, self.specs, self.group = weights, parameter_specs(config), group

    def __getitem__(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        if spec.tensor_axis is None:
            return self.weights[name]
        shard = Shard(spec.shape, (0,) * len(spec.shape), spec.shape)
        return shard.slice(spec.tensor_axis, self.group.index, self.group.size).of(self.weights[name])

    def __iter__(self):
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class Parameters:
    """The Parameters of a network in the layout of inference, each made once, so that several graphs share them.

    Args:
        weights: whole, by released name.
        group: the tensor-parallel ranks; each holds its slice.
        dtype: of the weights of products: "float32", or "float16" with products in it, for devices that have them. (A CPU
            has them too, but slow; its C kernels are for that, see ``KernelParameters``.)
    """

    def __init__(self, weights: Weights, config: ModelConfig, group: Group = ALONE, dtype: str = "float32"):
        self.config, self.group, self.dtype = config, group, dtype
        check_split(config, group.size)
        self._take(weights)
        self.made: dict[str, Any] = {}
        self._makes: dict[str, Callable[[], np.ndarray] | None] = {}

    def _take(self, weights: Weights) -> None:
        check_weights(weights, self.config)
        self.weights = _Part(weights, self.config, self.group) if self.group.size > 1 else weights

    def __call__(self, name: str, make=None) -> Any:
        """The parameter ``name``: the weight of that name, or the result of ``make``, which asks for ``self.weights`` each
        time: ``renew`` calls it again with others."""
        if name not in self.made:
            self._makes[name] = make
            self.made[name] = self._kept(name, self._value(name))
        return self.made[name]

    def renew(self, weights: Weights) -> None:
        """Replace the values by those of other weights of the same network, whole; graphs and kernels over these
        parameters go on with the new ones. What the cache holds is of no use afterwards."""
        self._take(weights)
        for name, held in self.made.items():
            if ".cache." not in name:
                self._replace(held, self._value(name))

    def _value(self, name: str) -> np.ndarray:
        """The numbers of a parameter, in the type that it is kept in."""
        make = self._makes[name]
        value = self.weights[name] if make is None else make()
        if self.dtype == "float32" or not is_product(name):
            return np.ascontiguousarray(value, np.float32)
        return self._low_precision(name, value)

    def _low_precision(self, name: str, value: np.ndarray) -> np.ndarray:
        return halved(value, self.dtype).view(np.float16)

    def _kept(self, name: str, value: np.ndarray) -> Any:
        return Parameter(Tensor(value), name=name, requires_grad=False)

    def _replace(self, held: Any, value: np.ndarray) -> None:
        if ms.get_context("device_target") == "CPU":  # the kernels know the parameters by their addresses
            held.asnumpy()[...] = value
        else:
            held.set_data(Tensor(value))

    def whole(self, name: str) -> nn.Cell:
        return nn.Identity()


class KernelParameters(Parameters):
    """The same as numpy arrays, the weights of products in 16 or 8 bits: what the C kernels read where no graph does.

    Args:
        dtype: "float16", "bfloat16" or "int8"; with the last, ``scales`` has the factor of every row of a weight.
    """

    def __init__(self, weights: Weights, config: ModelConfig, dtype: str):
        super().__init__(weights, config, dtype=dtype)
        self.scales: dict[str, np.ndarray] = {}

    def _low_precision(self, name: str, value: np.ndarray) -> np.ndarray:
        if self.dtype != "int8":
            return halved(value, self.dtype)
        quantised, scale = quantise(np.array(value, np.float32, order="C"))  # a copy, which it overwrites
        self.scales.setdefault(name, scale)[...] = scale
        return quantised

    def _kept(self, name: str, value: np.ndarray) -> Any:
        return value.copy() if name in self.weights else value  # the caller's own would change with ``renew``

    def _replace(self, held: Any, value: np.ndarray) -> None:
        held[...] = value


@dataclass(frozen=True)
class InferenceParts:
    """The parts of ``Stack`` for inference: forward only, fp32, weights in the layout that suits one-row products.

    Args:
        parameters: networks made from the same object share them, the cache too.
        slots: positions that the cache holds; None for whole records without a cache.
        one: there is a single token, known when the graph is compiled.
        layers: those of this pipeline stage; None for all.
    """

    config: ModelConfig
    parameters: Parameters
    group: Group = ALONE
    slots: int | None = None
    one: bool = False
    layers: range | None = None
    backend: Portable = field(default_factory=Portable)

    @property
    def heads(self) -> int:
        """This rank's."""
        return self.config.num_heads // self.group.size

    def words(self) -> nn.Cell:
        return _Words(WordEmbedding(self.parameters, WORD, self.config.vocab_size, self.group, AllReduce(self.group)))

    def positions(self) -> nn.Cell:
        return _Rows(self.parameters(POSITION))

    def queries(self) -> nn.Cell:
        """The precomputed query of each position: dense1 of its embedding, scaled. It depends on no input."""
        return _Rows(self.parameters(QUERIES, lambda: _query_table(self.parameters.weights, self.config)))

    def norm(self, prefix: str) -> nn.Cell:
        return _Norm(self.parameters, prefix, self.config.layernorm_eps)

    def projections(self, layer: int) -> nn.Cell:
        kind = _KeyValue if layer == self.config.num_layers - 1 else _QueryKeyValue
        return kind(self, f"{layer_prefix(self.config, layer)}.attention")

    def attention(self, layer: int) -> nn.Cell:
        if self.slots is None:
            return _RecordAttention(self.heads, self.config.head_dim)
        return _CachedAttention(self, f"{layer_prefix(self.config, layer)}.cache")

    def column(self, prefix: str) -> nn.Cell:
        return _transposed(self.parameters, prefix)

    def row(self, prefix: str, after: str = "") -> nn.Cell:
        return _transposed(self.parameters, prefix, self.group, self.backend.activation(after) if after else None)

    def expert_network(self, prefix: str) -> nn.Cell:
        return _Experts(self, prefix)

    def dropout(self, site: str) -> nn.Cell:
        return _NoDropout()

    def enter(self) -> nn.Cell:
        return nn.Identity()

    def own_rows(self) -> nn.Cell:
        return nn.Identity()

    def head(self) -> nn.Cell:
        return _Head(self.parameters(WORD), self.group)


class _NoDropout(nn.Cell):
    def construct(self, x, row_keys):
        return x


class _Words(nn.Cell):
    """Rows of the word embedding in fp32, whatever the table is kept in."""

    def __init__(self, embedding: WordEmbedding):
        super().__init__(auto_prefix=False)
        self.embedding = embedding

    def construct(self, ids):
        return ops.cast(self.embedding(ids), ms.float32)


class _Product(nn.Cell):
    """a (m, k) · bᵀ (k, n) in the type of ``weight``, which is one of them; the result is fp32."""

    def __init__(self, weight: Parameter):
        super().__init__(auto_prefix=False)
        self.dtype = weight.dtype
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, a, b):
        return ops.cast(self.product(ops.cast(a, self.dtype), ops.cast(b, self.dtype)), ms.float32)


class _Rows(nn.Cell):
    """indices (batch, n) → rows of a table, (batch·n, hidden)."""

    def __init__(self, table: Parameter):
        super().__init__(auto_prefix=False)
        self.table, self.gather, self.reshape = table, ops.Gather(), ops.Reshape()

    def construct(self, indices):
        return self.gather(self.table, self.reshape(indices, (-1,)), 0)


class _Norm(nn.Cell):
    """LayerNorm over the last axis of (rows, hidden); forward only, so the single fused operator is fastest."""

    def __init__(self, parameters: Parameters, prefix: str, eps: float):
        super().__init__(auto_prefix=False)
        self.gamma, self.beta = parameters(f"{prefix}.gamma"), parameters(f"{prefix}.beta")
        self.norm = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=eps)

    def construct(self, x):
        y, _, _ = self.norm(x, self.gamma, self.beta)
        return y


class _Linear(nn.Cell):
    """activation(x) (rows, in) · weightᵀ + bias, weight kept (out, in); summed over the ``group`` whose ranks split the
    inputs."""

    def __init__(self, weight: Parameter, bias: Parameter, group: Group = ALONE, activation: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.weight, self.bias = weight, bias
        self.activation = activation or nn.Identity()
        self.product = _Product(weight)
        self.reduce = AllReduce(group)
        self.add = ops.Add()

    def construct(self, x):
        return self.add(self.reduce(self.product(self.activation(x), self.weight)), self.bias)


def _transposed(parameters: Parameters, name: str, group: Group = ALONE, activation: nn.Cell | None = None) -> _Linear:
    weight = parameters(f"{name}.weight", lambda: parameters.weights[f"{name}.weight"].T)
    return _Linear(weight, parameters(f"{name}.bias"), group, activation)


def _fused(parts: InferenceParts, prefix: str, names: tuple[str, ...]) -> _Linear:
    """Several products of the same input as one; 1/√head_dim folded into the query, which saves a pass per layer."""
    parameters, scale = parts.parameters, parts.config.head_dim**-0.5

    def stacked(kind: str):
        made = np.concatenate([parameters.weights[f"{prefix}.{name}.{kind}"] for name in names])
        if names[0] == "dense1":
            made[: len(made) // len(names)] *= scale
        return made

    return _Linear(
        *(parts.parameters(f"{prefix}.qkv.{kind}", lambda kind=kind: stacked(kind)) for kind in ("weight", "bias"))
    )


class _QueryKeyValue(nn.Cell):
    """Rows (rows, hidden) → q, scaled, k and v, by one product."""

    def __init__(self, parts: InferenceParts, prefix: str):
        super().__init__(auto_prefix=False)
        self.qkv = _fused(parts, prefix, ("dense1", "dense2", "dense3"))
        self.split = ops.Split(1, 3)

    def construct(self, x, query=None):
        projected = self.split(self.qkv(x))
        return projected[0], projected[1], projected[2]


class _KeyValue(nn.Cell):
    """The same in the query layer, whose query is precomputed."""

    def __init__(self, parts: InferenceParts, prefix: str):
        super().__init__(auto_prefix=False)
        self.qkv = _fused(parts, prefix, ("dense2", "dense3"))
        self.split = ops.Split(1, 2)

    def construct(self, x, query=None):
        projected = self.split(self.qkv(x))
        return query, projected[0], projected[1]


class _RecordAttention(nn.Cell):
    """q, k, v (batch·n, hidden) of whole records → (batch·n, hidden).

    ``mask`` = (additive mask (batch, 1, n, n), batch, n).
    """

    def __init__(self, heads: int, head_dim: int):
        super().__init__(auto_prefix=False)
        self.heads, self.head_dim, self.hidden = heads, head_dim, heads * head_dim
        self.transpose, self.reshape = ops.Transpose(), ops.Reshape()
        self.scores, self.mix = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul()
        self.softmax, self.add = ops.Softmax(-1), ops.Add()

    def construct(self, q, k, v, mask, row_keys):
        additive, batch, n = mask
        return self.over(q, self.by_head(k, batch, n), self.by_head(v, batch, n), additive, batch, n)

    def by_head(self, rows, batch, n):
        """(batch·n, hidden) → (batch, heads, n, head_dim)"""
        return self.transpose(self.reshape(rows, (batch, n, self.heads, self.head_dim)), (0, 2, 1, 3))

    def over(self, q, keys, values, additive, batch, n):
        """Attention over keys and values (batch, heads, t, head_dim)."""
        scores = self.add(self.scores(self.by_head(q, batch, n), keys), additive)
        mixed = self.mix(self.softmax(scores), values)
        return self.reshape(self.transpose(mixed, (0, 2, 1, 3)), (-1, self.hidden))


class _CachedAttention(_RecordAttention):
    """The same over the cache, after storing the new keys and values in it.

    ``mask`` = (additive mask (batch, 1, n, t), write (batch·n·heads,), read (batch, heads, t), batch, n); write and
    read are rows of the cache.
    """

    def __init__(self, parts: InferenceParts, prefix: str):
        super().__init__(parts.heads, parts.config.head_dim)
        shape = (parts.heads * parts.slots, parts.config.head_dim)
        self.keys, self.values = (
            parts.parameters(f"{prefix}.{kind}", lambda: np.zeros(shape, np.float32)) for kind in ("keys", "values")
        )
        self.scatter, self.gather = ops.ScatterUpdate(), ops.Gather()

    def construct(self, q, k, v, mask, row_keys):
        additive, write, read, batch, n = mask
        keys = self.scatter(self.keys, write, self.reshape(k, (-1, self.head_dim)))
        values = self.scatter(self.values, write, self.reshape(v, (-1, self.head_dim)))
        return self.over(q, self.gather(keys, read, 0), self.gather(values, read, 0), additive, batch, n)


class _Experts(nn.Cell):
    """A mixture of experts over any number of rows; nothing is dropped.

    A single token reads only the weights of its own experts. Several rows pass through every expert in turn, because
    how many rows an expert gets is not known at compile time, and are weighted by their gates, mostly 0.
    """

    def __init__(self, parts: InferenceParts, prefix: str):
        super().__init__(auto_prefix=False)
        config = parts.config
        self.experts, self.one = config.num_experts, parts.one
        self.router = Router(config, parts.parameters, prefix)
        self.up, self.up_bias = self._stack(parts.parameters, f"{prefix}.experts.mapping")
        self.down, self.down_bias = self._stack(parts.parameters, f"{prefix}.experts.projection")
        self.act = parts.backend.activation(config.hidden_act)
        self.product, self.gather, self.add, self.mul = ops.MatMul(transpose_b=True), ops.Gather(), ops.Add(), ops.Mul()
        self.argmax, self.sum = ops.Argmax(-1, ms.int32), ops.ReduceSum(keep_dims=True)
        self.numbers = Tensor(np.arange(config.num_experts, dtype=np.int32))

    @staticmethod
    def _stack(parameters: Parameters, name: str):
        return (
            parameters(f"{name}.weight", lambda: parameters.weights[f"{name}.weight"].transpose(0, 2, 1)),
            parameters(f"{name}.bias", lambda: parameters.weights[f"{name}.bias"][:, 0]),
        )

    def construct(self, x):
        _, _, chosen, gates = self.router(x)
        total = self.mul(x, 0.0)
        if self.one:
            for j in range(len(chosen)):
                number = ops.reshape(self.argmax(chosen[j]), ())
                total = self.add(total, self.mul(self.expert(x, number), gates[:, j : j + 1]))
            return total, ()
        for e in range(self.experts):
            gate = self.mul(chosen[0][:, e : e + 1], gates[:, 0:1])
            for j in range(1, len(chosen)):
                gate = self.add(gate, self.mul(chosen[j][:, e : e + 1], gates[:, j : j + 1]))
            total = self.add(total, self.mul(self.expert(x, self.numbers[e]), gate))
        return total, ()

    def expert(self, x, number):
        inner = self.product(x, self.gather(self.up, number, 0))
        inner = self.act(self.add(inner, self.gather(self.up_bias, number, 0)))
        return self.add(self.product(inner, self.gather(self.down, number, 0)), self.gather(self.down_bias, number, 0))


class _Head(nn.Cell):
    """Rows (m, hidden) → logits (m, vocab_size), by the word embedding, of which each rank of the group has a part."""

    def __init__(self, words: Parameter, group: Group):
        super().__init__(auto_prefix=False)
        self.words, self.split = words, group.size > 1
        self.gather_parts = AllGather(group)
        self.product, self.transpose = _Product(words), ops.Transpose()

    def construct(self, x):
        if not self.split:
            return self.product(x, self.words)
        return self.transpose(self.gather_parts(self.product(self.words, x)), (1, 0))


def _query_table(weights: Weights, config: ModelConfig) -> np.ndarray:
    """The query layer's query of every position: dense1 of its query embedding, scaled. It depends on no
    input."""
    prefix = f"{layer_prefix(config, config.num_layers - 1)}.attention.dense1"
    table = weights[QUERY].astype(np.float32) @ weights[f"{prefix}.weight"].astype(np.float32).T
    return (table + weights[f"{prefix}.bias"]) * np.float32(config.head_dim**-0.5)


def cached_parts(
    weights: Weights,
    config: ModelConfig,
    slots: int | None = None,
    group: Group = ALONE,
    layers: range | None = None,
    dtype: str = "float32",
) -> InferenceParts:
    """The parts of networks over a cache of ``slots`` positions (one sequence's by default).

    Args:
        weights: whole, by released name; in a group of several ranks each keeps its slice.
        layers: those of this pipeline stage, the only ones whose weights are read; all by default.
        dtype: of the weights of products, as of ``Parameters``.

    Raises:
        InputError: the weights are not those of ``config``, or the group cannot share the network.
    """
    return InferenceParts(
        config, Parameters(weights, config, group, dtype), group, slots or config.num_positions, layers=layers
    )


def kernel_parameters(weights: Weights, config: ModelConfig, slots: int, dtype: str) -> KernelParameters:
    """The parameters and the cache of ``CachedNetwork`` for the C kernels, in ``made``, the products' weights in ``dtype``.

    Raises:
        InputError: the weights are not those of ``config``, or too large for ``dtype``.
    """
    parameters = KernelParameters(weights, config, dtype)
    CachedNetwork(InferenceParts(config, parameters, ALONE, slots))  # asks for each of them; nothing is compiled
    return parameters


class SlotMask(nn.Cell):
    """The mask over the cache: what ``_CachedAttention`` takes, from positions (batch, n), write (batch, n) and
    read (batch, t). A token sees the positions up to its own."""

    def __init__(self, config: ModelConfig, heads: int, slots: int):
        super().__init__(auto_prefix=False)
        self.heads = heads
        self.head_rows = Tensor(np.arange(heads, dtype=np.int32).reshape(1, 1, -1) * slots)
        self.index = Tensor(np.arange(config.num_positions, dtype=np.int32))
        self.reshape, self.add = ops.Reshape(), ops.Add()

    def construct(self, positions, write, read):
        batch, n = positions.shape
        t = read.shape[1]
        write_rows = self.reshape(self.add(self.reshape(write, (batch, n, 1)), self.head_rows), (-1,))
        read_rows = self.add(self.reshape(read, (batch, 1, t)), self.reshape(self.head_rows, (1, self.heads, 1)))
        later = self.reshape(self.index[:t], (1, 1, 1, t)) > self.reshape(positions, (batch, 1, n, 1))
        return ops.cast(later, ms.float32) * MASKED, write_rows, read_rows, batch, n


class CachedNetwork(Stack):
    """PanGu-α over a paged cache.

    ``construct(ids, positions, write, read, rows)``, all int32:
        ids (batch, n): the new tokens of each sequence;
        positions (batch, n): their positions, below ``num_positions``;
        write (batch, n): the slot where each new position is kept; all different;
        read (batch, t): the slot of position 0, 1, 2 … of each sequence, the new ones included; what lies beyond
            a sequence's end may be any slot, since a token never looks at positions after its own;
        rows (m,): which of the batch·n new tokens to give logits for.
    Returns logits (m, vocab_size) float32. Short sequences of a batch are padded on the right: a padded position
    is overwritten before anything reads it.

    Tensor parallel, each rank of the group holds its share of the heads, of the feed-forward part and of the
    vocabulary; all are called with the same inputs and all return the whole logits. A pipeline stage takes, unless it is
    the first, hidden rows (batch·n, hidden) float32 in place of ids; unless it is the last, it takes no ``rows`` and
    returns hidden rows for the next.
    """

    def __init__(self, parts: InferenceParts):
        super().__init__(parts, parts.layers)
        self.hidden = parts.config.hidden_size
        self.slots = SlotMask(parts.config, parts.heads, parts.slots)
        if self.has_query:
            self.head, self.gather = parts.head(), ops.Gather()
        self.set_train(False)

    def construct(self, x, positions, write, read, rows=None):
        if self.is_first:
            x = self.embedding(x, positions)
        x, _ = self.rows(x, positions, self.slots(positions, write, read))
        return self.head(self.gather(x, rows, 0)) if self.has_query else x

    def dynamic_inputs(self) -> tuple[Tensor, ...]:
        """Placeholders of the inputs: any batch, length and number of rows."""
        return self._inputs(None, None, None, None)

    def fixed_inputs(self, batch: int, n: int) -> tuple[Tensor, ...]:
        """Placeholders for n tokens each of ``batch`` sequences; for a single token the number of positions read stays
        dynamic."""
        return self._inputs(batch, n, None if n == 1 else n, batch)

    def _inputs(self, batch: int | None, n: int | None, span: int | None, rows: int | None) -> tuple[Tensor, ...]:
        tokens = None if n is None else batch * n
        first = ([batch, n], ms.int32) if self.is_first else ([tokens, self.hidden], ms.float32)
        rest = [(shape, ms.int32) for shape in ([batch, n], [batch, n], [batch, span], [rows])]
        return tuple(Tensor(shape=shape, dtype=dtype) for shape, dtype in [first, *rest][: 5 if self.has_query else 4])
