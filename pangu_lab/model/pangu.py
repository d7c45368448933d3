"""PanGu-α, the whole network.

A GPT: word and position embeddings, a stack of pre-LayerNorm blocks, and on top, instead of one more block, the
*query layer*, in which the query is not computed from the text but is a learned vector of the position: "what is
the token after position p?" asked of everything written so far. The head is tied to the word embedding, and no
LayerNorm follows the query layer. Source: arXiv 2104.12369 and the first release.

Activations are kept as rows (batch·seq, hidden), which is what the matrix products want. Layers are written against
a mesh: each holds this rank's slice, and with a dimension of size 1 the collective is not there at all.

Shapes: ids, positions (batch, seq) int32; samples (batch,) int32 identify the records for dropout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import ModelConfig
from pangu_lab.model import parameters as names
from pangu_lab.model.moe import Experts, ExpertsWithoutLimit
from pangu_lab.ops import AttentionBias, CausalAttention, Dropout, LayerNorm
from pangu_lab.ops.native import cells
from pangu_lab.parallel.collectives import AllGather, group_of
from pangu_lab.parallel.layers import (ColumnLinear, HeadLoss, OwnRows, QueryInput, RowLinear, TensorInput, TiedHead,
                                       WordEmbedding)
from pangu_lab.parallel.mesh import Mesh

DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


class Weights:
    """Hands each layer its Parameters by published name, made from this rank's slices.

    Args:
        arrays: this rank's slices.
        mesh: the layout.
        spread: names of parameters of which each data rank holds a slice.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], mesh: Mesh = Mesh(), spread: Collection[str] = ()):
        self.arrays, self.mesh, self.spread = arrays, mesh, spread
        self.parameters: dict[str, Parameter] = {}

    def __call__(self, name: str) -> Parameter:
        if name not in self.parameters:  # the word embedding is asked for twice: by the input and by the head
            self.parameters[name] = Parameter(Tensor(self.arrays[name]), name=name)
        return self.parameters[name]

    def whole(self, name: str) -> nn.Cell:
        """What a layer passes the parameter through: gathers the data ranks' slices where there are any."""
        return AllGather(group_of(self.mesh, "data")) if name in self.spread else nn.Identity()


