"""Layouts for generation: what each process of pipeline stages × tensor-parallel ranks holds, and how long a token takes.

Weights and cache are counted parameter by parameter, as the network for generation has them (``model/inference.py``). A
decode step reads all weights of a stage once, and the cache of its sequences, which takes longer than its arithmetic until
many sequences share the step; then come its sums over tensor-parallel ranks, a ring's 2 (k − 1) messages each, and the hidden
rows' way to the next stage. Sequences go through S stages in S groups, so that the stages work at the same time: a token of
one sequence takes the sum of all stages, and in that time every sequence gets one. Seconds rank layouts; they are no promise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.memory import Need, generation_need, tokens_at_once
from pangu_lab.model.inference import check_split, inference_shapes, is_product
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.planner.cost import head_flops, layer_flops
from pangu_lab.planner.hardware import Hardware, device_of
from pangu_lab.planner.memory import BYTES
from pangu_lab.planner.words import count, size
from pangu_lab.ranges import shown

KINDS = ("weights", "key-value cache", "work")
SEQUENCES = 16  # a server's step has at most so many


def part_need(model: ModelConfig, slots: int, mesh: Mesh, dtype: str = "float32") -> Need:
    """Memory of a CPU process that generates with its rank's part of weights and cache; of one process, the whole."""
    need = generation_need(model, slots, dtype, layers=len(mesh.layers(model.num_layers)))
    return need if mesh.parallel.world_size == 1 else Need({**need.parts, **_held(model, slots, mesh, dtype)})


def _held(model: ModelConfig, slots: int, mesh: Mesh, dtype: str) -> dict[str, int]:
    """Bytes of weights and cache. In half precision are the weights of products; the cache is fp32."""
    sizes = {"weights": 0, "key-value cache": 0}
    for name, shape in inference_shapes(model, slots, mesh).items():
        each = BYTES[dtype] if is_product(name) else 4
        sizes["key-value cache" if ".cache." in name else "weights"] += math.prod(shape) * each
    return sizes


