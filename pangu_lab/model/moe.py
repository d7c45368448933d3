"""Mixture of experts: a router sends every token to a few of many feed-forward networks (GShard, arXiv 2006.16668;
Switch, 2101.03961; the z-loss of ST-MoE, 2202.08906).

In training each expert has a fixed capacity *per record*, filled in the order of the text; a token whose expert is
full passes by the residual alone. Because each record is routed by itself, and later tokens never displace earlier
ones, the loss is the same however records are spread over devices and micro-batches. Outside training no token is
dropped. Tokens are sorted into the slots by index, (experts, slots, hidden), so that the cost is that of the active
tokens; forward and backward are gathers, since a slot holds at most one token.

MindSpore on CPU: ``BatchMatMul`` over experts is as fast as one ``MatMul`` of as many rows; a loop over experts is
twice as slow. A bias gradient by ``ReduceSum`` over a middle axis costs more than half a product; as a product
with ones it is twenty times faster.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_lab.config import ModelConfig
from pangu_lab.ops.backend import Backend
from pangu_lab.parallel.collectives import AllGather, AllReduce, AllToAll, group_of
from pangu_lab.parallel.layers import TensorInput
from pangu_lab.parallel.mesh import Mesh


def expert_capacity(config: ModelConfig, seq: int) -> int:
    """How many tokens of a record of ``seq`` an expert takes."""
    fair = config.experts_per_token * seq / config.num_experts
    return min(seq, math.ceil(config.capacity_factor * fair))


class Router(nn.Cell):
    """x (rows, hidden) → router logits and probabilities (rows, experts), and the choices of every token, fp32.

    Choices are one-hot, (choices, rows, experts). The gates (rows, choices) are, for one choice, the expert's
    probability (Switch); for several, the probabilities scaled to sum to one (GShard). Ties go to the lower index.
    """

    def __init__(self, config: ModelConfig, weights, prefix: str):
        super().__init__(auto_prefix=False)
        self.weight = weights(f"{prefix}.router.weight")
        self.choices, self.experts = config.experts_per_token, config.num_experts
        self.product, self.softmax = ops.MatMul(), ops.Softmax(-1)
        self.argmax, self.one_hot = ops.Argmax(-1, mstype.int32), ops.OneHot()
        self.on, self.off = Tensor(1.0, mstype.float32), Tensor(0.0, mstype.float32)
        self.sum = ops.ReduceSum()
        self.sum_keep = ops.ReduceSum(keep_dims=True)

    def construct(self, x):
        logits = self.product(ops.cast(x, mstype.float32), ops.cast(self.weight, mstype.float32))
        probabilities = self.softmax(logits)
        left = ops.stop_gradient(probabilities)
        chosen, gates = (), ()
        for _ in range(self.choices):
            mask = self.one_hot(self.argmax(left), self.experts, self.on, self.off)
            left = left - mask * 2.0
            chosen = chosen + (mask,)
            gates = gates + (self.sum_keep(probabilities * mask, 1),)
        gates = gates[0] if self.choices == 1 else ops.concat(gates, 1)
        if self.choices > 1:
            gates = gates / self.sum_keep(gates, 1)
        return logits, probabilities, chosen, gates


class RoutingLosses(nn.Cell):
    """A record's load-balancing loss, experts · Σ share · mean probability, and z-loss, mean log²Σexp: (batch,)."""

    def __init__(self, config: ModelConfig):
        super().__init__(auto_prefix=False)
        self.experts, self.choices = config.num_experts, config.experts_per_token
        self.balance, self.z = config.balance_loss, config.z_loss
        self.sum, self.mean, self.max = ops.ReduceSum(), ops.ReduceMean(), ops.ReduceMax(keep_dims=True)
        self.sum_keep = ops.ReduceSum(keep_dims=True)

    def construct(self, logits, probabilities, counts, batch):
        """counts (batch, experts): how many of a record's tokens chose each expert."""
        seq = logits.shape[0] // batch
        mean = self.mean(ops.reshape(probabilities, (batch, seq, self.experts)), 1)
        uneven = self.sum(mean * counts, 1) * (self.experts / (seq * self.choices))
        highest = ops.stop_gradient(self.max(logits, 1))
        total = ops.log(self.sum_keep(ops.exp(logits - highest), 1)) + highest
        size = self.mean(ops.reshape(total * total, (batch, seq)), 1)
        return uneven * self.balance + size * self.z


