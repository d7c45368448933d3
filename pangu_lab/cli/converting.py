"""The verb that converts weights from and to other formats: convert."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pangu_lab.cli.common import add_verb, finish
from pangu_lab.config import parse_overrides
from pangu_lab.presets import PRESETS
from pangu_lab.terminal import progress_bar, say

TARGETS = ("lab", "gpt_pangu", "mindspore-ckpt")


def register(verbs: Any) -> None:
    convert = add_verb(
        verbs,
        "convert",
        run_convert,
        "read released weights, or write them in another layout",
        "Recognises the sharded release (filerted_*.ckpt, or the tar parts that hold them, with the "
        "strategy file and embedding tables, in one folder or in the tree checkpoint_file, "
        "strategy_load_ckpt, tokenizer), single .ckpt files, gpt_pangu as safetensors or .bin, and this "
        "project's checkpoints. Every "
        "parameter is accounted for, and memory use does not grow with the model.",
    )
    convert.add_argument("--from", dest="source", required=True, metavar="PATH", help="a folder or a file")
    convert.add_argument("--out", required=True, metavar="DIR", help="must not exist yet")
    convert.add_argument(
        "--to",
        choices=TARGETS,
        default="lab",
        metavar="LAYOUT",
        help="lab, gpt_pangu or mindspore-ckpt (default %(default)s)",
    )
    convert.add_argument("--strategy", metavar="FILE", help="of a sharded release, if not beside the shards")
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        metavar="TYPE",
        help="float32 or float16 (default: float32 for lab, otherwise as in the source)",
    )
    convert.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="stored with the result of --to lab, so that it can generate: a folder, or 'pangu' (the "
        "default for published sizes)",
    )
    convert.add_argument("--preset", metavar="NAME", help=f"for a size that is not published: {', '.join(PRESETS)}")
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="what the files do not hold, such as model.num_heads=6 and model.hidden_act=gelu",
    )


def run_convert(args: argparse.Namespace) -> int:
    from pangu_lab.checkpoint.convert import convert_checkpoint

    overrides = parse_overrides(args.set)
    if args.preset:
        overrides["preset"] = args.preset
    with progress_bar("convert") as progress:
        done = convert_checkpoint(
            args.source, args.out, args.to, overrides, progress, args.strategy, args.dtype, args.tokenizer
        )
    model = done.config.model
    say(
        f"{args.source}: {done.source}, {done.parameters:,} parameters, {model.num_layers} layers × "
        f"{model.hidden_size}, {model.num_heads} heads, {model.hidden_act}"
    )
    size = sum(path.stat().st_size for path in done.out.iterdir())
    say(f"{done.out}: {done.to}, {done.dtype}, {size / 2**20:.1f} MiB")
    if (done.out / "tokenizer").is_dir():
        say(f"next: pangu-lab generate --from {shlex.quote(str(done.out))} --prompt …")
    elif done.to == "lab":
        say("no tokenizer is stored with it: give --tokenizer (pangu for the published releases) to generate from it")
    return finish(
        args,
        {
            "out": done.out,
            "from": done.source,
            "to": done.to,
            "parameters": done.parameters,
            "dtype": done.dtype,
            "bytes": size,
            "model": done.config.to_dict()["model"],
        },
    )
