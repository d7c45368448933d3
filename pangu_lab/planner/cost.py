"""What a step costs: floating-point operations, bytes between devices by kind, the pipeline's idle share, seconds.

Operations are counted as the network computes them (the whole square of scores, not its causal half), a multiplication
and an addition as two. The backward pass costs twice the forward pass; recomputation adds a forward pass of the layers.
Bytes are what one device sends in a step: a ring all-reduce of n bytes over k devices sends 2 (k − 1) / k · n. In a
pipeline of p stages and m micro-batches a device idles (p − 1) / (m + p − 1) of the time (Narayanan et al., arXiv
2104.04473). Seconds come from round numbers of the hardware; they rank layouts and are no promise.
"""

from __future__ import annotations

from pangu_lab.config import ModelConfig, RunConfig
from pangu_lab.planner.hardware import Hardware
from pangu_lab.planner.memory import boundary_bytes, gradient_bytes, held, micro_batch_records, stage_layers

COMMUNICATION = ("tensor", "pipeline", "gradients", "weights", "experts")


def layer_flops(model: ModelConfig, seq_length: int, layer: int) -> float:
    """Forward operations a token in one layer: products with weights, and scores and mixing of attention."""
    hidden = model.hidden_size
    attention = 8.0 * hidden**2 + 4.0 * hidden * seq_length
    if layer not in model.moe_layers:
        return attention + 16.0 * hidden**2
    # an expert computes all its places, taken or not; the router is one more product
    return (
        attention
        + 16.0 * hidden**2 * model.experts_per_token * model.capacity_factor
        + 2.0 * hidden * model.num_experts
    )


def head_flops(model: ModelConfig) -> float:
    """Forward operations a token in the output head."""
    return 2.0 * model.hidden_size * model.vocab_size


def flops_per_token(model: ModelConfig, seq_length: int) -> float:
    """Operations of a training step a token: forward and backward, without recomputation."""
    return 3.0 * (sum(layer_flops(model, seq_length, layer) for layer in range(model.num_layers)) + head_flops(model))


def stage_flops(config: RunConfig) -> float:
    """Operations a token on the busiest stage, recomputation included: the others wait for it."""
    model, parallel = config.model, config.parallel
    passes = 3 + recomputed(config)

    def of(stage: int) -> float:
        layers = sum(layer_flops(model, config.data.seq_length, n) for n in stage_layers(model, parallel, stage))
        return passes * layers + 3.0 * head_flops(model) * (stage == parallel.pipeline - 1)

    return max(of(0), of(parallel.pipeline - 1))


def bubble(config: RunConfig) -> float:
    """Share of a step that a device of the pipeline waits."""
    stages, count = config.parallel.pipeline, config.parallel.micro_batches
    return (stages - 1) / (count + stages - 1)


# ------------------------------------------------------------------------------------------------ communication


def communication(config: RunConfig, stage: int = 0) -> dict[str, int]:
    """Bytes that a device of ``stage`` sends in a step, by kind."""
    parallel, model = config.parallel, config.model
    own = held(model, parallel, stage)
    micro_batches = config.train.accumulation * parallel.micro_batches
    rows = micro_batch_records(config) * config.data.seq_length * boundary_bytes(config)
    layers = stage_layers(model, parallel, stage)
    size = gradient_bytes(config)
    neighbours = (stage > 0) + (stage < parallel.pipeline - 1)
    sent = {
        "tensor": micro_batches * _reduced(_tensor_messages(config, len(layers), stage) * rows, parallel.tensor),
        "pipeline": micro_batches * rows * neighbours,
        "gradients": (
            _reduced(size * (own.weights - own.experts), parallel.data)
            + _reduced(size * own.experts, parallel.data // parallel.expert)
        ),
        "weights": 4 * own.own * (parallel.data - 1),
        "experts": micro_batches * rows * len(set(layers) & set(model.moe_layers)) * _expert_messages(config),
    }
    if parallel.pipeline > 1 and stage in (0, parallel.pipeline - 1):  # the word embedding's two copies
        sent["gradients"] += _reduced(4 * model.vocab_size // parallel.tensor * model.hidden_size, 2)
    return {kind: int(amount) for kind, amount in sent.items()}


def _reduced(size: float, ranks: int) -> float:
    """Bytes sent for the all-reduce of ``size`` bytes over ``ranks``."""
    return 2.0 * (ranks - 1) / ranks * size


def _expert_messages(config: RunConfig) -> float:
    """What a block with experts sends, in hidden rows of a micro-batch: tokens to experts and back, twice for gradients."""
    model, parallel = config.model, config.parallel
    if parallel.all_to_all:
        return 4.0 * (parallel.expert - 1) / parallel.expert * model.experts_per_token * model.capacity_factor
    return 4.0 * (parallel.expert - 1)  # gathered: every rank gets all tokens


def _tensor_messages(config: RunConfig, layers: int, stage: int) -> int:
    """All-reduces over the tensor dimension of one micro-batch, each of all hidden rows."""
    again = recomputed(config)
    messages = layers * (4 + 2 * again)  # two products that end in a sum, two inputs whose gradients are summed
    return messages + (1 + again) * (stage == 0) + (stage == config.parallel.pipeline - 1)  # embedding; head


def recomputed(config: RunConfig) -> int:
    """How many times the layers run forward again: where asked for, and because a stage keeps only its inputs."""
    return int(config.parallel.recompute) + int(config.parallel.pipeline > 1)


# ------------------------------------------------------------------------------------------------------ seconds


def step_seconds(config: RunConfig, hardware: Hardware, sent: dict[str, int]) -> dict[str, float]:
    """Seconds of a step by what they go into: "compute", each kind of communication, "bubble"."""
    parallel = config.parallel
    tokens = config.data.batch_size * config.data.seq_length / parallel.data
    overhead = hardware.overhead * config.train.accumulation * parallel.micro_batches
    seconds = {
        "compute": overhead + tokens * stage_flops(config) / parallel.tensor / (hardware.flops * hardware.efficiency)
    }
    spans = {
        "tensor": parallel.tensor,
        "experts": parallel.tensor * parallel.expert,
        "gradients": parallel.tensor * parallel.data,
        "weights": parallel.tensor * parallel.data,
        "pipeline": parallel.world_size,
    }
    for kind, amount in sent.items():
        seconds[kind] = amount / (hardware.near if spans[kind] <= hardware.per_server else hardware.far)
    idle = bubble(config)
    busy = seconds["compute"] + seconds["tensor"] + seconds["pipeline"] + seconds["experts"]
    seconds["bubble"] = busy * idle / (1.0 - idle)
    return seconds