class Norm(nn.Cell):
    """LayerNorm with its parameters; fp32 out."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str):
        super().__init__(auto_prefix=False)
        self.gamma = weights(f"{prefix}.gamma")
        self.beta = weights(f"{prefix}.beta")
        self.norm = LayerNorm(config.layernorm_eps)

    def construct(self, x):
        return self.norm(x, self.gamma, self.beta)


class Attention(nn.Cell):
    """Multi-head attention of ``query`` rows over ``memory`` rows; this rank computes its share of the heads."""

    def __init__(self, config: ModelConfig, mesh: Mesh, weights: Weights, prefix: str, seed: int):
        super().__init__(auto_prefix=False)
        dtype = DTYPES[config.compute_dtype]
        self.heads = config.num_heads // mesh.size("tensor")
        self.first_head = self.heads * mesh.index("tensor")
        self.head_dim = config.head_dim
        self.enter, self.enter_query = TensorInput(mesh), QueryInput(mesh)
        self.query = ColumnLinear(weights, f"{prefix}.dense1", True, dtype)
        self.key = ColumnLinear(weights, f"{prefix}.dense2", True, dtype)
        self.value = ColumnLinear(weights, f"{prefix}.dense3", True, dtype)
        self.projection = RowLinear(mesh, weights, f"{prefix}.projection", dtype)
        self.attend = CausalAttention(self.heads, self.head_dim, DTYPES[config.softmax_dtype],
                                      config.dropout_rate > 0)
        self.use_dropout = config.dropout_rate > 0
        self.kernel = cells.attention(self.heads, self.use_dropout)  # None: MindSpore's operators
        self.dtype = dtype
        self.dropout = Dropout(config.dropout_rate, seed, f"{prefix}.probabilities", config.num_positions)
        head_keys = (np.arange(self.first_head, self.first_head + self.heads) + 1) * 0x27D4EB2F
        self.head_keys = Tensor((head_keys & 0xFFFFFFFF).astype(np.uint32).view(np.int32).reshape(1, -1, 1))

    def _split(self, x, batch, seq):
        """(batch·seq, heads·head_dim) → (batch·heads, seq, head_dim)."""
        x = ops.transpose(ops.reshape(x, (batch, seq, self.heads, self.head_dim)), (0, 2, 1, 3))
        return ops.reshape(x, (batch * self.heads, seq, self.head_dim))

    def _keep(self, row_keys, batch, seq):
        """Dropout factors of the probabilities, (batch·heads, seq, seq)."""
        keys = ops.reshape(row_keys, (batch, 1, seq)) + self.head_keys
        mask = self.dropout.mask(ops.reshape(keys, (batch * self.heads * seq, 1)), seq)
        return ops.cast(ops.reshape(mask, (batch * self.heads, seq, seq)), self.dtype)

    def _by_kernel(self, q, k, v, positions, row_keys):
        if not self.use_dropout:
            return self.kernel(q, k, v, positions)[0]
        drop = self.dropout
        return self.kernel(q, k, v, positions, row_keys, drop.columns, self.head_keys, drop.numbers[0], drop.numbers[1])[0]

    def construct(self, memory, bias, row_keys, query=None):
        """Rows in, rows out. Without ``query`` the memory asks itself (self-attention)."""
        memory = self.enter(memory)
        query = memory if query is None else self.enter_query(query)
        q, k, v = self.query(query), self.key(memory), self.value(memory)
        if self.kernel is not None:
            return self.projection(self._by_kernel(q, k, v, bias, row_keys))
        batch, _, seq, _ = bias.shape
        q, k, v = self._split(q, batch, seq), self._split(k, batch, seq), self._split(v, batch, seq)
        keep = self._keep(row_keys, batch, seq) if self.use_dropout else row_keys
        mixed, _ = self.attend(q, k, v, bias, keep)
        mixed = ops.transpose(ops.reshape(mixed, (batch, self.heads, seq, self.head_dim)), (0, 2, 1, 3))
        return self.projection(ops.reshape(mixed, (batch * seq, self.heads * self.head_dim)))


class FeedForward(nn.Cell):
    """hidden → 4·hidden → activation → hidden."""

    def __init__(self, config: ModelConfig, mesh: Mesh, weights: Weights, prefix: str):
        super().__init__(auto_prefix=False)
        dtype = DTYPES[config.compute_dtype]
        self.enter = TensorInput(mesh)
        self.mapping = ColumnLinear(weights, f"{prefix}.mapping", False, dtype)
        self.projection = RowLinear(mesh, weights, f"{prefix}.projection", dtype, after=config.hidden_act)

    def construct(self, x):
        return self.projection(self.mapping(self.enter(x)))


class Layer(nn.Cell):
    """A block: x + attention(LN₁ x), then + feed-forward(LN₂).

    The query layer is the same with another query: see ``construct``. A block may have a mixture of experts for its
    feed-forward network, and is then ``routed`` in training: it also returns what its router did (see ``Experts``).
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, weights: Weights, layer: int, seed: int, training: bool):
        super().__init__(auto_prefix=False)
        prefix = names.layer_prefix(config, layer)
        self.norm1 = Norm(config, weights, f"{prefix}.layernorm1")
        self.norm2 = Norm(config, weights, f"{prefix}.layernorm2")
        self.attention = Attention(config, mesh, weights, f"{prefix}.attention", seed)
        self.routed = training and layer in config.moe_layers
        if layer in config.moe_layers:
            experts = Experts if training else ExpertsWithoutLimit
            self.feed_forward = experts(config, mesh, weights, f"{prefix}.output", DTYPES[config.compute_dtype])
        else:
            self.feed_forward = FeedForward(config, mesh, weights, f"{prefix}.output")
        self.dropout1 = Dropout(config.dropout_rate, seed, f"{prefix}.attention", config.hidden_size)
        self.dropout2 = Dropout(config.dropout_rate, seed, f"{prefix}.output", config.hidden_size)
        self.own_rows = OwnRows(mesh)
        self.add = ops.Add()

    def construct(self, x, bias, row_keys, query=None):
        """x (rows, hidden) fp32, this rank's rows; ``row_keys`` of all rows; ``bias`` the mask, or the positions that it
        follows from where a kernel attends. ``query`` (all rows, hidden): asked instead of LN₁ x, raw, in the query
        layer."""
        mixed = self.attention(self.norm1(x), bias, row_keys, query)
        own_keys = self.own_rows(row_keys)
        x = self.add(x, self.dropout1(mixed, own_keys))
        if self.routed:
            y, losses, counts = self.feed_forward(self.norm2(x), bias.shape[0])
            return self.add(x, self.dropout2(y, own_keys)), losses, counts
        return self.add(x, self.dropout2(self.feed_forward(self.norm2(x)), own_keys))


