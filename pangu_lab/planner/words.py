"""A plan's choice in words, English or Chinese: a handful of sentences, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from pangu_lab.config import RunConfig
from pangu_lab.planner.hardware import GIB, Hardware


SENTENCES = {
    "en": {
        "whole": "{count} parameters are {whole} of weights, gradients and two moments in fp32; a device has {room} for them and for "
                 "activations.",
        "tensor": "tensor {ranks} stays {where}: it sends {sent} a device and step, {share} of the step.",
        "within": "within a server", "across": "across servers",
        "pipeline": "pipeline {ranks} sends only {sent}, and idles {share} of the time with {parts} micro-batches.",
        "data": "data {ranks} sums {sent} of gradients a step.",
        "sliced": "data {ranks} sums {sent} of gradients a step, and every rank keeps the moments of its own rows alone.",
        "recompute": "Recomputation brings activations from {plain} down to {again}, for one more forward pass.",
        "host": "Offloading keeps moments and fp32 weights in {size} of each server's own memory.",
        "next": "Of {count} layouts that fit it is the quickest; next is {name}, {slower} slower.",
        "as quick": "Of {count} layouts that fit it is the quickest; next is {name}, as quick, but with the longer pipeline.",
        "no other fits": "No other layout fits: {name} would need {need}, {more} too many.",
        "no other": "There is no other layout.",
        "nothing": "No layout of {devices} device{s} fits: the smallest, {name}, needs {need} of {room}.",
        "most": "Most of it are {kind}: {size}.", "enough": "{count} such devices would do."},
    "zh": {
        "whole": "{count}参数以 fp32 保存，权重、梯度和两个动量共 {whole}；每个设备有 {room}，还要放激活值。",
        "tensor": "张量并行 {ranks} {where}：每个设备每步发送 {sent}，占一步的 {share}。",
        "within": "在一台服务器之内", "across": "跨服务器",
        "pipeline": "流水线 {ranks} 级只发送 {sent}；用 {parts} 个微批时，{share} 的时间空闲。",
        "data": "数据并行 {ranks} 每步求和 {sent} 的梯度。",
        "sliced": "数据并行 {ranks} 每步求和 {sent} 的梯度，每个进程只保存自己那些行的动量。",
        "recompute": "重计算把激活值从 {plain} 降到 {again}，代价是多一次前向计算。",
        "host": "动量和 fp32 权重放在每台服务器自己的 {size} 内存里。",
        "next": "放得下的 {count} 种布局中它最快；其次是 {name}，慢 {slower}。",
        "as quick": "放得下的 {count} 种布局中它最快；其次是 {name}，同样快，但流水线更长。",
        "no other fits": "其他布局都放不下：{name} 需要 {need}，多出 {more}。",
        "no other": "没有别的布局。",
        "nothing": "{devices} 个设备上没有放得下的布局：最小的 {name} 需要 {need}，而只有 {room}。",
        "most": "其中最多的是{kind}：{size}。", "enough": "{count} 个这样的设备就够了。"},
}
KINDS_ZH = {"weights": "权重", "gradients": "梯度", "optimizer": "优化器", "activations": "激活值", "logits": "逻辑值", "workspace": "工作区"}


def size(amount: float) -> str:
    """``12.3 GB`` (of 2³⁰ bytes, as devices are sold), ``45 MB`` below one of them, ``1.2 TB`` above a thousand."""
    for unit, bytes_ in (("TB", 2**40), ("GB", GIB)):
        if amount >= bytes_:
            return f"{amount / bytes_:.1f} {unit}"
    return f"{amount / 2**20:.0f} MB"


def count(number: float, language: str = "en") -> str:
    """``2.6 billion``, ``71 thousand``; ``26 亿``, ``7.1 万``."""
    units = {"en": ((" trillion", 1e12), (" billion", 1e9), (" million", 1e6), (" thousand", 1e3)), "zh": ((" 亿", 1e8), (" 万", 1e4))}
    for word, unit in units[language]:
        if number >= unit:
            return f"{number / unit:.3g}{word}" if number < 1000 * unit else f"{number / unit:,.0f}{word}"
    return f"{number:g}"


def name(item, language: str) -> str:
    """The layout in a few words."""
    if language == "en":
        return item.name
    parallel = item.parallel
    return f"流水线 {parallel.pipeline} × 数据 {parallel.data} × 张量 {parallel.tensor}"


def why_chosen(config: RunConfig, found, device: Hardware, language: str = "en") -> Iterator[str]:
    """The choice: what forced a split, what each dimension is for, and what the runner-up lacks."""
    say, best = SENTENCES[language], found[0]
    parallel = best.parallel
    yield say["whole"].format(count=count(config.model.num_parameters, language), whole=size(16 * config.model.num_parameters),
                              room=size(best.capacity))
    if parallel.tensor > 1:
        yield say["tensor"].format(ranks=parallel.tensor, where=say["within" if parallel.tensor <= device.per_server else "across"],
                                   sent=size(best.communication["tensor"]),
                                   share=f"{best.seconds['tensor'] / best.step_seconds:.0%}")
    if parallel.pipeline > 1:
        yield say["pipeline"].format(ranks=parallel.pipeline, sent=size(best.communication["pipeline"]),
                                     share=f"{best.bubble:.0%}", parts=parallel.micro_batches)
    if parallel.data > 1:
        yield say["sliced" if parallel.optimizer else "data"].format(ranks=parallel.data,
                                                                     sent=size(best.communication["gradients"]))
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
        return say["next" if slower >= 0.03 else "as quick"].format(count=len(others) + 1, name=name(others[0], language),
                                                                    slower=f"{slower:.0%}")
    if len(found) > 1:
        return say["no other fits"].format(name=name(found[1], language), need=size(found[1].total),
                                           more=size(found[1].total - found[1].capacity))
    return say["no other"]


def nothing_fits(found, device: Hardware, enough: Optional[int], language: str = "en") -> Iterator[str]:
    """What the smallest layout lacks, and on how many devices one would fit."""
    say, least = SENTENCES[language], found[0]
    yield say["nothing"].format(devices=least.devices, s="s"[:least.devices != 1], name=name(least, language),
                                need=size(least.total), room=size(least.capacity))
    largest = max(least.memory, key=lambda kind: least.memory[kind])
    yield say["most"].format(kind=largest if language == "en" else KINDS_ZH[largest], size=size(least.memory[largest]))
    if enough:
        yield say["enough"].format(count=enough)
