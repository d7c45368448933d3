"""Weights from any known layout into any other, one parameter at a time.

Read whatever ``open_source`` recognises, check that it holds every parameter of the model and nothing else, and
write this project's checkpoint, the community's ``gpt_pangu`` safetensors, or a single MindSpore ``.ckpt``. Files
are written in groups of at most 256 MiB (or one larger parameter), so memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.checkpoint.folder import write_manifest, write_shard
from pangu_lab.checkpoint.layouts import LM_HEAD, check_names, gpt_name
from pangu_lab.checkpoint.mindspore_ckpt import write_ckpt
from pangu_lab.checkpoint.releases import OWN_ACTIVATION, LabSource, Source, open_source
from pangu_lab.checkpoint.source import tokenizer_folder
from pangu_lab.config import ModelConfig, ParallelConfig, RunConfig, apply_overrides
from pangu_lab.errors import InputError, nearest
from pangu_lab.files import check_destination, whole_folder
from pangu_lab.memory import check, conversion_need
from pangu_lab.model.parameters import POSITION, WORD, ParameterSpec, parameter_specs
from pangu_lab.presets import PRESETS, preset
from pangu_lab.progress import Progress, silent
from pangu_lab.tokenizer import load_tokenizer

TARGETS = ("lab", "gpt_pangu", "mindspore-ckpt")
CKPT_FILE = "pangu_alpha.ckpt"
_GROUP = 256 << 20
_PUBLISHED = ("350M", "0.26B", "1.3B", "2.6B", "13B", "200B")
_GPT_ACTIVATIONS = {"gelu": "gelu_new", "gelu_erf": "gelu", "fast_gelu": "quick_gelu"}


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: ``source`` describes what was read, ``config`` are its settings."""

    out: Path
    source: str
    to: str
    config: RunConfig
    parameters: int
    dtype: str


def convert_checkpoint(
    source: Path | str,
    out: Path | str,
    to: str = "lab",
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    strategy: Path | str | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
) -> Converted:
    """Read weights of any known layout and write them to the folder ``out``, which must not exist.

    Args:
        source: a file, or a folder with the release's files, a run or a checkpoint.
        to: "lab" (this project's checkpoint), "gpt_pangu" or "mindspore-ckpt".
        overrides: dotted settings and ``preset``; a file of an unknown size needs ``preset``, or ``model.num_heads``
            and ``model.hidden_act``.
        strategy: the strategy file of a sharded release, when it is not beside the shards.
        dtype: "float32" or "float16"; by default float32 for "lab" (in which training and inference keep parameters)
            and otherwise the source's own.
        tokenizer: kept with a "lab" result, as `load_tokenizer` takes it; by default the source's own, or PanGu's for a
            published size.

    Raises:
        InputError: not a known layout, damaged or incomplete files, settings that are missing or do not fit.
    """
    if to not in TARGETS:
        raise InputError(f"--to {to}: must be one of {', '.join(TARGETS)}{nearest(to, TARGETS)}")
    if dtype not in (None, "float32", "float16"):
        raise InputError(f"--dtype {dtype}: must be float32 or float16")
    check_destination(out)
    opened = open_source(source, strategy, progress)
    config = _settings(opened, dict(overrides or {}))
    specs = parameter_specs(config.model)
    _check(opened, config, specs)
    target = np.dtype(dtype) if dtype else np.dtype("float32") if to == "lab" else None
    chosen = _tokenizer(opened, tokenizer, config)
    check(f"{source}: converting", conversion_need((spec.size for spec in specs.values()), _GROUP))
    reader = _Reader(opened, specs, target, progress)
    with whole_folder(out) as folder:
        {"lab": _write_lab, "gpt_pangu": _write_gpt, "mindspore-ckpt": _write_mindspore}[to](
            folder, reader, config, opened
        )
        if to == "lab" and chosen is not None:
            chosen.save(folder / "tokenizer")
    return Converted(Path(out), opened.kind, to, config, sum(spec.size for spec in specs.values()), reader.dtype.name)


# ------------------------------------------------------------------------------------------------------ settings


