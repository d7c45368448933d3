"""All layouts for a number of devices, the memory and time each needs, and which one to use.

``estimate`` evaluates one layout, that of a configuration; ``plan`` goes through all of them. For every way to write
the number of devices as pipeline × data × tensor it finds the micro-batch size, with or without recomputation and
sliced optimizer states, that gives the fastest step of those that fit in memory, and ranks the results.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.parallel.mesh import check_layout
from pangu_lab.planner.cost import bubble, communication, flops_per_token, step_seconds
from pangu_lab.planner.hardware import Hardware, device_of
from pangu_lab.planner.memory import activation_bytes, host_bytes, micro_batch_records, stage_memory
from pangu_lab.planner.words import nothing_fits, why_chosen

NOISE = 1.03  # steps this close to the quickest count as equally quick, and the shorter pipeline goes first


@dataclass(frozen=True)
class LayoutEstimate:
    """What one layout needs and costs; all of it about the device that holds most.

    Args:
        parallel: the layout.
        accumulation: micro-batches one after the other where there is no pipeline.
        records: of a micro-batch on one device.
        stage: the pipeline stage whose devices hold most.
        memory: bytes by kind ("weights", "gradients", "optimizer", "activations", "logits", "workspace") at the worst
            moment of a step.
        total: their sum.
        moments: the same for every moment: "backward" (as it begins), "gradients" (as it ends), "sums" (over
            micro-batches and data ranks), "update".
        moment: which of them is the worst.
        capacity: bytes of a device that are there for them.
        host: bytes of a server's own memory that the layout needs for what is offloaded (0 without).
        activations: bytes of activations "plain" and with "recompute", whichever of them the layout uses.
        communication: bytes a device sends in a step, by kind ("tensor", "pipeline", "gradients", "weights", "experts").
        bubble: share of a step in which a device of the pipeline waits.
        seconds: of a step by what they go into; the sum is ``step_seconds``.
        fits: whether ``total`` is within ``capacity`` (and ``host`` within the server's memory).
    """

    parallel: ParallelConfig
    accumulation: int
    records: int
    stage: int
    memory: dict[str, int]
    total: int
    moments: dict[str, dict[str, int]]
    moment: str
    capacity: int
    host: int
    activations: dict[str, int]
    communication: dict[str, int]
    bubble: float
    seconds: dict[str, float]
    step_seconds: float
    tokens_per_second: float
    fits: bool

    @property
    def devices(self) -> int:
        return self.parallel.world_size

    @property
    def name(self) -> str:
        """``pipeline 2 × data 4 × tensor 8``, with what else is switched on."""
        parallel = self.parallel
        more = [f"{self.parallel.micro_batches * self.accumulation} micro-batches"] * (
            parallel.micro_batches * self.accumulation > 1
        )
        more += ["sliced optimizer"] * bool(parallel.optimizer) + ["recompute"] * parallel.recompute
        return ", ".join([f"pipeline {parallel.pipeline} × data {parallel.data} × tensor {parallel.tensor}", *more])

    def settings(self) -> dict[str, Any]:
        """The whole layout as dotted keys of a configuration (for ``RunConfig.replace`` or ``--set``)."""
        layout = {f"parallel.{name}": value for name, value in dataclasses.asdict(self.parallel).items()}
        return {**layout, "train.accumulation": self.accumulation}


@dataclass(frozen=True)
class Plan:
    """The layouts of a model on a number of devices, best first, and the choice among them.

    Args:
        layouts: one for every way to write the number of devices as pipeline × data × tensor, in its best settings:
            those that fit, quickest first, then those that do not, the smallest first.
        chosen: the first that fits; None where none does.
        why, why_zh: the choice in words, a sentence each, in English and in Chinese.
        enough: where none fits, the least power of two of devices on which one would; None where one fits here, or none
            would on a thousand times as many.
    """

    preset: str
    parameters: int
    flops_per_token: float
    devices: int
    memory: int
    batch: int
    hardware: str
    layouts: tuple[LayoutEstimate, ...]
    chosen: LayoutEstimate | None
    why: tuple[str, ...]
    enough: int | None = None
    why_zh: tuple[str, ...] = ()


# ----------------------------------------------------------------------------------------------------- one layout


def estimate(
    config: RunConfig, memory: int | None = None, hardware: str | Hardware = "ascend910", host: int | None = None
) -> LayoutEstimate:
    """What the layout in ``config`` needs and costs.

    Args:
        config: complete settings; ``data.batch_size`` counts the records of a step over all devices.
        memory: bytes a device; the hardware's own when not given.
        hardware: a name in ``HARDWARE``, or one made by hand.
        host: bytes of a server's own memory; the hardware's own when not given.

    Raises:
        InputError: the layout cannot work, whatever the memory.
    """
    check_layout(config)
    device = device_of(hardware, memory, host)
    parallel = config.parallel
    stages = sorted({0, parallel.pipeline - 1})
    needs = {
        (stage, moment): kinds for stage in stages for moment, kinds in stage_memory(config, device, stage).items()
    }
    stage, moment = max(needs, key=lambda key: sum(needs[key].values()))
    memory = needs[stage, moment]
    sent = communication(config, stage)
    seconds = step_seconds(config, device, sent)
    total, step, host = sum(memory.values()), sum(seconds.values()), host_bytes(config, device, stage)
    capacity = int(device.memory * device.usable)
    activations = {
        name: activation_bytes(config, device, stage, again) for name, again in (("plain", False), ("recompute", True))
    }
    return LayoutEstimate(
        parallel,
        config.train.accumulation,
        micro_batch_records(config),
        stage,
        memory,
        total,
        {name: kinds for (number, name), kinds in needs.items() if number == stage},
        moment,
        capacity,
        host,
        activations,
        sent,
        bubble(config),
        seconds,
        step,
        config.data.batch_size * config.data.seq_length / step,
        total <= capacity and host <= device.host,
    )


# ---------------------------------------------------------------------------------------------------- all layouts


def plan(
    config: RunConfig,
    devices: int,
    memory: int | None = None,
    batch: int | None = None,
    hardware: str | Hardware = "ascend910",
    host: int | None = None,
) -> Plan:
    """All layouts of ``config`` on ``devices`` devices, and which to take.

    Args:
        config: the model and its data; the layout in it is not looked at.
        devices: how many there are.
        memory: bytes of each; the hardware's own when not given.
        batch: records of a step over all devices; ``data.batch_size`` when not given.
        hardware: a name in ``HARDWARE``, or one made by hand.
        host: bytes of a server's own memory; the hardware's own when not given.

    Raises:
        InputError: a number cannot work: no devices, or a batch that no layout divides.
    """
    if devices < 1:
        raise InputError(f"--devices {devices}: there must be at least one")
    device, batch = device_of(hardware, memory, host), config.data.batch_size if batch is None else batch
    if batch < 1:
        raise InputError(f"--batch {batch}: there must be at least one record")
    found = _ranked(config, devices, batch, device)
    if not found:
        raise InputError(
            f"no layout of {devices} devices goes with {config.model.num_layers} layers, "
            f"{config.model.num_heads} heads and a batch of {batch}: choose another number of devices, or a "
            "larger batch"
        )
    chosen = found[0] if found[0].fits else None
    enough = None if chosen else _enough(config, devices, batch, device)
    model = config.model
    return Plan(
        config.preset,
        model.num_parameters,
        flops_per_token(model, config.data.seq_length),
        devices,
        device.memory,
        batch,
        device.name,
        tuple(found),
        chosen,
        tuple(reasons(config, found, device, enough)),
        enough,
        tuple(reasons(config, found, device, enough, "zh")),
    )


def _ranked(config: RunConfig, devices: int, batch: int, device: Hardware) -> list[LayoutEstimate]:
    """The best settings of each way to split the devices; those that fit first, by speed, the others by need."""
    best = [_best(config, batch, device, *sizes) for sizes in splits(config.model, devices, batch)]
    found = [item for item in best if item is not None]
    quick = NOISE * min((item.step_seconds for item in found if item.fits), default=0.0)

    def rank(item: LayoutEstimate) -> tuple:
        if not item.fits:
            return 2, item.total
        return (0, item.parallel.pipeline, item.step_seconds) if item.step_seconds <= quick else (1, item.step_seconds)

    return sorted(found, key=rank)


def splits(model: ModelConfig, devices: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """Every (pipeline, data, tensor) whose product is ``devices`` and that the model and the batch can be split by."""
    for tensor in (2**power for power in range(devices.bit_length())):
        if devices % tensor or model.num_heads % tensor or model.vocab_size % tensor:
            continue
        for pipeline in range(1, min(model.num_layers, devices // tensor) + 1):
            data, rest = divmod(devices // tensor, pipeline)
            if not rest and batch % data == 0 and batch // data >= pipeline:
                yield pipeline, data, tensor


def _best(
    config: RunConfig, batch: int, device: Hardware, pipeline: int, data: int, tensor: int
) -> LayoutEstimate | None:
    """The quickest settings that fit, or those that need least."""
    tried = [
        estimate(_with(config, layout, accumulation, batch), hardware=device)
        for layout, accumulation in _settings(config.model, batch // data, pipeline, data, tensor)
    ]
    return min(
        tried,
        default=None,
        key=lambda item: (
            (0, item.step_seconds, item.accumulation, item.parallel.micro_batches) if item.fits else (1, item.total)
        ),
    )


def _settings(
    model: ModelConfig, records: int, pipeline: int, data: int, tensor: int
) -> Iterator[tuple[ParallelConfig, int]]:
    """Every size of micro-batch, with and without recomputation and sliced states, every spread of experts."""
    counts = [n for n in range(pipeline if pipeline > 1 else 1, records + 1) if records % n == 0]
    experts = (
        [n for n in range(1, data + 1) if data % n == 0 and model.num_experts % n == 0] if model.moe_layers else [1]
    )
    for count, recompute, optimizer, expert in itertools.product(
        counts, (False, True), (False, True) if data > 1 else (False,), experts
    ):
        layout = ParallelConfig(
            data=data,
            tensor=tensor,
            pipeline=pipeline,
            micro_batches=count if pipeline > 1 else 1,
            optimizer=optimizer,
            recompute=recompute,
            expert=expert,
            all_to_all=expert > 1,
        )
        yield layout, 1 if pipeline > 1 else count


def _with(config: RunConfig, layout: ParallelConfig, accumulation: int, batch: int) -> RunConfig:
    return dataclasses.replace(
        config,
        parallel=layout,
        data=dataclasses.replace(config.data, batch_size=batch),
        train=dataclasses.replace(config.train, accumulation=accumulation),
    )


def _enough(config: RunConfig, devices: int, batch: int, device: Hardware) -> int | None:
    """The least power of two of devices, above ``devices``, on which a layout fits."""
    for count in (2**power for power in range(devices.bit_length(), devices.bit_length() + 10)):
        if any(
            item is not None and item.fits
            for item in (_best(config, batch, device, *sizes) for sizes in splits(config.model, count, batch))
        ):
            return count
    return None


# ------------------------------------------------------------------------------------------------------- in words


def reasons(
    config: RunConfig, found: list[LayoutEstimate], device: Hardware, enough: int | None, language: str = "en"
) -> Iterator[str]:
    """Why the first of ``found`` is the choice, or why there is none."""
    yield from (
        why_chosen(config, found, device, language) if found[0].fits else nothing_fits(found, device, enough, language)
    )
