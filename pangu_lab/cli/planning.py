"""The verb plan: which layout to use for a model on given devices, in training or in serving, and why."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pangu_lab.cli.common import add_settings, add_verb, finish, given_settings, settings
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.terminal import say, table


def register(verbs: Any) -> None:
    plan = add_verb(
        verbs,
        "plan",
        run_plan,
        "choose how to split a model over devices",
        "Counts parameters, operations, memory by kind, communication and idle time for every layout, and "
        "recommends one. Runs nothing on a device. Memory is the peak of the fullest device within a "
        "step; seconds are for comparing layouts.",
    )
    plan.add_argument(
        "--for",
        dest="purpose",
        choices=("training", "serving"),
        default="training",
        metavar="WHAT",
        help="training or serving (default %(default)s)",
    )
    plan.add_argument("--devices", type=int, metavar="N", help="how many there are (default: from the settings)")
    plan.add_argument("--memory", metavar="SIZE", help="per device, such as 32GB (default: the hardware's own)")
    plan.add_argument(
        "--host-memory", metavar="SIZE", help="per server, for what is offloaded to it (default: the hardware's own)"
    )
    plan.add_argument("--batch", type=int, metavar="N", help="records per global step (default: data.batch_size)")
    plan.add_argument(
        "--hardware",
        default="ascend910",
        metavar="NAME",
        help="ascend910, ascend910b, v100, a100, h100 or cpu (default %(default)s)",
    )
    plan.add_argument("--this-layout", action="store_true", help="evaluate only the settings' own layout")
    plan.add_argument("--show", type=int, default=8, metavar="N", help="layouts in the table (default %(default)s)")
    serving = plan.add_argument_group("for serving")
    serving.add_argument("--sequences", type=int, metavar="N", help="there is cache for so many at once (default 16)")
    serving.add_argument(
        "--length", type=int, metavar="N", help="positions of each (default: as many as the network has)"
    )
    serving.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        metavar="TYPE",
        help="of the weights: float32, float16 or bfloat16 (default float32)",
    )
    add_settings(plan)


def run_plan(args: argparse.Namespace) -> int:
    from pangu_lab.planner import estimate, memory_size, plan

    if args.purpose == "serving":
        return _plan_serving(args)
    _refuse(args, "serving", "sequences", "length", "dtype")
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
    _table(found.layouts[: args.show])
    if len(found.layouts) > args.show:
        say(f"and {len(found.layouts) - args.show} more: --show {len(found.layouts)}")
    for sentence in found.why:
        say(f"· {sentence}")
    if found.chosen is not None:
        changes = [
            word
            for key, value in found.chosen.settings().items()
            if value != _value(config, key)
            for word in ("--set", f"{key}={_yaml(value)}")
        ]
        say(
            "use it with: "
            + shlex.join(
                [
                    "pangu-lab",
                    "launch",
                    *given_settings(args),
                    "--set",
                    f"data.batch_size={found.batch}",
                    *changes,
                    "--run",
                    "DIR",
                    "--data",
                    "DIR",
                ]
            )
        )
    return finish(args, found, code=0 if found.chosen is not None else 1)


def _refuse(args: argparse.Namespace, purpose: str, *names: str) -> None:
    """Refuse options that belong to the other purpose."""
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} belongs to `plan --for {purpose}`")


def _plan_serving(args: argparse.Namespace) -> int:
    from pangu_lab.planner.serving import SEQUENCES, plan_serving

    _refuse(args, "training", "batch", "host_memory", "this_layout")
    if args.devices is None:
        raise InputError("give --devices N: how many devices are to share the model")
    found = plan_serving(
        settings(args),
        args.devices,
        _memory(args, args.devices),
        args.hardware,
        args.dtype or "float32",
        SEQUENCES if args.sequences is None else args.sequences,
        args.length,
    )
    _serving_table(found, args.show)
    for sentence in found.why:
        say(f"· {sentence}")
    if found.chosen is not None:
        _stages(found.chosen)
        _serve_commands(found)
    return finish(
        args,
        {**_facts_of(found), "layouts": [_facts_of(item) for item in found.layouts[: args.show]]},
        code=0 if found.chosen is not None else 1,
    )


def _facts_of(item: Any) -> dict[str, Any]:
    """A plan or a layout for --json."""
    if hasattr(item, "layouts"):
        kept = (
            "preset",
            "parameters",
            "devices",
            "memory",
            "hardware",
            "dtype",
            "sequences",
            "length",
            "enough",
            "why",
        )
        return {**{name: getattr(item, name) for name in kept}, "chosen": item.chosen and _facts_of(item.chosen)}
    return {
        "tensor": item.parallel.tensor,
        "pipeline": item.parallel.pipeline,
        "memory": item.fullest.memory,
        "total": item.fullest.total,
        "capacity": item.capacity,
        "fits": item.fits,
        "token_seconds": item.token_seconds,
        "tokens_per_second": item.tokens_per_second,
        "stages": [{"layers": [stage.layers.start, stage.layers.stop], **stage.memory} for stage in item.stages],
    }


def _serving_table(found: Any, most: int) -> None:
    from pangu_lab.planner.serving import KINDS
    from pangu_lab.planner.words import count, size

    say(
        f"{found.preset}: {count(found.parameters)} parameters in {found.dtype}, cache for {found.sequences} sequences of "
        f"{found.length} positions; {found.devices} × {found.hardware} with {size(found.memory)} each"
    )
    rows = [
        (
            item.parallel.tensor,
            item.parallel.pipeline,
            *(_gb(item.fullest.memory[kind]) for kind in KINDS),
            _gb(item.fullest.total),
            "yes" if item.fits else "no",
            f"{1000 * item.token_seconds:.3g}",
            f"{item.tokens_per_second:,.3g}",
        )
        for item in found.layouts[:most]
    ]
    table(
        ("tensor", "pipe", *KINDS, "GB total", "fits", "ms/token", "tokens/s"),
        rows,
        title="GB on the fullest device; ms from one token of a sequence to its next; tokens/s of all sequences",
    )
    if len(found.layouts) > most:
        say(f"and {len(found.layouts) - most} more: --show {len(found.layouts)}")


def _stages(chosen: Any) -> None:
    """What stands on each device."""
    from pangu_lab.planner.words import size

    tensor, last = chosen.parallel.tensor, len(chosen.stages) - 1
    for number, stage in enumerate(chosen.stages):
        first = number * tensor
        ranks = f"rank {first}" if tensor == 1 else f"ranks {first} to {first + tensor - 1}, each 1/{tensor} of"
        more = ["embeddings"] * (number == 0) + ["query layer", "head"] * (number == last)
        layers = (
            f"layers {stage.layers.start} to {stage.layers.stop - 1}"
            if len(stage.layers) > 1
            else f"layer {stage.layers.start}"
        )
        say(
            f"  {ranks} {layers}{''.join(f', {name}' for name in more)}: weights {size(stage.memory['weights'])}, cache "
            f"{size(stage.memory['key-value cache'])}"
        )


def _serve_commands(found: Any) -> None:
    """The command of the chosen layout; on several servers, of each of them."""
    layout = found.chosen.parallel
    several = found.devices > found.per_server
    where = ["--rank-table", "FILE"] if several else ["--nproc", str(found.devices)] if found.devices > 1 else []
    more = [
        *(["--pipeline", str(layout.pipeline)] if layout.pipeline > 1 else []),
        "--cache-slots",
        str(found.slots),
        *(["--dtype", found.dtype] if found.dtype != "float32" else []),
    ]
    say("use it with: " + shlex.join(["pangu-lab", "serve", "--from", "DIR", *where, *more]))
    if several:
        say(
            "and on each further server N: "
            + shlex.join(["pangu-lab", "serve", "--agent", "--from", "DIR", *where, "--node-rank", "N"])
        )


def _memory(args: argparse.Namespace, devices: int) -> int | None:
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

    say(
        f"{found.preset}: {count(found.parameters)} parameters, {count(found.flops_per_token)} FLOPs per token in "
        f"training; {found.devices} × {found.hardware} with {size(found.memory)} each, batch {found.batch}"
    )


def _table(layouts: Any) -> None:
    from pangu_lab.planner import KINDS

    short = {"gradients": "grads", "optimizer": "moments", "activations": "activ.", "workspace": "work"}
    rows = [
        (
            item.parallel.pipeline,
            item.parallel.data,
            item.parallel.tensor,
            f"{item.accumulation * item.parallel.micro_batches} × {item.records}",
            ", ".join(["recompute"] * item.parallel.recompute + ["sliced opt."] * item.parallel.optimizer),
            *(_gb(item.memory[kind]) for kind in KINDS),
            _gb(item.total),
            item.moment,
            "yes" if item.fits else "no",
            _gb(sum(item.communication.values())),
            f"{item.bubble:.0%}",
            f"{item.step_seconds:.3g}",
            f"{item.tokens_per_second:,.0f}",
        )
        for item in layouts
    ]
    table(
        (
            "pipe",
            "data",
            "tensor",
            "micro-batches",
            "with",
            *(short.get(kind, kind) for kind in KINDS),
            "GB total",
            "in",
            "fits",
            "sent",
            "idle",
            "s/step",
            "tokens/s",
        ),
        rows,
        title="GB on the fullest device at the peak of a step; GB sent per device and step",
    )


def _gb(amount: float) -> str:
    from pangu_lab.planner.hardware import GIB

    return f"{amount / GIB:.1f}" if amount >= GIB / 20 or not amount else f"{amount / GIB:.3f}"


def _explain(found: Any, hardware: str) -> None:
    """One layout: what it needs at each phase of a step, and what recomputation would change."""
    from pangu_lab.planner.words import size

    moments = ", ".join(f"{name} {size(sum(kinds.values()))}" for name, kinds in found.moments.items())
    say(
        f"· {found.name}: {'fits' if found.fits else 'does not fit'}, {size(found.total)} of {size(found.capacity)} on a "
        f"device of stage {found.stage}; by phase of a step: {moments}"
    )
    if hardware == "cpu":
        from pangu_lab.train.fitting import shown_in_top

        say(f"· {shown_in_top(found.total)}")
    say(f"· activations: {size(found.activations['plain'])}, with recomputation {size(found.activations['recompute'])}")
    if found.host:
        say(f"· offloaded to the memory of each server: {size(found.host)}")
    sent = ", ".join(f"{kind} {size(amount)}" for kind, amount in found.communication.items() if amount)
    say(f"· sent per device and step: {sent or 'nothing'}")
