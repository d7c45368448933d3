"""A plan's choice in words: a handful of sentences, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from pangu_lab.config import RunConfig
from pangu_lab.planner.hardware import GIB, Hardware


def size(amount: float) -> str:
    """``12.3 GB`` (of 2³⁰ bytes, as devices are sold), ``45 MB`` below one of them, ``1.2 TB`` above a thousand."""
    for unit, bytes_ in (("TB", 2**40), ("GB", GIB)):
        if amount >= bytes_:
            return f"{amount / bytes_:.1f} {unit}"
    return f"{amount / 2**20:.0f} MB"


def count(number: float) -> str:
    """``2.6 billion``, ``71 thousand``."""
    for word, unit in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return f"{number:g}"


def why_chosen(config: RunConfig, found, device: Hardware) -> Iterator[str]:
    """The choice: what forced a split, what each dimension is for, and what the runner-up lacks."""
    best = found[0]
    parallel = best.parallel
    whole = 16 * config.model.num_parameters
    yield (f"{count(config.model.num_parameters)} parameters are {size(whole)} of weights, gradients and two moments in "
           f"fp32; a device has {size(best.capacity)} for them and for activations.")
    if parallel.tensor > 1:
        where = "within a server" if parallel.tensor <= device.per_server else "across servers"
        yield (f"tensor {parallel.tensor} stays {where}: it sends {size(best.communication['tensor'])} a device and step, "
               f"{best.seconds['tensor'] / best.step_seconds:.0%} of the step.")
    if parallel.pipeline > 1:
        yield (f"pipeline {parallel.pipeline} sends only {size(best.communication['pipeline'])}, and idles "
               f"{best.bubble:.0%} of the time with {parallel.micro_batches} micro-batches.")
    if parallel.data > 1:
        yield (f"data {parallel.data} sums {size(best.communication['gradients'])} of gradients a step"
               + (", and every rank keeps the moments of its own rows alone." if parallel.optimizer else "."))
    if parallel.recompute:
        plain, again = best.activations["plain"], best.activations["recompute"]
        yield f"Recomputation brings activations from {size(plain)} down to {size(again)}, for one more forward pass."
    if best.host:
        yield f"Offloading keeps moments and fp32 weights in {size(best.host)} of each server's own memory."
    yield _against(found)


def _against(found) -> str:
    """How many others fit, and the best of them; or the one that misses by least."""
    others = [item for item in found[1:] if item.fits]
    if others:
        slower = others[0].step_seconds / found[0].step_seconds - 1
        close = f"{slower:.0%} slower" if slower >= 0.03 else "as quick, but with the longer pipeline"
        return f"Of {len(others) + 1} layouts that fit it is the quickest; next is {others[0].name}, {close}."
    if len(found) > 1:
        return (f"No other layout fits: {found[1].name} would need {size(found[1].total)}, "
                f"{size(found[1].total - found[1].capacity)} too many.")
    return "There is no other layout."


def nothing_fits(found, device: Hardware, enough: Optional[int]) -> Iterator[str]:
    """What the smallest layout lacks, and on how many devices one would fit."""
    least = found[0]
    yield (f"No layout of {least.devices} device{'s'[:least.devices != 1]} fits: the smallest, {least.name}, needs "
           f"{size(least.total)} of {size(least.capacity)}.")
    largest = max(least.memory, key=lambda kind: least.memory[kind])
    yield f"Most of it are {largest}: {size(least.memory[largest])}."
    if enough:
        yield f"{enough} such devices would do."
