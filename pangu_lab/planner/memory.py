"""Peak memory of one device of a layout within a step, by kind, in bytes.

Counted from what this project's code keeps, not from a rule of thumb: the tensors that the backward pass of each
layer needs, the parameters in fp32, the half-precision copies used in products, and the second and third set
of gradients that adding up micro-batches or summing over data ranks briefly needs. A step has four such phases: the
beginning of the backward pass, when all activations exist, and its end, when all gradients do; the sums, in which
gradients exist beside what they are added to; the update. The largest counts.

On a CPU there is more: MindSpore's CPU executor frees much less between two operators, and
nothing between the four phases. What a layer, a message, a graph leaves there was measured with real processes
(``OPERATORS``, and ``KERNELS`` where the C kernels train: they keep a quarter of it; ``tests/planner/test_memory.py``
measures it again).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.model.parameters import is_matrix, parameter_specs
from pangu_lab.ops.native.train import library_for
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import is_plain, is_spread, moment_shard, parameter_shards
from pangu_lab.planner.hardware import Hardware

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "workspace")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Cpu:
    """What a CPU process keeps, measured (MindSpore 2.10): numbers of tensors of four-byte elements.

    A layer leaves tensors of (tokens, hidden) and of (heads, tokens, tokens): ``alone`` many of them in a graph without
    collectives; ``split`` in one with tensor parallelism, where nothing at all is let go: hidden rows that every tensor
    rank has, those it has its part of, and scores. ``dropout`` are those of the masks. ``logits`` are of (tokens,
    vocabulary). ``again`` is what recomputation makes of a layer's activations, ``forward`` the share of them that a
    pipeline stage's forward graph adds. Of all weights there are ``update`` more copies after an update,
    ``accumulate`` after micro-batches were added up, ``sums`` after gradients were summed over data ranks, ``gather``
    after weights were gathered. A process has compiled graphs of ``graph`` bytes, and ``layer`` more for each layer.
    With ``head`` the logits of so many rows exist at once, beside another gradient of the word embedding (three on the
    last stage of a pipeline, which adds up those of micro-batches); 0: of all. Measured at a first start: a second one,
    which compiles nothing, takes some 10 % less.
    """

    alone: tuple[float, float] = (93.0, 8.46)
    split: tuple[float, float, float] = (54.5, 49.0, 17.2)
    dropout: tuple[float, float] = (25.6, 9.2)
    logits: float = 3.15
    again: float = 1.3
    forward: float = 0.45
    update: float = 1.1
    accumulate: float = 3.0
    sums: float = 5.1
    gather: float = 5.3
    graph: int = 70 << 20
    layer: int = 38 << 20
    head: int = 0


OPERATORS = Cpu()
KERNELS = Cpu(
    alone=(15.5, 0.0),
    split=(14.0, 34.0, 0.0),
    dropout=(0.5, 0.0),
    again=0.63,
    update=0.0,
    accumulate=3.9,
    sums=3.4,
    gather=4.6,
    graph=58 << 20,
    layer=10 << 20,
    head=512,
)


def _cpu(config: RunConfig) -> Cpu:
    """By what a CPU of this machine would train this model."""
    return OPERATORS if library_for(config.model) is None else KERNELS


# -------------------------------------------------------------------------------------------------- parameters


@dataclass(frozen=True)
class Held:
    """Numbers of parameters on a device of one stage.

    ``weights``: all; ``experts``: those of experts among them; ``matrices``: those that products are made with;
    ``largest`` and ``largest_layer``: of one tensor and one layer; ``moments``: elements of one of Adam's moments;
    ``momenta``: of those, elements that Muon has one state of, not two;
    ``own``: weights whose moments are sliced: their rows are kept once more, as the optimizer's own parameters.
    """

    weights: int
    experts: int
    matrices: int
    largest: int
    largest_layer: int
    moments: int
    momenta: int
    own: int


def held(model: ModelConfig, parallel: ParallelConfig, stage: int) -> Held:
    """What a device of ``stage`` holds."""
    data = parallel.data if parallel.optimizer else 1
    return _held(
        model,
        ParallelConfig(data=data, tensor=parallel.tensor, pipeline=parallel.pipeline, optimizer=parallel.optimizer),
        parallel.expert,
        stage,
    )


@functools.lru_cache(maxsize=4096)
def _held(model: ModelConfig, parallel: ParallelConfig, expert: int, stage: int) -> Held:
    specs, shards = _shards(model, parallel.pipeline, parallel.tensor, stage)
    sizes = {name: math.prod(shard.shape) // (expert if specs[name].expert else 1) for name, shard in shards.items()}
    mesh = Mesh(parallel, stage * parallel.data * parallel.tensor)
    sizes = {name: size // (parallel.data if is_spread(specs[name], mesh) else 1) for name, size in sizes.items()}
    moments = dict(sizes)
    for name, shard in shards.items():
        sliced = moment_shard(specs[name], shard, mesh)
        if sliced != shard and (not specs[name].expert or expert == 1):
            moments[name] = math.prod(sliced.shape)
    layers: dict[int, int] = {}
    for name, size in sizes.items():
        layers[specs[name].layer] = layers.get(specs[name].layer, 0) + size
    return Held(
        weights=sum(sizes.values()),
        experts=sum(size for name, size in sizes.items() if specs[name].expert),
        matrices=sum(size for name, size in sizes.items() if len(specs[name].shape) > 1),
        largest=max(sizes.values()),
        largest_layer=max(layers.values()),
        moments=sum(moments.values()),
        momenta=sum(size for name, size in moments.items() if is_matrix(name)),
        own=sum(moments[name] for name, size in sizes.items() if moments[name] != size),
    )


@functools.lru_cache(maxsize=256)
def _shards(model: ModelConfig, pipeline: int, tensor: int, stage: int):
    """The table of parameters, and the parts that a device of ``stage`` holds."""
    mesh = Mesh(ParallelConfig(tensor=tensor, pipeline=pipeline), stage * tensor)
    specs = parameter_specs(model)
    return specs, parameter_shards(specs, mesh, model.num_layers)


def stage_layers(model: ModelConfig, parallel: ParallelConfig, stage: int) -> range:
    """The layers that a stage holds."""
    return Mesh(ParallelConfig(pipeline=parallel.pipeline), stage).layers(model.num_layers)


# ------------------------------------------------------------------------------------------------- activations


def layer_bytes(config: RunConfig, layer: int, cpu: bool) -> int:
    """Bytes that one layer keeps for its backward pass, a token, on one device."""
    model, tensor = config.model, config.parallel.tensor
    hidden, scores = model.hidden_size, model.num_heads * config.data.seq_length
    # the feed-forward network runs once for each place at an expert
    times = model.experts_per_token * model.capacity_factor if layer in model.moe_layers else 1.0
    if cpu:
        return int(4 * _cpu_elements(config, times))
    size = BYTES[model.compute_dtype]
    dropout = model.dropout_rate > 0
    # fp32: two LayerNorms keep x − mean and its normalised form each, two dropouts their masks
    whole = 4 * (4 + 2 * dropout) + size * (1 + times)  # and the two norms' results as the products' inputs
    inner = {"fast_gelu": 3, "gelu": 4, "gelu_erf": 4}[model.hidden_act]  # tensors of 4 · hidden around the activation
    split = size * (5 + 4 * inner * times)  # queries, keys, values, mixed values before and after their transpose
    return int(hidden * (whole + split / tensor) + size * (1 + dropout) * scores / tensor)


def _cpu_elements(config: RunConfig, times: float) -> float:
    """The same in elements, in a CPU process."""
    model, tensor, cpu = config.model, config.parallel.tensor, _cpu(config)
    if tensor == 1:
        rows, scores = cpu.alone
    else:
        rows, scores = cpu.split[0] + cpu.split[1] / tensor, cpu.split[2]
    if model.dropout_rate > 0:
        rows, scores = rows + cpu.dropout[0], scores + cpu.dropout[1]
    half = (1.0 + times) / 2.0  # half of a layer's rows are its feed-forward network's
    return half * rows * model.hidden_size + scores * model.num_heads * config.data.seq_length / tensor


def _compiled_layers(config: RunConfig, layers: range, recompute: bool) -> int:
    """Layers with graphs of their own: by recomputation those that are alike share theirs, see ``train/recompute.py``."""
    plain = sum(is_plain(layer, config.model.num_layers) for layer in layers)
    return len(layers) - max(plain - 1, 0) if recompute and config.model.num_experts == 1 else len(layers)


def boundary_bytes(config: RunConfig) -> int:
    """Bytes of the residual stream, a token: what recomputation keeps of a layer, and what travels between stages."""
    return 4 * config.model.hidden_size


def activation_bytes(config: RunConfig, hardware: Hardware, stage: int, recompute: bool) -> int:
    """Bytes of activations at the start of the backward pass of one micro-batch."""
    parallel, layers = config.parallel, stage_layers(config.model, config.parallel, stage)
    tokens = micro_batch_records(config) * config.data.seq_length
    each = [layer_bytes(config, layer, hardware.is_cpu) for layer in layers]
    total = sum(each)
    if hardware.is_cpu:
        if recompute and config.model.num_experts == 1:
            total = each[0] * _compiled_layers(config, layers, recompute) + len(each) * boundary_bytes(config)
        forward = _cpu(config).forward * (parallel.pipeline > 1 and stage < parallel.pipeline - 1)
        total = int(total * ((_cpu(config).again if recompute else 1.0) + forward))
    elif recompute:
        total = len(each) * boundary_bytes(config) + max(each)  # the layer that is being computed again
    # a stage of a pipeline keeps the inputs of the micro-batches that are on their way through the later stages
    waiting = min(parallel.micro_batches, parallel.pipeline - stage) if parallel.pipeline > 1 else 0
    mask = config.data.seq_length * BYTES[config.model.softmax_dtype]  # a row of the causal mask, made once a batch
    return tokens * (total + waiting * boundary_bytes(config) + mask)


def logits_bytes(config: RunConfig, hardware: Hardware, stage: int) -> int:
    """Bytes of logits, their logarithms and their gradients; on the last stage alone."""
    if stage != config.parallel.pipeline - 1:
        return 0
    tokens = micro_batch_records(config) * config.data.seq_length
    if hardware.is_cpu:
        each, head = 4 * _cpu(config).logits, _cpu(config).head
        if head and config.parallel.tensor == 1:
            gradients = 1 if config.parallel.pipeline == 1 else 3
            return 4 * config.model.vocab_size * (min(tokens, head) + gradients * config.model.hidden_size)
    else:
        each = 12 if config.model.compute_dtype == "float32" else 14
    return int(tokens * config.model.vocab_size // config.parallel.tensor * each)


def micro_batch_records(config: RunConfig) -> int:
    """Records that go through a device at once."""
    return config.data.batch_size // (config.parallel.data * config.parallel.micro_batches * config.train.accumulation)


# ---------------------------------------------------------------------------------------------------- the whole


def stage_memory(config: RunConfig, hardware: Hardware, stage: int) -> dict[str, dict[str, int]]:
    """Bytes by moment of a step ("backward", "gradients", "sums", "update") and kind, on a device of ``stage``."""
    own = held(config.model, config.parallel, stage)
    moments = {
        "backward": _backward_begins(config, hardware, stage, own),
        "gradients": _backward_ends(config, own),
        "sums": _sums(config, own),
        "update": _update(config, own),
    }
    if hardware.is_cpu:  # nothing is let go between the moments: the first has what the later ones need
        moments["backward"] = {
            **moments["backward"],
            "gradients": gradient_bytes(config) * own.weights,
            "workspace": _cpu_workspace(config, stage, own),
        }
    states = 8 * own.moments - (4 * own.momenta if config.train.optimizer == "muon" else 0)
    size = gradient_bytes(config)  # as large as the weights
    base = {"weights": size * own.weights, "optimizer": size * own.own + (0 if offloaded(config) else states)}
    return {name: {kind: int({**base, **kinds}.get(kind, 0)) for kind in KINDS} for name, kinds in moments.items()}


def host_bytes(config: RunConfig, hardware: Hardware, stage: int) -> int:
    """Bytes of a server's own memory: with offload the moments, and fp32 weights, of all its devices."""
    if not offloaded(config):
        return 0
    each = 12 if gradient_bytes(config) == 2 else 8  # fp32 weights stay on the device
    return (
        each * held(config.model, config.parallel, stage).moments * min(config.parallel.world_size, hardware.per_server)
    )