class ExpertSlots(nn.Cell):
    """Assigns a slot to each choice of each token, and the inverse. The slots of an expert are contiguous.

    ``construct(chosen, batch)`` gives slot (rows, choices) int32, 0 where ``kept`` (rows, choices) fp32 is 0; ``token``
    (slots,) int32, an arbitrary token for an empty slot; and counts (batch, experts) of choices, kept or not.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(auto_prefix=False)
        self.config, self.experts = config, config.num_experts
        self.earlier = ops.CumSum(exclusive=True)
        self.sum, self.scatter = ops.ReduceSum(), ops.ScatterNd()
        self.numbers = Tensor(np.arange(config.num_experts, dtype=np.float32))

    def construct(self, chosen, batch):
        rows = chosen[0].shape[0]
        seq = rows // batch
        capacity = expert_capacity(self.config, seq)
        both = chosen[0]
        for mask in chosen[1:]:
            both = both + mask
        by_record = ops.reshape(both, (batch, seq, self.experts))
        order = ops.reshape(self.earlier(by_record, 1), (rows, self.experts))
        first = ops.reshape(ops.arange(0, batch), (batch, 1)) * capacity
        first = ops.cast(ops.reshape(ops.tile(first, (1, seq)), (rows,)), mstype.int32)
        slot, kept, target = (), (), ()
        for mask in chosen:
            queue = self.sum(order * mask, 1)
            inside = ops.cast(queue < capacity, mstype.int32)
            expert = ops.cast(self.sum(mask * self.numbers, 1), mstype.int32)
            where = expert * (batch * capacity) + first + ops.cast(queue, mstype.int32)
            slot = slot + (ops.reshape(where * inside, (rows, 1)),)
            kept = kept + (ops.reshape(ops.cast(inside, mstype.float32), (rows, 1)),)
            target = target + (where * inside + (1 - inside) * (self.experts * batch * capacity),)
        slots = self.experts * batch * capacity
        token = ops.zeros((slots + 1,), mstype.int32)
        numbers = ops.cast(ops.arange(0, rows), mstype.int32)
        for index in target:  # dropped choices go to an extra slot, which is cut off
            token = token + self.scatter(ops.reshape(index, (rows, 1)), numbers, (slots + 1,))
        return _columns(slot), _columns(kept), token[:slots], self.sum(by_record, 1)


def _columns(parts):
    return parts[0] if len(parts) == 1 else ops.concat(parts, 1)


class Dispatch(nn.Cell):
    """x (rows, hidden) → (slots, hidden): each slot's token. Gradient: for each token the sum over its slots."""

    def __init__(self, choices: int):
        super().__init__(auto_prefix=False)
        self.choices = choices
        self.gather = ops.Gather()

    def construct(self, x, token, slot, kept):
        return self.gather(x, token, 0)

    def bprop(self, x, token, slot, kept, out, dout):
        total = self.gather(dout, slot[:, 0], 0) * ops.cast(kept[:, 0:1], dout.dtype)
        for j in range(1, self.choices):
            total = total + self.gather(dout, slot[:, j], 0) * ops.cast(kept[:, j : j + 1], dout.dtype)
        return total, ops.zeros_like(token), ops.zeros_like(slot), ops.zeros_like(kept)


class Combine(nn.Cell):
    """y (slots, hidden), gates (rows, choices) → (rows, hidden): Σ gate · the output of the token's slots, fp32.

    A slot's gradient is that of its token times the gate, and 0 for an empty slot.
    """

    def __init__(self, choices: int):
        super().__init__(auto_prefix=False)
        self.choices = choices
        self.gather, self.scatter = ops.Gather(), ops.ScatterNd()
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, y, gates, token, slot, kept):
        weight = gates * kept
        total = ops.cast(self.gather(y, slot[:, 0], 0), mstype.float32) * weight[:, 0:1]
        for j in range(1, self.choices):
            total = total + ops.cast(self.gather(y, slot[:, j], 0), mstype.float32) * weight[:, j : j + 1]
        return total

    def bprop(self, y, gates, token, slot, kept, out, dout):
        rows, slots = gates.shape[0], y.shape[0]
        weight = gates * kept
        factor, d_gates = ops.zeros((slots,), mstype.float32), ()
        for j in range(self.choices):  # a dropped choice adds its 0 to slot 0
            factor = factor + self.scatter(ops.reshape(slot[:, j], (rows, 1)), weight[:, j], (slots,))
            given = ops.cast(self.gather(y, slot[:, j], 0), mstype.float32)
            d_gates = d_gates + (self.sum(given * dout, 1) * kept[:, j : j + 1],)
        d_gates = _columns(d_gates)
        # with recomputation y comes from a collective, and d_y leads to another: all ranks must run them in one order
        d_y = ops.depend(self.gather(dout, token, 0) * ops.reshape(factor, (slots, 1)), d_gates)
        return (ops.cast(d_y, y.dtype), d_gates, ops.zeros_like(token), ops.zeros_like(slot), ops.zeros_like(kept))


