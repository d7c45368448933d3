"""PanGu-α, the whole network.

A GPT: word and position embeddings, a stack of pre-LayerNorm blocks, and on top, instead of one more block, the
*query layer*, in which the query is not computed from the text but is a learned vector of the position: "what is
the token after position p?" asked of the whole text so far. The head is tied to the word embedding, and no
LayerNorm follows the query layer. Source: arXiv 2104.12369 and the first release.

Read from the top: ``Attention``, ``FeedForward``, ``Layer``, ``Embedding``, and ``Stack``, which defines the order of
the layers. Only ``Stack`` does; training, evaluation, generation over a cache and the exported graphs all use it, with
different parts (``parts.py``, ``generate/network.py``). In all of them activations are rows (batch·seq, hidden), the
form that matrix products need.

Shapes: ids, positions (batch, seq) int32; samples (batch,) int32 identify the records for dropout. ``mask`` is the
mask as the parts' own cell makes it (``ops/attention.py``); it is passed on unopened. ``row_keys`` identify the rows
for dropout, None without dropout. With tensor, pipeline or sequence parallelism each rank holds its slice of the
parameters; for a dimension of size 1 the graph has no collective.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.model import parameters as names
from pangu_lab.model.parts import Parts, Weights, mark_for_recomputation
from pangu_lab.parallel.layers import HeadLoss, TiedHead

__all__ = ["PanguLogits", "PanguLoss", "PanguStage", "Parts", "Stack", "Weights"]


class Attention(nn.Cell):
    """Multi-head attention over the rows of a text; this rank computes its share of the heads."""

    def __init__(self, parts: Parts, layer: int):
        super().__init__(auto_prefix=False)
        self.projections = parts.projections(layer)
        self.attend = parts.attention(layer)
        self.projection = parts.row(f"{names.layer_prefix(parts.config, layer)}.attention.projection")

    def construct(self, x, mask, row_keys=None, query=None):
        """x (rows, hidden) → (rows, hidden). In the query layer ``query`` (rows, hidden) replaces x as the query."""
        q, k, v = self.projections(x, query)
        return self.projection(self.attend(q, k, v, mask, row_keys))


class FeedForward(nn.Cell):
    """hidden → 4·hidden → activation → hidden; and (), since it has no expert statistics."""

    def __init__(self, parts: Parts, prefix: str):
        super().__init__(auto_prefix=False)
        self.enter = parts.enter()
        self.mapping = parts.column(f"{prefix}.mapping")
        self.projection = parts.row(f"{prefix}.projection", after=parts.config.hidden_act)

    def construct(self, x):
        return self.projection(self.mapping(self.enter(x))), ()


class Layer(nn.Cell):
    """A block: x + attention(LN₁ x), then + feed-forward(LN₂ x), which may be a mixture of experts.

    The query layer is a block with another query.
    """

    def __init__(self, parts: Parts, layer: int):
        super().__init__(auto_prefix=False)
        prefix = names.layer_prefix(parts.config, layer)
        self.norm1, self.norm2 = parts.norm(f"{prefix}.layernorm1"), parts.norm(f"{prefix}.layernorm2")
        self.attention = Attention(parts, layer)
        feed_forward = (
            parts.expert_network if layer in parts.config.moe_layers else lambda prefix: FeedForward(parts, prefix)
        )
        self.feed_forward = feed_forward(f"{prefix}.output")
        self.dropout1, self.dropout2 = parts.dropout(f"{prefix}.attention"), parts.dropout(f"{prefix}.output")
        self.own_rows = parts.own_rows()
        self.add = ops.Add()

    def construct(self, x, mask, row_keys=None, query=None):
        """x (this rank's rows, hidden) fp32 → the same, and a tuple of expert statistics."""
        own_keys = self.own_rows(row_keys)
        x = self.add(x, self.dropout1(self.attention(self.norm1(x), mask, row_keys, query), own_keys))
        y, routing = self.feed_forward(self.norm2(x))
        return self.add(x, self.dropout2(y, own_keys)), routing


class Embedding(nn.Cell):
    """Word plus position embedding, then dropout."""

    def __init__(self, parts: Parts):
        super().__init__(auto_prefix=False)
        self.words, self.positions = parts.words(), parts.positions()
        self.own_rows = parts.own_rows()
        self.dropout = parts.dropout("embedding")

    def construct(self, ids, positions, row_keys=None):
        """ids (batch, seq) → this rank's part of the (batch·seq, hidden) rows, fp32."""
        return self.of_words(self.words(ops.reshape(ids, (-1,))), positions, row_keys)

    def of_words(self, words, positions, row_keys=None):
        """The same, from word embedding rows that have been looked up already."""
        return self.dropout(ops.add(words, self.positions(positions)), self.own_rows(row_keys))


class Stack(nn.Cell):
    """The order of the layers: embedding, blocks, ``backbone.layernorm``, query layer.

    A pipeline stage has some of them: the first has the embedding, the stage of the last block ends it with the
    LayerNorm, and the last has the query layer.

    Args:
        parts: makes the layers.
        layers: the layers to build; all by default. The network's last layer is the query layer.
    """

    def __init__(self, parts: Parts, layers: range | None = None):
        super().__init__(auto_prefix=False)
        query_layer = parts.config.num_layers - 1
        layers = range(query_layer + 1) if layers is None else layers
        self.is_first = layers.start == 0
        self.has_norm, self.has_query = query_layer - 1 in layers, query_layer in layers
        if self.is_first:
            self.embedding = Embedding(parts)
        self.blocks = nn.CellList([Layer(parts, i) for i in layers if i != query_layer], auto_prefix=False)
        if self.has_norm:
            self.norm = parts.norm(names.FINAL_NORM)
        if self.has_query:
            self.queries = parts.queries()
            self.query_layer = Layer(parts, query_layer)

    def rows(self, x, positions, mask, row_keys=None):
        """x (rows, hidden), embedded → the rows after all layers, and the expert statistics of the blocks, in order."""
        routing = ()
        for block in self.blocks:
            x, more = block(x, mask, row_keys)
            routing = routing + more
        if self.has_norm:
            x = self.norm(x)
        if self.has_query:
            x, _ = self.query_layer(x, mask, row_keys, self.queries(positions))
        return x, routing


class PanguStage(Stack):
    """The layers of one pipeline stage over whole records; the whole network when there is only one stage.

    Args:
        layers: build only these instead of all that the mesh gives this rank.
    """

    def __init__(self, parts: Parts, layers: range | None = None):
        layers = parts.mesh.layers(parts.config.num_layers) if layers is None else layers
        super().__init__(parts, layers)
        self.parts = parts
        self.moe_layers = [i for i in layers if i in parts.config.moe_layers]
        self.documents = parts.documents()
        self.index = Tensor(np.arange(parts.seq_length or parts.config.num_positions, dtype=np.int32))
        mark_for_recomputation(self.blocks, parts.mesh)

    def construct(self, x, positions, samples):
        """x: ids (batch, seq) on the first stage, else this rank's rows of (batch·seq, hidden) → the same rows."""
        return self._run(x, positions, samples, False)[0]

    def from_words(self, words, positions, samples):
        """On the first stage, from word embedding rows; returns the rows and the expert statistics."""
        return self._run(words, positions, samples, True)

    def routed(self, x, positions, samples, weights):
        """A stage with experts, in training: rows as above, and ``routing_of`` their statistics."""
        x, routing = self._run(x, positions, samples, False)
        total, counts = routing_of(routing, weights)
        return x, total, counts

    def _run(self, x, positions, samples, embedded):
        row_keys = self._row_keys(positions, samples)
        if self.is_first and embedded:
            x = self.embedding.of_words(x, positions, row_keys)
        elif self.is_first:
            x = self.embedding(x, positions, row_keys)
        return self.rows(x, positions, self.documents(positions), row_keys)

    def _row_keys(self, positions, samples):
        """A number for each (record, position in it), the same on every rank and in every run: (batch·seq, 1)."""
        batch, seq = positions.shape
        keys = ops.reshape(samples, (batch, 1)) * 0x165667B1 + ops.reshape(self.index[:seq], (1, seq)) * 0x3C6EF372
        return ops.reshape(keys, (batch * seq, 1))


def routing_of(routing, weights):
    """Summary of the routers' work, from the (losses, counts) of each block with experts.

    Returns:
        The auxiliary loss, Σ over records of their loss · weights (a scalar); and (blocks with experts here,
        experts + 2): tokens sent to each expert, tokens dropped, auxiliary loss.
    """
    of_record = ops.ReduceSum()(weights, 1)
    total, found = ops.zeros((), mstype.float32), ()
    for losses, counts in routing:
        loss = ops.ReduceSum()(losses * of_record)
        total = total + loss
        found = found + (ops.expand_dims(ops.concat((counts, ops.reshape(loss, (1,)))), 0),)
    return total, ops.stop_gradient(ops.concat(found))


class PanguLoss(nn.Cell):
    """Network and loss of a single stage or, in a pipeline, of the last one.

    ``construct`` gives Σ weight · negative log-likelihood over the batch, a scalar fp32; for the mean, divide it by the
    sum of the weights of the global batch. Without ``gradients`` it is for evaluation only.
    """

    def __init__(self, stage: PanguStage, gradients: bool = True):
        super().__init__(auto_prefix=False)
        parts = stage.parts
        self.stage = stage
        self.head = HeadLoss(
            parts.backend, parts.mesh, parts.weights, names.WORD, parts.config.vocab_size, parts.dtype, gradients
        )
        self.tied = gradients and stage.is_first and parts.whole_table
        if self.tied:
            self.embed = parts.backend.tied_embedding()
        self.table = parts.weights(names.WORD)

    def construct(self, x, positions, samples, labels, weights):
        """labels (batch, seq) int32 and weights (batch, seq) fp32; the rest as in ``PanguStage``."""
        return self._run(x, positions, samples, labels, weights)[0]

    def routed(self, x, positions, samples, labels, weights):
        """With experts, in training: the loss as above, and what ``routing_of`` gives."""
        loss, routing = self._run(x, positions, samples, labels, weights)
        total, counts = routing_of(routing, weights)
        return loss, total, counts

    def _run(self, x, positions, samples, labels, weights):
        labels, flat = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
        if not self.tied:
            rows, routing = self.stage._run(x, positions, samples, False)
            return self.head(rows, labels, flat), routing
        words, table = self.embed(ops.reshape(x, (-1,)), self.table)
        rows, routing = self.stage.from_words(words, positions, samples)
        return self.head(rows, labels, flat, table), routing


class PanguLogits(nn.Cell):
    """The single-process network up to its logits: ids, positions (batch, seq) → (batch, seq, vocab) fp32."""

    def __init__(self, stage: PanguStage):
        super().__init__(auto_prefix=False)
        self.stage = stage
        self.head = TiedHead(stage.parts.weights, names.WORD, stage.parts.dtype)

    def construct(self, ids, positions):
        batch, seq = ids.shape
        samples = ops.zeros((batch,), mstype.int32)
        return ops.reshape(self.head(self.stage(ids, positions, samples)), (batch, seq, -1))