def offloaded(config: RunConfig) -> bool:
    """Whether the optimizer's states and its work are on the host."""
    return config.train.offload == "optimizer"


def gradient_bytes(config: RunConfig) -> int:
    """Bytes of an element of a weight on the device, and of its gradient."""
    return BYTES[config.model.compute_dtype] if _has_halves(config) else 4


def _has_halves(config: RunConfig) -> bool:
    """Whether the device's weights are in the compute type."""
    return offloaded(config) or config.train.param_dtype == "float16"


def _parts(config: RunConfig) -> int:
    """How many micro-batches make a step."""
    return config.train.accumulation * config.parallel.micro_batches


def _backward_begins(config: RunConfig, hardware: Hardware, stage: int, own: Held) -> dict[str, int]:
    """All activations of a micro-batch beside the gradients of those before."""
    return {
        "activations": activation_bytes(config, hardware, stage, config.parallel.recompute),
        "logits": logits_bytes(config, hardware, stage),
        "gradients": _earlier(config, own),
        "workspace": _half_copies(config, own),
    }


def _backward_ends(config: RunConfig, own: Held) -> dict[str, int]:
    """The activations are gone, and all gradients there."""
    return {
        "gradients": _earlier(config, own) + gradient_bytes(config) * own.weights,
        "workspace": _half_copies(config, own),
    }


