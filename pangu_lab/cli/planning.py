"""The verb plan: which layout to use for a model on given devices, and why."""

from __future__ import annotations

import argparse
import shlex
from typing import Any, Optional

from pangu_lab.cli.common import add_settings, add_verb, finish, given_settings, settings
from pangu_lab.config import RunConfig
from pangu_lab.terminal import say, table


def register(verbs: Any) -> None:
    plan = add_verb(verbs, "plan", run_plan, "choose how to split a model over devices",
                    "Counts parameters, operations, memory by kind, communication and idle time for every layout, and "
                    "recommends one. Runs nothing on a device. Memory is the peak of the fullest device within a "
                    "step; seconds are for comparing layouts.")
    plan.add_argument("--devices", type=int, metavar="N", help="how many there are (default: from the settings)")
    plan.add_argument("--memory", metavar="SIZE", help="per device, such as 32GB (default: the hardware's own)")
    plan.add_argument("--host-memory", metavar="SIZE",
                      help="per server, for what is offloaded to it (default: the hardware's own)")
    plan.add_argument("--batch", type=int, metavar="N", help="records per global step (default: data.batch_size)")
    plan.add_argument("--hardware", default="ascend910", metavar="NAME",
                      help="ascend910, ascend910b, v100, a100, h100 or cpu (default %(default)s)")
    plan.add_argument("--this-layout", action="store_true", help="evaluate only the settings' own layout")
    plan.add_argument("--show", type=int, default=8, metavar="N", help="layouts in the table (default %(default)s)")
    add_settings(plan)


def run_plan(args: argparse.Namespace) -> int:
    from pangu_lab.planner import estimate, memory_size, plan

    config = settings(args, data__batch_size=args.batch)
    devices = config.parallel.world_size if args.devices is None or args.this_layout else args.devices
    memory, host = _memory(args, devices), memory_size(args.host_memory) if args.host_memory else None
    if args.this_layout:
        found = estimate(config, memory, args.hardware, host)
        _table([found])
        _explain(found, args.hardware)
        return finish(args, found)
    found = plan(config, devices, memory, args.batch, args.hardware, host)
    _facts(found)
    _table(found.layouts[:args.show])
    if len(found.layouts) > args.show:
        say(f"and {len(found.layouts) - args.show} more: --show {len(found.layouts)}")
    for sentence in found.why:
        say(f"· {sentence}")
    if found.chosen is not None:
        changes = [word for key, value in found.chosen.settings().items() if value != _value(config, key)
                   for word in ("--set", f"{key}={_yaml(value)}")]
        say("use it with: " + shlex.join(["pangu-lab", "launch", *given_settings(args), "--set",
                                           f"data.batch_size={found.batch}", *changes, "--run", "DIR", "--data", "DIR"]))
    return finish(args, found, code=0 if found.chosen is not None else 1)


def _memory(args: argparse.Namespace, devices: int) -> Optional[int]:
    from pangu_lab.planner import memory_size

    if args.memory is not None:
        return memory_size(args.memory)
    if args.hardware != "cpu":
        return None
    from pangu_lab import memory

    return memory.total() // max(devices, 1)  # processes of one machine share it


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facts(found: Any) -> None:
    from pangu_lab.planner.words import count, size

    say(f"{found.preset}: {count(found.parameters)} parameters, {count(found.flops_per_token)} FLOPs per token in "
        f"training; {found.devices} × {found.hardware} with {size(found.memory)} each, batch {found.batch}")


def _table(layouts: Any) -> None:
    from pangu_lab.planner import KINDS
    from pangu_lab.planner.hardware import GIB

    def gb(amount: float) -> str:
        return f"{amount / GIB:.1f}" if amount >= GIB / 20 or not amount else f"{amount / GIB:.3f}"

    short = {"gradients": "grads", "optimizer": "moments", "activations": "activ.", "workspace": "work"}
    rows = [(item.parallel.pipeline, item.parallel.data, item.parallel.tensor,
             f"{item.accumulation * item.parallel.micro_batches} × {item.records}",
             ", ".join(["recompute"] * item.parallel.recompute + ["sliced opt."] * item.parallel.optimizer),
             *(gb(item.memory[kind]) for kind in KINDS), gb(item.total), item.moment, "yes" if item.fits else "no",
             gb(sum(item.communication.values())), f"{item.bubble:.0%}", f"{item.step_seconds:.3g}",
             f"{item.tokens_per_second:,.0f}") for item in layouts]
    table(("pipe", "data", "tensor", "micro-batches", "with", *(short.get(kind, kind) for kind in KINDS), "GB total",
           "in", "fits", "sent", "idle", "s/step", "tokens/s"), rows,
          title="GB on the fullest device at the peak of a step; GB sent per device and step")


def _explain(found: Any, hardware: str) -> None:
    """One layout: what it needs at each phase of a step, and what recomputation would change."""
    from pangu_lab.planner.words import size

    moments = ", ".join(f"{name} {size(sum(kinds.values()))}" for name, kinds in found.moments.items())
    say(f"· {found.name}: {'fits' if found.fits else 'does not fit'}, {size(found.total)} of {size(found.capacity)} on a "
        f"device of stage {found.stage}; by phase of a step: {moments}")
    if hardware == "cpu":
        from pangu_lab.train.fitting import shown_in_top

        say(f"· {shown_in_top(found.total)}")
    say(f"· activations: {size(found.activations['plain'])}, with recomputation {size(found.activations['recompute'])}")
    if found.host:
        say(f"· offloaded to the memory of each server: {size(found.host)}")
    sent = ", ".join(f"{kind} {size(amount)}" for kind, amount in found.communication.items() if amount)
    say(f"· sent per device and step: {sent or 'nothing'}")
