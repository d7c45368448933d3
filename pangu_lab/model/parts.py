"""The building blocks of the network: its parameters by name, and the layers that hold them.

``pangu.py`` defines the order; a ``Parts`` object makes the layers. This one makes those for training and evaluation,
which know the mesh and are differentiable; ``generate/network.py`` has another, for new tokens over a key-value
cache.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import ModelConfig
from pangu_lab.model import parameters as names
from pangu_lab.model.moe import ExpertsWithoutLimit
from pangu_lab.ops.attention import Heads
from pangu_lab.ops.backend import Backend
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import AllGather, group_of
from pangu_lab.parallel.layers import ColumnLinear, OwnRows, QueryInput, RowLinear, TensorInput, WordEmbedding, row_sum
from pangu_lab.parallel.mesh import Mesh

DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


class Weights:
    """Gives each layer its Parameters by published name, made from this rank's slices.

    Args:
        arrays: this rank's slices.
        mesh: the layout.
        spread: names of the parameters of which each data rank holds only a slice.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], mesh: Mesh = Mesh(), spread: Collection[str] = ()):
        self.arrays, self.mesh, self.spread = arrays, mesh, spread
        self.parameters: dict[str, Parameter] = {}

    def __call__(self, name: str) -> Parameter:
        if name not in self.parameters:  # the word embedding is requested twice: by the input and by the head
            self.parameters[name] = Parameter(Tensor(self.arrays[name]), name=name)
        return self.parameters[name]

    def whole(self, name: str) -> nn.Cell:
        """The cell a layer passes the parameter through: it gathers the data ranks' slices, if any."""
        return AllGather(group_of(self.mesh, "data")) if name in self.spread else nn.Identity()


@dataclass(frozen=True)
class Parts:
    """The parts of training and evaluation.

    Args:
        config: the network's sizes.
        weights: this rank's parameters; networks made from the same object share them.
        mesh: the layout and this rank's position in it.
        backend: makes the operations.
        seed: of the dropout masks.
        seq_length: of the batches; by default the number of positions.
        experts: the class that replaces the feed-forward network in blocks with experts.
    """

    config: ModelConfig
    weights: Weights
    mesh: Mesh = Mesh()
    backend: Backend = Portable()
    seed: int = 0
    seq_length: int | None = None
    experts: type = ExpertsWithoutLimit

    @property
    def dtype(self):
        """The data type of the matrix products."""
        return DTYPES[self.config.compute_dtype]

    @property
    def whole_table(self) -> bool:
        """Whether this rank has the whole word embedding, as one parameter."""
        return self.mesh.size("tensor") == 1 and names.WORD not in self.weights.spread

    def documents(self) -> nn.Cell:
        """positions (batch, seq) → the mask for ``attention``."""
        return self.backend.documents(self.seq_length or self.config.num_positions, DTYPES[self.config.softmax_dtype])

    def words(self) -> WordEmbedding:
        mesh = self.mesh
        return WordEmbedding(self.weights, names.WORD, self.config.vocab_size, group_of(mesh, "tensor"), row_sum(mesh))

    def positions(self) -> nn.Cell:
        return Rows(self.weights, names.POSITION, OwnRows(self.mesh))

    def queries(self) -> nn.Cell:
        """positions → the query layer's queries."""
        return Rows(self.weights, names.QUERY, nn.Identity())

    def norm(self, prefix: str) -> nn.Cell:
        return Norm(self, prefix)

    def projections(self, layer: int) -> nn.Cell:
        """LN₁ x, and in the query layer the queries → q, k, v rows."""
        return Projections(self, f"{names.layer_prefix(self.config, layer)}.attention")

    def attention(self, layer: int) -> nn.Cell:
        """q, k, v rows, mask, row keys → the mixed values."""
        config, prefix = self.config, f"{names.layer_prefix(self.config, layer)}.attention"
        count = config.num_heads // self.mesh.size("tensor")
        heads = Heads(count, config.head_dim, count * self.mesh.index("tensor"))
        dropout = self.dropout(f"{prefix}.probabilities", config.num_positions)
        return self.backend.attention(heads, self.dtype, DTYPES[config.softmax_dtype], dropout)

    def column(self, prefix: str, transposed: bool = False) -> nn.Cell:
        """A product whose outputs are split over the tensor ranks."""
        return ColumnLinear(self.backend, self.weights, prefix, transposed, self.dtype)

    def row(self, prefix: str, after: str = "") -> nn.Cell:
        """A product whose inputs are split over the tensor ranks; of ``after``(x) if an activation is named."""
        return RowLinear(self.backend, self.mesh, self.weights, prefix, self.dtype, after)

    def expert_network(self, prefix: str) -> nn.Cell:
        return self.experts(self, prefix)

    def dropout(self, site: str, width: int | None = None) -> nn.Cell:
        """x (rows, width), row keys → the same."""
        return self.backend.dropout(self.config.dropout_rate, self.seed, site, width or self.config.hidden_size)

    def enter(self) -> nn.Cell:
        """What rows pass through before the tensor ranks' products."""
        return TensorInput(self.mesh)

    def own_rows(self) -> nn.Cell:
        """Of all rows, those that this rank computes between the products."""
        return OwnRows(self.mesh)


class Rows(nn.Cell):
    """indices (batch, seq) → the rows of a table: (rows, hidden), reduced to those that ``own`` keeps."""

    def __init__(self, weights: Weights, name: str, own: nn.Cell):
        super().__init__(auto_prefix=False)
        self.table, self.whole, self.own = weights(name), weights.whole(name), own
        self.gather = ops.Gather()

    def construct(self, indices):
        return self.gather(self.whole(self.table), self.own(ops.reshape(indices, (-1,))), 0)


class Norm(nn.Cell):
    """LayerNorm with its parameters; fp32 out."""

    def __init__(self, parts: Parts, prefix: str):
        super().__init__(auto_prefix=False)
        self.gamma, self.beta = parts.weights(f"{prefix}.gamma"), parts.weights(f"{prefix}.beta")
        self.norm = parts.backend.layer_norm(parts.config.layernorm_eps)

    def construct(self, x):
        return self.norm(x, self.gamma, self.beta)


class Projections(nn.Cell):
    """Rows (rows, hidden) → q, k, v (rows, this rank's heads · head_dim). Without ``query``, q comes from the rows."""

    def __init__(self, parts: Parts, prefix: str):
        super().__init__(auto_prefix=False)
        self.enter, self.enter_query = parts.enter(), QueryInput(parts.mesh)
        self.query = parts.column(f"{prefix}.dense1", transposed=True)
        self.key = parts.column(f"{prefix}.dense2", transposed=True)
        self.value = parts.column(f"{prefix}.dense3", transposed=True)

    def construct(self, x, query=None):
        x = self.enter(x)
        query = x if query is None else self.enter_query(query)
        return self.query(query), self.key(x), self.value(x)


def mark_for_recomputation(blocks, mesh: Mesh) -> None:
    """Have the device recompute blocks in the backward pass, where the layout asks for it.

    Not on a CPU, where it saves nothing: see ``train/recompute.py``.
    """
    if mesh.parallel.recompute and ms.get_context("device_target") != "CPU":
        for block in blocks:
            block.recompute()