def _earlier(config: RunConfig, own: Held) -> int:
    return gradient_bytes(config) * own.weights if _parts(config) > 1 else 0


def _half_copies(config: RunConfig, own: Held) -> int:
    """Products in half precision are made with copies of fp32 weights, which their backward pass needs too."""
    size = BYTES[config.model.compute_dtype]
    if size == 4 or _has_halves(config):
        return 0
    return size * (own.largest_layer if config.parallel.recompute else own.matrices)


def _sums(config: RunConfig, own: Held) -> dict[str, int]:
    """Gradients beside the sums they go into: over micro-batches, then over data ranks in one flat message."""
    several = _parts(config) > 1 or config.parallel.data > 1
    size = gradient_bytes(config)
    return {"gradients": size * own.weights, "workspace": 2 * size * own.weights if several else 0}


def _update(config: RunConfig, own: Held) -> dict[str, int]:
    """The update goes tensor by tensor, with a scaled gradient and a decayed weight beside each; on the host if there."""
    return {"gradients": gradient_bytes(config) * own.weights, "workspace": 0 if offloaded(config) else 8 * own.largest}


def _cpu_workspace(config: RunConfig, stage: int, own: Held) -> int:
    """What a CPU process has beside tensors: compiled graphs, and copies of all weights that steps leave behind."""
    parallel, cpu, layers = config.parallel, _cpu(config), stage_layers(config.model, config.parallel, stage)
    copies = cpu.update + cpu.accumulate * (_parts(config) > 1) + cpu.sums * (parallel.data > 1)
    copies += cpu.gather * (own.own > 0)
    compiled = _compiled_layers(config, layers, parallel.recompute) if cpu is KERNELS else len(layers)
    graphs = cpu.graph + cpu.layer * compiled
    return int(4 * copies * own.weights) + graphs