def _settings(source: Source, overrides: dict[str, Any]) -> RunConfig:
    """The configuration: the source's own, or the preset of its sizes, or one made from overrides and files."""
    chosen = overrides.pop("preset", None)
    if source.config is not None:
        base = source.config if chosen is None else preset(str(chosen))
        return replace(apply_overrides(base, overrides), parallel=ParallelConfig())
    sizes = _sizes(source)
    base = preset(str(chosen)) if chosen is not None else _known_size(sizes)
    if base is None:
        given = {**source.settings, **overrides}
        needed = [key for key in ("model.num_heads", "model.hidden_act") if key not in given]
        if needed:
            raise InputError(
                f"{source.where}: {_in_words(sizes)} is not a published size, and the files do not tell "
                + " and ".join(needed)
                + ": give "
                + " ".join(f"--set {_example(key, sizes)}" for key in needed)
                + " or --preset NAME"
            )
        base = RunConfig(
            data=replace(RunConfig().data, seq_length=sizes["model.num_positions"]),
            model=ModelConfig(**{key[6:]: value for key, value in sizes.items()}, num_heads=1),
        )
        overrides = given
    else:
        _check_sizes(source, base, sizes)
        certain = {key: value for key, value in source.settings.items() if key not in source.guesses}
        overrides = {**(certain if chosen is None else {}), **overrides}
    return replace(apply_overrides(base, overrides), parallel=ParallelConfig())


def _sizes(source: Source) -> dict[str, int]:
    """The sizes that the parameters' shapes and names imply."""
    for name in (WORD, POSITION):
        if name not in source.shapes:
            raise InputError(
                f"{source.where}: {source.kind} without '{name}'{nearest(name, source.shapes)}: these are "
                f"not PanGu-α weights, or not all of them"
            )
        if len(source.shapes[name]) != 2:
            raise InputError(f"{source.where}: '{name}' has shape {source.shapes[name]} instead of two axes")
    blocks = [
        int(name.split(".")[2])
        for name in source.shapes
        if name.startswith("backbone.blocks.") and name.split(".")[2].isdigit()
    ]
    vocabulary, hidden = source.shapes[WORD]
    return {
        "model.vocab_size": vocabulary,
        "model.num_positions": source.shapes[POSITION][0],
        "model.hidden_size": hidden,
        "model.num_layers": max(blocks, default=0) + 2,
    }


def _known_size(sizes: dict[str, int]) -> RunConfig | None:
    for name in _PUBLISHED:
        config = preset(name)
        if all(getattr(config.model, key[6:]) == value for key, value in sizes.items()):
            return config
    return None


def _check_sizes(source: Source, base: RunConfig, sizes: dict[str, int]) -> None:
    for key, value in sizes.items():
        wanted = getattr(base.model, key[6:])
        if wanted != value:
            raise InputError(
                f"{source.where}: {key}={value} by the shapes of its parameters, but preset "
                f"{base.preset} has {wanted}; there are {', '.join(PRESETS)}"
            )


def _in_words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{key[6:]} {value}" for key, value in sizes.items())


def _example(key: str, sizes: dict[str, int]) -> str:
    return f"{key}={max(1, sizes['model.hidden_size'] // 64)}" if "heads" in key else f"{key}=gelu"


def _check(source: Source, config: RunConfig, specs: Mapping[str, ParameterSpec]) -> None:
    """Check that every parameter is there, in its shape, and nothing else."""
    check_names(source.where, source.shapes, specs)
    for name, spec in specs.items():
        if tuple(source.shapes[name]) != spec.shape:
            raise InputError(
                f"{source.where}: {name} has shape {tuple(source.shapes[name])}, a model of "
                f"{config.model.num_layers} layers × {config.model.hidden_size} needs {spec.shape}"
            )
    source.check(config)