@dataclass(frozen=True)
class StageEstimate:
    """What a device of one stage holds and does.

    Args:
        layers: its layers; the last of the network is the query layer.
        memory: bytes by kind (``KINDS``).
        seconds: of a decode step of a group of sequences by what they go into: "read" (or "compute", if that takes
            longer), "tensor", "pipeline".
    """

    layers: range
    memory: dict[str, int]
    seconds: dict[str, float]

    @property
    def total(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class ServingEstimate:
    """One layout.

    Args:
        stages: in order; memory is that of each of the stage's devices.
        capacity: bytes of a device.
        token_seconds: from one token of a sequence to its next.
        tokens_per_second: of all sequences together.
    """

    parallel: ParallelConfig
    stages: tuple[StageEstimate, ...]
    capacity: int
    token_seconds: float
    tokens_per_second: float

    @property
    def fullest(self) -> StageEstimate:
        """The stage whose devices hold most."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def fits(self) -> bool:
        return self.fullest.total <= self.capacity

    @property
    def name(self) -> str:
        return f"tensor {self.parallel.tensor} × pipeline {self.parallel.pipeline}"


@dataclass(frozen=True)
class ServingPlan:
    """The layouts of a network for generation on a number of devices.

    Args:
        dtype: of the products' weights. ``sequences``, ``length``: there is cache for so many of so many positions.
        layouts: one for each tensor × pipeline: those that fit, quickest first, then the others, the smallest first.
        chosen: the first that fits; None where none does.
        enough: the least power of two of devices on which a layout fits; None above a thousand times as many.
        why: the choice in words, a sentence each.
    """

    preset: str
    parameters: int
    devices: int
    memory: int
    hardware: str
    per_server: int
    dtype: str
    sequences: int
    length: int
    layouts: tuple[ServingEstimate, ...]
    chosen: ServingEstimate | None
    enough: int | None
    why: tuple[str, ...]

    @property
    def slots(self) -> int:
        """Of the key-value cache."""
        return self.sequences * self.length


def plan_serving(
    config: RunConfig,
    devices: int,
    memory: int | None = None,
    hardware: str | Hardware = "ascend910",
    dtype: str = "float32",
    sequences: int = SEQUENCES,
    length: int | None = None,
) -> ServingPlan:
    """All layouts of ``config``'s network on ``devices`` devices, and which to take.

    Args:
        memory: bytes of each device; the hardware's own when not given.
        hardware: a name in ``HARDWARE``, or one made by hand.
        dtype: of the products' weights: "float32", "float16" or "bfloat16".
        sequences, length: how many sequences of how many positions the cache has room for; the network's own length by
            default.

    Raises:
        InputError: a number cannot work, or no layout of so many devices can share this network.
    """
    device, model = device_of(hardware, memory), config.model
    length = model.num_positions if length is None else length
    for option, number, most in (
        ("--devices", devices, None),
        ("--sequences", sequences, None),
        ("--length", length, model.num_positions),
    ):
        if number < 1 or (most is not None and number > most):
            raise InputError(
                f"{option} must be "
                + ("at least 1" if most is None else f"from 1 to {most}, the network's positions")
                + f", not {shown(number)}"
            )
    if dtype not in BYTES:
        raise InputError(f"dtype '{dtype}': there are {', '.join(BYTES)}")
    asked = functools.partial(_ranked, model, device=device, dtype=dtype, sequences=sequences, length=length)
    found = asked(devices)
    if not found:
        raise InputError(
            f"no layout of {shown(devices)} devices goes with {model.num_layers} layers, {model.num_heads} heads and "
            f"a vocabulary of {model.vocab_size}: choose another number of devices"
        )
    chosen = found[0] if found[0].fits else None
    powers = (2**power for power in range(devices.bit_length() + 10))
    enough = next((number for number in powers if any(item.fits for item in asked(number))), None)
    return ServingPlan(
        config.preset,
        model.num_parameters,
        devices,
        device.memory,
        device.name,
        device.per_server,
        dtype,
        sequences,
        length,
        tuple(found),
        chosen,
        enough,
        tuple(_reasons(found, devices, enough, device)),
    )


def _ranked(
    model: ModelConfig, devices: int, device: Hardware, dtype: str, sequences: int, length: int
) -> list[ServingEstimate]:
    """Every layout that the network can be split by; those that fit first, by the time of a token, the others by need."""
    layouts = []
    for pipeline in range(1, min(devices, model.num_layers) + 1):
        tensor, rest = divmod(devices, pipeline)
        if rest or model.num_heads % tensor or model.vocab_size % tensor or (tensor > 1 and model.moe_layers):
            continue
        layouts.append(
            _estimate(model, ParallelConfig(tensor=tensor, pipeline=pipeline), device, dtype, sequences, length)
        )
    return sorted(layouts, key=lambda item: (0, item.token_seconds) if item.fits else (1, item.fullest.total))


def _estimate(
    model: ModelConfig, layout: ParallelConfig, device: Hardware, dtype: str, sequences: int, length: int
) -> ServingEstimate:
    check_split(model, layout.tensor, layout.pipeline)
    groups = min(layout.pipeline, sequences)
    together = -(-sequences // groups)
    stages = []
    for stage in range(layout.pipeline):
        mesh = Mesh(layout, stage * layout.tensor)
        memory = _memory(model, sequences * length, mesh, device, dtype, together)
        stages.append(
            StageEstimate(
                mesh.layers(model.num_layers),
                memory,
                _seconds(model, mesh, device, memory, together, sequences, length),
            )
        )
    each = [sum(stage.seconds.values()) for stage in stages]
    token = max(sum(each), groups * max(each))
    return ServingEstimate(layout, tuple(stages), int(device.memory * device.usable), token, sequences / token)


def _memory(model: ModelConfig, slots: int, mesh: Mesh, device: Hardware, dtype: str, together: int) -> dict[str, int]:
    """Bytes by kind on a rank's device. A CPU graph lets go of nothing; elsewhere a layer's rows replace another's."""
    layers = mesh.layers(model.num_layers)
    held = _held(model, slots, mesh, dtype)
    if device.is_cpu:
        need = generation_need(model, slots, dtype, layers=len(layers)).parts
        return {**held, "work": need["work"] + need["program"]}
    tokens, tensor = min(model.num_positions, max(tokens_at_once(model), together)), mesh.size("tensor")
    split = (
        11 * model.hidden_size + 2 * model.num_heads * model.num_positions
    )  # q, k, v, feed-forward twice; scores twice
    work = 4 * tokens * (3 * model.hidden_size + split // tensor) + 8 * together * model.vocab_size * mesh.is_last_stage
    return {**held, "work": work}


def _seconds(
    model: ModelConfig, mesh: Mesh, device: Hardware, memory: dict[str, int], together: int, sequences: int, length: int
) -> dict[str, float]:
    """A decode step of ``together`` sequences on one stage, each of ``length`` positions."""
    layers, tensor, world = mesh.layers(model.num_layers), mesh.size("tensor"), mesh.parallel.world_size
    read = (memory["weights"] + memory["key-value cache"] * together / sequences) / device.read
    flops = sum(layer_flops(model, length, layer) for layer in layers) + head_flops(model) * mesh.is_last_stage
    compute = together * flops / tensor / (device.flops * device.efficiency)
    rows = 4.0 * together * model.hidden_size
    sums = 2 * len(layers) + mesh.is_first_stage + mesh.is_last_stage
    near = tensor <= device.per_server
    ring = 2 * (tensor - 1) * (device.near_delay if near else device.far_delay)
    ring += 2 * (tensor - 1) / tensor * rows / (device.near if near else device.far)
    inside = world <= device.per_server
    hop = (device.near_delay if inside else device.far_delay) + rows / (device.near if inside else device.far)
    return {
        "read" if read >= compute else "compute": max(read, compute),
        "tensor": sums * ring,
        "pipeline": 0.0 if mesh.is_last_stage else hop,
    }


def _reasons(found: list[ServingEstimate], devices: int, enough: int | None, device: Hardware) -> Iterator[str]:
    """Why the first is the choice, or why there is none."""
    best = found[0]
    most = best.fullest
    if not best.fits:
        kind = max(most.memory, key=lambda name: most.memory[name])
        yield (
            f"No layout on {devices} of these devices fits: the smallest, {best.name}, needs {size(most.total)} of "
            f"{size(best.capacity)}, {size(most.memory[kind])} of it for {kind}."
        )
        if enough is not None:
            yield f"{enough} such devices would do."
        return
    if best.parallel.tensor > 1:
        sent = sum(stage.seconds["tensor"] for stage in best.stages) / best.token_seconds
        where = "stays within a server" if best.parallel.tensor <= device.per_server else "reaches over several servers"
        yield f"tensor {best.parallel.tensor} {where}: its sums are {sent:.0%} of a token's time."
    if best.parallel.pipeline > 1:
        sent = sum(stage.seconds["pipeline"] for stage in best.stages) / best.token_seconds
        yield (
            f"pipeline {best.parallel.pipeline} sends only hidden rows ({sent:.1%} of the time); its stages are busy at the "
            f"same time from {best.parallel.pipeline} sequences on."
        )
    others = [item for item in found[1:] if item.fits]
    if others:
        slower = others[0].token_seconds / best.token_seconds - 1
        yield f"Of {len(others) + 1} layouts that fit it is the quickest; next is {others[0].name}, {slower:.0%} slower."
    elif len(found) > 1:
        yield f"No other layout fits: {found[1].name} would need {size(found[1].fullest.total)} on a device."
    if enough is not None and enough < devices:
        yield (
            f"{count(enough)} such device{'s' * (enough > 1)} would do: then {devices // enough} servers of it can share the "
            "requests."
        )