class AddBias(nn.Cell):
    """x (experts, slots, n) + bias (experts, 1, n)."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.product = ops.BatchMatMul()

    def construct(self, x, bias):
        return ops.add(x, bias)

    def bprop(self, x, bias, out, dout):
        ones = ops.ones((x.shape[0], 1, x.shape[1]), dout.dtype)
        return dout, self.product(ones, dout)


class ExpertNetworks(nn.Cell):
    """The feed-forward networks of this rank's experts, (experts, n, hidden) → the same shape; a tensor rank computes
    its share of the inner width, and the shares are summed."""

    def __init__(self, config: ModelConfig, mesh: Mesh, weights, prefix: str, dtype, backend: Backend):
        super().__init__(auto_prefix=False)
        self.up, self.up_bias = weights(f"{prefix}.mapping.weight"), weights(f"{prefix}.mapping.bias")
        self.down, self.down_bias = weights(f"{prefix}.projection.weight"), weights(f"{prefix}.projection.bias")
        self.enter, self.reduce = TensorInput(mesh), AllReduce(group_of(mesh, "tensor"))
        self.activation = backend.activation(config.hidden_act)
        self.product, self.add_bias = ops.BatchMatMul(), AddBias()
        self.gather = ops.Gather()
        self.dtype, self.split = dtype, mesh.size("tensor") > 1

    def construct(self, x):
        return self._network(x, self.up, self.up_bias, self.down, self.down_bias)

    def blocks(self, x, expert):
        """x (blocks, n, hidden) through the expert (blocks,) of each block; for inference."""
        parts = [self.gather(parameter, expert, 0) for parameter in (self.up, self.up_bias, self.down, self.down_bias)]
        return self._network(x, parts[0], parts[1], parts[2], parts[3])

    def _network(self, x, up, up_bias, down, down_bias):
        inner = self.product(self.enter(x), ops.cast(up, self.dtype))
        inner = self.activation(self.add_bias(inner, ops.cast(up_bias, self.dtype)))
        given = self.product(inner, ops.cast(down, self.dtype))
        if self.split:
            given = ops.cast(self.reduce(ops.cast(given, mstype.float32)), self.dtype)
        return self.add_bias(given, ops.cast(down_bias, self.dtype))


class ExpertExchange(nn.Cell):
    """Sends tokens to the ranks of their experts and back.

    ``construct``: (experts, n, hidden) of this rank's tokens → (experts here, ranks · n, hidden) of all ranks' tokens;
    ``back`` undoes it. With all-to-all each pair of ranks exchanges only what the other needs; with gather every rank
    gets everything and keeps its part.
    """

    def __init__(self, mesh: Mesh):
        super().__init__(auto_prefix=False)
        group = group_of(mesh, "expert")
        self.size, self.index = group.size, group.index
        self.direct = mesh.parallel.all_to_all
        self.exchange = AllToAll(group)
        self.gather = AllGather(group)

    def _swap(self, x):
        """x (ranks, …): part j to rank j, part i from rank i."""
        if self.direct:
            return self.exchange(x)
        everything = self.gather(ops.expand_dims(x, 0))
        return everything[:, self.index]

    def construct(self, x):
        if self.size == 1:
            return x
        experts, slots, hidden = x.shape
        here = experts // self.size
        x = self._swap(ops.reshape(x, (self.size, here, slots, hidden)))
        return ops.reshape(ops.transpose(x, (1, 0, 2, 3)), (here, self.size * slots, hidden))

    def back(self, x):
        if self.size == 1:
            return x
        here, slots, hidden = x.shape
        slots = slots // self.size
        x = ops.transpose(ops.reshape(x, (here, self.size, slots, hidden)), (1, 0, 2, 3))
        return ops.reshape(self._swap(x), (self.size * here, slots, hidden))


class Experts(nn.Cell):
    """Replaces a block's feed-forward network in training.

    ``construct(x)``: x (rows, hidden) of whole records → (rows, hidden) fp32; and (losses, counts),: each record's
    auxiliary loss (batch,), and (experts + 1,) the tokens sent to each expert, and those dropped.
    """

    def __init__(self, parts, prefix: str):
        super().__init__(auto_prefix=False)
        config, mesh, weights, dtype = parts.config, parts.mesh, parts.weights, parts.dtype
        self.experts, self.dtype = config.num_experts, dtype
        self.seq = parts.seq_length or config.num_positions
        self.router = Router(config, weights, prefix)
        self.losses, self.slots = RoutingLosses(config), ExpertSlots(config)
        self.dispatch, self.combine = Dispatch(config.experts_per_token), Combine(config.experts_per_token)
        self.exchange = ExpertExchange(mesh)
        self.networks = ExpertNetworks(config, mesh, weights, f"{prefix}.experts", dtype, parts.backend)
        self.sum = ops.ReduceSum()

    def construct(self, x):
        batch, hidden = x.shape[0] // self.seq, x.shape[1]
        logits, probabilities, chosen, gates = self.router(x)
        slot, kept, token, counts = self.slots(chosen, batch)
        losses = self.losses(logits, probabilities, counts, batch)
        sent = self.dispatch(ops.cast(x, self.dtype), token, slot, kept)
        sent = self.exchange(ops.reshape(sent, (self.experts, -1, hidden)))
        given = self.exchange.back(self.networks(sent))
        y = self.combine(ops.reshape(given, (-1, hidden)), gates, token, slot, kept)
        dropped = ops.reshape(self.sum(1.0 - kept), (1,))
        return y, ((losses, ops.concat((self.sum(counts, 0), dropped))),)


class ExpertsWithoutLimit(nn.Cell):
    """``Experts`` outside training: any rows (rows, hidden) → (rows, hidden) fp32, nothing dropped; and ().

    Choices are sorted by expert, and each expert's are padded to whole blocks of one size, so that the number of blocks
    is fixed; a block is multiplied with a copy of its expert's weights. Where experts are spread over ranks, all these
    ranks get the same rows (as in the evaluation of a run): each computes its experts' part, and the parts are
    summed.
    """

    def __init__(self, parts, prefix: str):
        super().__init__(auto_prefix=False)
        config, mesh, weights, dtype = parts.config, parts.mesh, parts.weights, parts.dtype
        self.choices, self.dtype = config.experts_per_token, dtype
        self.here = config.num_experts // mesh.size("expert")
        self.first = self.here * mesh.index("expert")
        self.router = Router(config, weights, prefix)
        self.networks = ExpertNetworks(config, mesh, weights, f"{prefix}.experts", dtype, parts.backend)
        self.combine = Combine(config.experts_per_token)
        self.sum_parts = AllReduce(group_of(mesh, "expert"))
        self.earlier, self.running = ops.CumSum(exclusive=True), ops.CumSum()
        self.sum, self.gather, self.scatter = ops.ReduceSum(), ops.Gather(), ops.ScatterNd()

    def construct(self, x):
        _, _, chosen, gates = self.router(x)
        return self.answer(x, chosen, gates), ()

    def answer(self, x, chosen, gates):
        """The outputs of the chosen experts for x, weighted by their gates."""
        rows, hidden = x.shape
        size = block_rows(rows * self.choices, self.here)
        blocks = min(rows * self.choices, rows * self.choices // size + self.here)
        mask = ops.concat(chosen, 0) if self.choices > 1 else chosen[0]
        mask = mask[:, self.first : self.first + self.here]
        ends, slot, kept = self._sort(mask, size, blocks)
        numbers = ops.cast(ops.tile(ops.arange(0, rows), (self.choices,)), mstype.int32)
        target = ops.cast(slot + (1.0 - kept) * (blocks * size), mstype.int32)  # other ranks' choices: cut off
        token = self.scatter(ops.reshape(target, (-1, 1)), numbers, (blocks * size + 1,))[: blocks * size]
        order = ops.reshape(ops.cast(ops.arange(0, blocks), mstype.float32), (blocks, 1))
        expert = self.sum(ops.cast(order >= ops.reshape(ends, (1, self.here)), mstype.float32), 1)
        expert = ops.cast(ops.minimum(expert, float(self.here - 1)), mstype.int32)
        sent = ops.reshape(self.gather(ops.cast(x, self.dtype), token, 0), (blocks, size, hidden))
        given = ops.reshape(self.networks.blocks(sent, expert), (-1, hidden))
        slot = ops.cast(ops.transpose(ops.reshape(slot * kept, (self.choices, rows)), (1, 0)), mstype.int32)
        kept = ops.transpose(ops.reshape(kept, (self.choices, rows)), (1, 0))
        return self.sum_parts(self.combine(given, gates, token, slot, kept))

    def _sort(self, mask, size, blocks):
        """mask (choices, experts) → the block after each expert's last, each choice's slot, whether it is here."""
        needed = ops.floor((self.sum(mask, 0) + (size - 1)) / size)
        ends = self.running(needed, 0)
        queue = self.sum(self.earlier(mask, 0) * mask, 1)
        return ends, self.sum(mask * (ends - needed), 1) * size + queue, self.sum(mask, 1)


class ExpertsWithGates(ExpertsWithoutLimit):
    """The same, also returning each expert's gate: ((rows, experts) fp32,), 0 for experts that were not chosen."""

    def construct(self, x):
        _, _, chosen, gates = self.router(x)
        total = chosen[0] * gates[:, 0:1]
        for j in range(1, self.choices):
            total = total + chosen[j] * gates[:, j : j + 1]
        return self.answer(x, chosen, gates), (total,)


def block_rows(choices: int, experts: int) -> int:
    """Rows per block: a power of two, about half an expert's fair share."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, choices / (2 * experts)))))