class Embedding(nn.Cell):
    """Word plus position embedding, then dropout: (batch, seq) ids → this rank's of (batch·seq, hidden) rows, fp32."""

    def __init__(self, config: ModelConfig, mesh: Mesh, weights: Weights, seed: int):
        super().__init__(auto_prefix=False)
        self.words = WordEmbedding(mesh, weights, names.WORD, config.vocab_size)
        self.positions, self.whole = weights(names.POSITION), weights.whole(names.POSITION)
        self.own_rows = OwnRows(mesh)
        self.gather = ops.Gather()
        self.dropout = Dropout(config.dropout_rate, seed, "embedding", config.hidden_size)

    def construct(self, ids, positions, row_keys, words=None):
        """``words``: the rows of the word embedding, where they have been looked up."""
        words = self.words(ops.reshape(ids, (-1,))) if words is None else words
        places = self.gather(self.whole(self.positions), self.own_rows(ops.reshape(positions, (-1,))), 0)
        return self.dropout(ops.add(words, places), self.own_rows(row_keys))


class PanguStage(nn.Cell):
    """The layers of one pipeline stage; the whole network when there is but one.

    The first stage turns ids into rows; the stage that holds the last block ends it with ``backbone.layernorm``;
    the last stage holds the query layer.

    Args:
        config: the network's sizes.
        weights: this rank's parameters; a second stage made from the same object shares them.
        mesh: the layout and this rank's place in it.
        seed: of the dropout masks.
        seq_length: of the batches; the number of positions when not given.
        training: experts have limited places, and ``routed`` says what the routers did.
        layers: hold these alone, instead of all that the mesh gives this rank.
    """

    def __init__(self, config: ModelConfig, weights: Weights, mesh: Mesh = Mesh(), seed: int = 0,
                 seq_length: int | None = None, training: bool = False, layers: range | None = None):
        super().__init__(auto_prefix=False)
        self.weights = weights
        layers = mesh.layers(config.num_layers) if layers is None else layers
        query_layer = config.num_layers - 1
        self.is_first = layers.start == 0
        self.has_query = query_layer in layers
        self.has_norm = query_layer - 1 in layers
        if self.is_first:
            self.embedding = Embedding(config, mesh, self.weights, seed)
        self.moe_layers = [i for i in layers if training and i in config.moe_layers]
        self.blocks = nn.CellList([Layer(config, mesh, self.weights, i, seed, training)
                                   for i in layers if i != query_layer], auto_prefix=False)
        if mesh.parallel.recompute and ms.get_context("device_target") != "CPU":  # there see train/recompute.py
            for block in self.blocks:
                block.recompute()
        if self.has_norm:
            self.norm = Norm(config, self.weights, names.FINAL_NORM)
        if self.has_query:
            self.query_embedding, self.whole_query = self.weights(names.QUERY), self.weights.whole(names.QUERY)
            self.query_layer = Layer(config, mesh, self.weights, query_layer, seed, training)
        self.bias = AttentionBias(seq_length or config.num_positions, DTYPES[config.softmax_dtype])
        self.by_kernel = cells.in_use()
        self.gather = ops.Gather()

    def construct(self, x, positions, samples, words=None):
        """x: ids (batch, seq) on the first stage, else this rank's rows of (batch·seq, hidden) → the same rows.

        ``words``: what ``Embedding`` may be given.
        """
        return self._rows(x, positions, samples, words)[0]

    def routed(self, x, positions, samples, weights, words=None):
        """Of a stage with experts, in training: rows as above; the auxiliary loss, Σ over records of their loss ·
        weights (a scalar); and (blocks with experts here, experts + 2): tokens sent to each expert, tokens dropped,
        auxiliary loss.
        """
        x, found = self._rows(x, positions, samples, words)
        of_record = ops.ReduceSum()(weights, 1)
        total, told = ops.zeros((), mstype.float32), ()
        for losses, counts in found:
            loss = ops.ReduceSum()(losses * of_record)
            total = total + loss
            told = told + (ops.expand_dims(ops.concat((counts, ops.reshape(loss, (1,)))), 0),)
        return x, total, ops.stop_gradient(ops.concat(told))

    def _rows(self, x, positions, samples, words=None):
        """Rows, and (losses, counts) of each block with experts in training."""
        row_keys = self._row_keys(positions, samples)
        bias = positions if self.by_kernel else self.bias(positions)
        if self.is_first:
            x = self.embedding(x, positions, row_keys, words)
        found = ()
        for block in self.blocks:
            if block.routed:
                x, losses, counts = block(x, bias, row_keys)
                found = found + ((losses, counts),)
            else:
                x = block(x, bias, row_keys)
        if self.has_norm:
            x = self.norm(x)
        if self.has_query:
            query = self.gather(self.whole_query(self.query_embedding), ops.reshape(positions, (-1,)), 0)
            x = self.query_layer(x, bias, row_keys, query)
        return x, found

    def _row_keys(self, positions, samples):
        """A number for each (record, place in it), the same on every rank and in every run: (batch·seq, 1)."""
        batch, seq = positions.shape
        places = ops.reshape(self.bias.keys[:, :, :, :seq], (1, seq))
        keys = ops.reshape(samples, (batch, 1)) * 0x165667B1 + places * 0x3C6EF372
        return ops.reshape(keys, (batch * seq, 1))


