"""Writing a bundle: everything that serving needs, in one folder, without model code.

    prefill.mindir     any number of tokens of any number of sequences over a key-value cache; decodes too
    decode.mindir      the same compiled for one token, 10 % faster on small models; left out above 1 GiB of
                       weights, where it gains nothing and loading it would briefly hold the weights twice
    decode_4.mindir    for one token each of four sequences: a batch-invariant server decodes a single text with it
                       (``generate/batch_invariant.py``), 20 % faster than with the general graph
    prefill_64.mindir  for one prompt of up to 64 tokens, on request: devices that recompile for every shape
                       (Ascend) need a few fixed ones
    eval_loss.mindir   negative log-likelihoods of whole sequences
    weights/           the parameters of all of them, once
    tokenizer/         as ``load_tokenizer`` reads it
    bundle.json        sizes, inputs and outputs, special ids, sampling defaults, versions, sha256 of every file and itself
    bundle.hmac        its signature, on request

All paths inside are relative: a bundle may be moved and copied. For several processes the folder holds a whole bundle for
each rank, ``rank_0``, ``rank_1`` …, stage by stage: a host needs only those of its own ranks. A rank's graphs have its
tensor-parallel part of the layers of its pipeline stage; in several stages there is no ``eval_loss.mindir``.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab import __version__
from pangu_lab.checkpoint.source import StoredWeights
from pangu_lab.config import ModelConfig, ParallelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export.description import DESCRIPTION, FORMAT, VERSION, graph_of, read_key, sign, with_checksum
from pangu_lab.export.mindir import SharedWeights, export_graph
from pangu_lab.files import check_destination, sha256_file, whole_folder, write_json_atomic
from pangu_lab.generate.runner import default_slots
from pangu_lab.loading import Model
from pangu_lab.memory import check, generation_need
from pangu_lab.model.inference import GRAPH_DTYPES, check_dtype, check_split
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.progress import Progress, silent

ONE_TOKEN_LIMIT = 1 << 30  # bytes of weights
DECODED = (1, 4)
MOST_DECODED = 16  # sequences in a step, as everywhere


@dataclass(frozen=True)
class Variants:
    """Which graphs a bundle holds besides the general one.

    Attributes:
        prefill_lengths: fixed lengths for prompts, one graph each; a prompt takes the next longer one.
        decode_batches: numbers of sequences that get their own compiled decode step; None for 1 and 4 where that
            pays.
        eval_loss: whether to write the graph that scores whole sequences.
    """

    prefill_lengths: Sequence[int] = ()
    decode_batches: Sequence[int] | None = None
    eval_loss: bool = True

    def fixed(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """The graphs of fixed shapes by name, each as (sequences, tokens of each).

        Raises:
            InputError: a number that the model cannot use.
        """
        batches = self.decode_batches
        if batches is None:
            batches = DECODED if 4 * config.num_parameters < ONE_TOKEN_LIMIT else ()
        for what, values, least, most in (
            ("prefill length", self.prefill_lengths, 2, config.num_positions),
            ("decode batch", batches, 1, MOST_DECODED),
        ):
            for value in values:
                if not least <= value <= most:
                    raise InputError(f"a {what} of {value} must be from {least} to {most}")
        return {
            **{f"prefill_{n}": (1, n) for n in sorted(set(self.prefill_lengths))},
            **{"decode" if batch == 1 else f"decode_{batch}": (batch, 1) for batch in sorted(set(batches))},
        }


def export_run(
    run: Path | str,
    out: Path | str,
    slots: int | None = None,
    tensor_parallel: int = 1,
    progress: Progress = silent,
    sign_with: Path | str | None = None,
    ranks: range | None = None,
    pipeline: int = 1,
    dtype: str | None = None,
    **variants: Any,
) -> Path:
    """Export the newest checkpoint of a run, or one checkpoint.

    Args:
        run: a run, a checkpoint or a converted release.
        out: the bundle to write; must not exist.
        dtype: as of ``export_bundle``; by default float16 where the weights are stored so and the device has products in it
            (a CPU has not), else float32.
        slots, tensor_parallel, sign_with, ranks, pipeline, variants: as ``export_bundle``.

    Returns:
        ``out``.

    Raises:
        InputError: no checkpoint or tokenizer there, or ``out`` exists.
    """
    check_destination(out)
    model = Model.load(run)
    weights = model.require_weights("exported again")
    if dtype is None:
        dtype = weights.dtype if weights.dtype in GRAPH_DTYPES and _device() != "CPU" else "float32"
    check(f"{run}: exporting", generation_need(model.config, slots, dtype), generation_need)
    return export_bundle(
        weights,
        model.config,
        model.require_tokenizer(),
        out,
        model.sampling,
        slots,
        tensor_parallel,
        progress,
        sign_with,
        ranks,
        pipeline,
        dtype,
        **variants,
    )


def _device() -> str:
    import mindspore as ms

    return ms.get_context("device_target")


def export_bundle(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    tokenizer: Any,
    out: Path | str,
    sampling: SamplingConfig = SamplingConfig(),
    slots: int | None = None,
    tensor_parallel: int = 1,
    progress: Progress = silent,
    sign_with: Path | str | None = None,
    ranks: range | None = None,
    pipeline: int = 1,
    dtype: str = "float32",
    **variants: Any,
) -> Path:
    """Write a bundle; it appears complete or not at all.

    Args:
        weights: every parameter under its released name; read one by one.
        tokenizer: a ``pangu_lab.tokenizer.Tokenizer``; its eod and pad go with it.
        out: the folder to write; must not exist.
        sampling: the generation defaults of a request.
        slots: positions of key-value cache over all sequences; by default one whole sequence, at least 1024.
        tensor_parallel, pipeline: ranks of a stage and stages of the processes that will share the model; of several
            processes, a bundle for each in ``out/rank_0`` and so on.
        sign_with: a file with a secret key, to sign the bundle with (see ``description.py``).
        ranks: those to write, where each host exports its own; all by default. Of a checkpoint's weights only: what
            several hosts export of the same one belongs together.
        dtype: of the weights of products: "float32", or "float16", with the products of the graphs in it; the C kernels sum
            in fp32 all the same.
        variants: the fields of ``Variants``.

    Returns:
        ``out``.

    Raises:
        InputError: ``out`` exists, or weights, configuration and tokenizer do not belong together.
    """
    out = Path(out)
    check_destination(out)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} pieces and the model {config.vocab_size}: "
            "give the tokenizer that the model was trained with"
        )
    check_dtype(config, dtype)
    for option, number in (("tensor_parallel", tensor_parallel), ("pipeline", pipeline)):
        if number < 1:
            raise InputError(f"{option}={number} must be at least 1")
    layout = ParallelConfig(tensor=tensor_parallel, pipeline=pipeline)
    world = layout.world_size
    ranks = range(world) if ranks is None else ranks
    if not ranks or ranks[0] < 0 or ranks[-1] >= world:
        raise InputError(f"ranks {ranks.start} to {ranks.stop - 1} are not among the {world} of this export")
    check_split(config, tensor_parallel, pipeline)
    chosen = Variants(**variants)
    chosen.fixed(config)
    key = None if sign_with is None else read_key(sign_with)
    slots = default_slots(config, slots)
    name = _export_id(weights, config, slots, layout, {**variants, "dtype": dtype}, whole=len(ranks) == world)
    writing = _Writing(weights, config, tokenizer, sampling, slots, out.name, chosen, name, ranks, key, progress, dtype)
    with whole_folder(out) as folder:
        for rank in ranks:
            target = folder
            if world > 1:
                target = folder / f"rank_{rank}"
                target.mkdir()
            writing.write(target, Mesh(layout, rank))
    progress(1, 1, str(out))
    return out


def _export_id(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    slots: int,
    layout: ParallelConfig,
    variants: dict[str, Any],
    whole: bool,
) -> str:
    """What all ranks of an export have in common, wherever they are written.

    Raises:
        InputError: a part is to be written of weights that no checkpoint names.
    """
    import mindspore as ms

    if not isinstance(weights, StoredWeights):
        if not whole:
            raise InputError("only a checkpoint can be exported in parts: its ranks would not know each other")
        return secrets.token_hex(8)
    manifest = sha256_file(weights.checkpoint.folder / "manifest.json")
    facts = (
        manifest,
        config,
        slots,
        layout.tensor,
        layout.pipeline,
        sorted(variants.items()),
        __version__,
        ms.__version__,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Writing:
    """The parts of an export that all ranks share."""

    weights: Mapping[str, np.ndarray]
    config: ModelConfig
    tokenizer: Any
    sampling: SamplingConfig
    slots: int
    name: str
    variants: Variants
    export_id: str
    ranks: range
    key: bytes | None
    progress: Progress
    dtype: str

    def write(self, folder: Path, mesh: Mesh) -> None:
        """Write one rank's bundle, or the only one."""
        graphs = {
            name: graph_of(name, mesh)
            for name in ("prefill", *self.variants.fixed(self.config), *["eval_loss"] * self._scores(mesh))
        }
        steps = (len(graphs) + 2) * len(self.ranks)
        done = self.ranks.index(mesh.rank) * (len(graphs) + 2)
        self._write_graphs(folder, mesh, lambda number, text: self.progress(done + number, steps, text))
        self.tokenizer.save(folder / "tokenizer")
        self.progress(done + len(graphs) + 1, steps, "checksums")
        files = {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        description = self._description(graphs, files)
        if mesh.parallel.world_size > 1:
            from pangu_lab.parallel.collectives import inference_group

            description["parallel"] = {
                "tensor": mesh.size("tensor"),
                "pipeline": mesh.size("pipeline"),
                "rank": mesh.rank,
                "group": inference_group(mesh).name,
                "export_id": self.export_id,
            }
        write_json_atomic(folder / DESCRIPTION, with_checksum(description))
        if self.key is not None:
            sign(folder, self.key)

    def _scores(self, mesh: Mesh) -> bool:
        """Whether there is a graph that scores whole sequences: that needs the whole network."""
        return self.variants.eval_loss and mesh.size("pipeline") == 1

    def _write_graphs(self, folder: Path, mesh: Mesh, tell: Any) -> None:
        import mindspore as ms

        from pangu_lab.export.eval_loss import EvalLossNetwork, eval_loss_inputs
        from pangu_lab.generate.network import CachedNetwork, cached_parts
        from pangu_lab.parallel.collectives import inference_group

        tell(0, "building the network")
        ms.set_context(mode=ms.GRAPH_MODE)
        parts = cached_parts(
            self.weights,
            self.config,
            self.slots,
            inference_group(mesh),
            mesh.layers(self.config.num_layers),
            self.dtype,
        )
        general = CachedNetwork(parts)
        made: dict[str, Any] = {"prefill": (general, general.dynamic_inputs())}
        for name, shape in self.variants.fixed(self.config).items():
            made[name] = CachedNetwork(dataclasses.replace(parts, one=shape == (1, 1))), general.fixed_inputs(*shape)
        if self._scores(mesh):
            made["eval_loss"] = EvalLossNetwork(parts), eval_loss_inputs()
        shared = SharedWeights(folder)
        try:
            for number, (name, (graph, inputs)) in enumerate(made.items()):
                tell(number, f"compiling {name}")
                export_graph(graph, inputs, folder, name, shared)
        finally:
            shared.close()

    def _description(self, graphs: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
        import mindspore as ms

        config, tokenizer = self.config, self.tokenizer
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "dtype": self.dtype,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": {**dataclasses.asdict(config), "num_parameters": config.num_parameters, "places": self.slots},
            "graphs": {name: {"file": f"{name}.mindir", **graph} for name, graph in graphs.items()},
            "tokenizer": {
                "folder": "tokenizer",
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
            },
            "special_ids": {"eod": tokenizer.eod_id, "pad": tokenizer.pad_id},
            "sampling": dataclasses.asdict(self.sampling),
            "versions": {
                "pangu_lab": __version__,
                "mindspore": ms.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "files": files,
        }
