"""A plan's choice in words, English or Chinese: a handful of sentences, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from pangu_lab.config import RunConfig
from pangu_lab.planner.hardware import GIB, Hardware
from pangu_lab.texts import catalogue, text


def size(amount: float) -> str:
    """``12.3 GB`` (of 2³⁰ bytes, as devices are sold), ``45 MB`` below one of them, ``1.2 TB`` above a thousand."""
    for unit, bytes_ in (("TB", 2**40), ("GB", GIB)):
        if amount >= bytes_:
            return f"{amount / bytes_:.1f} {unit}"
    return f"{amount / 2**20:.0f} MB"


def count(number: float, language: str = "en") -> str:
    """``2.6 billion``, ``71 thousand``; ``26 亿``, ``7.1 万``."""
    units = {
        "en": ((" trillion", 1e12), (" billion", 1e9), (" million", 1e6), (" thousand", 1e3)),
        "zh": ((" 亿", 1e8), (" 万", 1e4)),
    }
    for word, unit in units[language]:
        if number >= unit:
            return f"{number / unit:.3g}{word}" if number < 1000 * unit else f"{number / unit:,.0f}{word}"
    return f"{number:g}"


def name(item, language: str) -> str:
    """The layout in a few words."""
    if language == "en":
        return item.name
    parallel = item.parallel
    return text(language, "plan", "layout", pipeline=parallel.pipeline, data=parallel.data, tensor=parallel.tensor)


def why_chosen(config: RunConfig, found, device: Hardware, language: str = "en") -> Iterator[str]:
    """The choice: what forced a split, what each dimension is for, and what the runner-up lacks."""
    say, best = catalogue(language)["plan"], found[0]
    parallel = best.parallel
    yield say["whole"].format(
        count=count(config.model.num_parameters, language),
        whole=size(16 * config.model.num_parameters),
        room=size(best.capacity),
    )
    if parallel.tensor > 1:
        yield say["tensor"].format(
            ranks=parallel.tensor,
            where=say["within" if parallel.tensor <= device.per_server else "across"],
            sent=size(best.communication["tensor"]),
            share=f"{best.seconds['tensor'] / best.step_seconds:.0%}",
        )
    if parallel.pipeline > 1:
        yield say["pipeline"].format(
            ranks=parallel.pipeline,
            sent=size(best.communication["pipeline"]),
            share=f"{best.bubble:.0%}",
            parts=parallel.micro_batches,
        )
    if parallel.data > 1:
        yield say["sliced" if parallel.optimizer else "data"].format(
            ranks=parallel.data, sent=size(best.communication["gradients"])
        )
    if parallel.recompute:
        yield say["recompute"].format(plain=size(best.activations["plain"]), again=size(best.activations["recompute"]))
    if best.host:
        yield say["host"].format(size=size(best.host))
    yield _against(found, say, language)


def _against(found, say: dict[str, str], language: str) -> str:
    """How many others fit, and the best of them; or the one that misses by least."""
    others = [item for item in found[1:] if item.fits]
    if others:
        slower = others[0].step_seconds / found[0].step_seconds - 1
        return say["next" if slower >= 0.03 else "as quick"].format(
            count=len(others) + 1, name=name(others[0], language), slower=f"{slower:.0%}"
        )
    if len(found) > 1:
        return say["no other fits"].format(
            name=name(found[1], language), need=size(found[1].total), more=size(found[1].total - found[1].capacity)
        )
    return say["no other"]


def nothing_fits(found, device: Hardware, enough: int | None, language: str = "en") -> Iterator[str]:
    """What the smallest layout lacks, and on how many devices one would fit."""
    say, least = catalogue(language)["plan"], found[0]
    yield say["nothing"].format(
        devices=least.devices, name=name(least, language), need=size(least.total), room=size(least.capacity)
    )
    largest = max(least.memory, key=lambda kind: least.memory[kind])
    yield say["most"].format(kind=say[f"kind_{largest}"], size=size(least.memory[largest]))
    if enough:
        yield say["enough"].format(count=enough)