class PanguLoss(nn.Cell):
    """Network and loss of a single stage or, in a pipeline, of the last one.

    ``construct`` gives Σ weight · negative log-likelihood over the batch, a scalar fp32; divide by the sum of the
    weights of the global batch for the mean. Without ``gradients`` it is for evaluation only.
    """

    def __init__(self, config: ModelConfig, stage: PanguStage, mesh: Mesh = Mesh(), gradients: bool = True):
        super().__init__(auto_prefix=False)
        self.stage = stage
        self.head = HeadLoss(mesh, stage.weights, names.WORD, config.vocab_size, DTYPES[config.compute_dtype],
                             gradients)
        whole = mesh.size("tensor") == 1 and names.WORD not in stage.weights.spread
        self.tied = cells.tied_embedding() if gradients and stage.is_first and whole else None
        self.table = stage.weights(names.WORD)

    def construct(self, x, positions, samples, labels, weights):
        """labels (batch, seq) int32 and weights (batch, seq) fp32; the rest as in ``PanguStage``."""
        words, table = self._words(x)
        rows = self.stage(x, positions, samples, words)
        return self.head(rows, ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,)), table)

    def routed(self, x, positions, samples, labels, weights):
        """With experts, in training: the loss as above, and ``PanguStage.routed``'s auxiliary loss and counts."""
        words, table = self._words(x)
        rows, auxiliary, counts = self.stage.routed(x, positions, samples, weights, words)
        return self.head(rows, ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,)), table), auxiliary, counts

    def _words(self, ids):
        """The word embedding's rows of the ids, and its table for the head; None and None: each looks for itself."""
        if self.tied is None:
            return None, None
        return self.tied(ops.reshape(ids, (-1,)), self.table)


class PanguLogits(nn.Cell):
    """The single-process network up to its logits: ids, positions (batch, seq) → (batch, seq, vocab) fp32."""

    def __init__(self, config: ModelConfig, stage: PanguStage):
        super().__init__(auto_prefix=False)
        self.stage = stage
        self.head = TiedHead(stage.weights, names.WORD, DTYPES[config.compute_dtype])

    def construct(self, ids, positions):
        batch, seq = ids.shape
        samples = ops.zeros((batch,), mstype.int32)
        return ops.reshape(self.head(self.stage(ids, positions, samples)), (batch, seq, -1))