def _tokenizer(source: Source, name: str | None, config: RunConfig) -> Any:
    """The tokenizer to keep: the one named, else that of the source, or of the releases; None where there is none.

    Raises:
        InputError: it has more pieces than the model has rows.
    """
    if name is None and isinstance(source, LabSource):
        with contextlib.suppress(InputError):
            name = str(tokenizer_folder(source.checkpoint.folder))
    elif name is None and source.tokenizer is not None:
        name = str(source.tokenizer)
    elif name is None and config.preset in _PUBLISHED:
        name = "pangu"  # the one that all releases were trained with
    if name is None:
        return None
    loaded = load_tokenizer(name)
    if loaded.vocab_size > config.model.vocab_size:
        raise InputError(
            f"{name}: has {loaded.vocab_size} pieces, the model's vocabulary only "
            f"{config.model.vocab_size}; give the tokenizer that these weights were trained with"
        )
    return loaded


# ------------------------------------------------------------------------------------------------------- writing


class _Reader:
    """Reads parameters from the source, casts them to ``target`` (None: leaves them as they are), reports progress."""

    def __init__(self, source: Source, specs: Mapping[str, ParameterSpec], target: np.dtype | None, progress: Progress):
        self.source, self.specs, self.target, self.progress = source, specs, target, progress
        self.dtype = target or source.read("backbone.layernorm.gamma").dtype
        self.done = 0

    def __call__(self, name: str) -> np.ndarray:
        value = self.source.read(name)
        if not np.isfinite(value).all():
            raise InputError(f"{self.source.where}: {name} holds values that are not finite: the file is damaged")
        if self.target is not None and value.dtype != self.target:
            value = self._cast(name, value)
        self.done = min(self.done + 1, len(self.specs))
        self.progress(self.done, len(self.specs), name)
        return value

    def _cast(self, name: str, value: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            result = value.astype(self.target)
        if not np.isfinite(result).all():
            raise InputError(f"{self.source.where}: {name} has values beyond {self.target}; keep float32")
        return result

    def groups(self, last: tuple[str, ...] = ()) -> Iterator[list[str]]:
        """Names (and ``last``, which are of the word embedding's size) in groups whose values fit the limit."""
        group: list[str] = []
        total = 0
        for name in (*self.specs, *last):
            size = self.specs.get(name, self.specs[WORD]).size * self.dtype.itemsize
            if group and total + size > _GROUP:
                yield group
                group, total = [], 0
            group.append(name)
            total += size
        yield group


def _write_lab(folder: Path, reader: _Reader, config: RunConfig, source: Source) -> None:
    for number, group in enumerate(reader.groups()):
        write_shard(folder, number, {name: reader(name) for name in group})
    write_manifest(folder, {"step": 0, "records": 0, "tokens": 0, "converted_from": source.kind}, config)


def _write_mindspore(folder: Path, reader: _Reader, config: RunConfig, source: Source) -> None:
    write_ckpt(folder / CKPT_FILE, ((name, reader(name)) for name in reader.specs))
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")


def _write_gpt(folder: Path, reader: _Reader, config: RunConfig, source: Source) -> None:
    from safetensors.numpy import save_file

    groups, weight_map, total = list(reader.groups((LM_HEAD,))), {}, 0  # strict loaders require the head as well
    for number, group in enumerate(groups, 1):
        tensors = {}
        for name in group:
            theirs, transposed = (LM_HEAD, False) if name == LM_HEAD else gpt_name(name, config.model.num_layers)
            value = reader(WORD if name == LM_HEAD else name)
            tensors[theirs] = np.ascontiguousarray(value.T) if transposed else value
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        total += sum(value.nbytes for value in tensors.values())
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    description = json.dumps(_gpt_config(config.model, reader.dtype), indent=2)
    (folder / "config.json").write_text(description, encoding="utf-8")


def _gpt_config(model: ModelConfig, dtype: np.dtype) -> dict[str, Any]:
    """The content of ``config.json``, with the port's own keys."""
    return {
        "model_type": "gpt_pangu",
        "architectures": ["GPTPanguForCausalLM"],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.num_positions,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "activation_function": _GPT_ACTIVATIONS[model.hidden_act],
        OWN_ACTIVATION: model.hidden_act,
        "layer_norm_epsilon": model.layernorm_eps,
        "resid_pdrop": model.dropout_rate,
        "embd_pdrop": model.dropout_rate,
        "attn_pdrop": model.dropout_rate,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "torch_dtype": dtype.name,
    }
