"""Writing a bundle: everything that serving needs, in one folder, without model code.

    prefill.mindir     any number of tokens of any number of sequences over a key-value cache; decodes too
    decode.mindir      the same compiled for one token, 10 % quicker on small models; left out above 1 GiB of
                       weights, where it gains nothing and its loading would hold the weights twice for a moment
    eval_loss.mindir   negative log-likelihoods of whole sequences
    weights/           the parameters of all three, once
    tokenizer/         as ``load_tokenizer`` reads it
    bundle.json        sizes, inputs and outputs, special ids, sampling defaults, versions, sha256 of every file

All paths inside are relative: a bundle may be moved and copied.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from pangu_lab import __version__
from pangu_lab.config import ModelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.files import sha256_file, whole_folder, write_json_atomic
from pangu_lab.generate.runner import default_places
from pangu_lab.memory import check, generation_need
from pangu_lab.progress import Progress, silent

DESCRIPTION = "bundle.json"
FORMAT, VERSION = "pangu-lab bundle", 1
ONE_TOKEN_LIMIT = 1 << 30  # bytes of weights
INT, FLOAT = "int32", "float32"
GRAPHS: dict[str, dict[str, Any]] = {
    "prefill": {"inputs": [["ids", ["batch", "n"], INT], ["positions", ["batch", "n"], INT],
                           ["write", ["batch", "n"], INT], ["read", ["batch", "t"], INT], ["rows", ["m"], INT]],
                "outputs": [["logits", ["m", "vocab_size"], FLOAT]]},
    "decode": {"inputs": [["ids", [1, 1], INT], ["positions", [1, 1], INT], ["write", [1, 1], INT],
                          ["read", [1, "t"], INT], ["rows", [1], INT]],
               "outputs": [["logits", [1, "vocab_size"], FLOAT]]},
    "eval_loss": {"inputs": [["ids", ["batch", "n"], INT], ["positions", ["batch", "n"], INT],
                             ["labels", ["batch", "n"], INT], ["weights", ["batch", "n"], FLOAT]],
                  "outputs": [["loss_sums", ["batch"], FLOAT], ["weight_sums", ["batch"], FLOAT]]},
}


def export_run(run: Path | str, out: Path | str, places: Optional[int] = None, one_token: Optional[bool] = None,
               progress: Progress = silent) -> Path:
    """Export the newest checkpoint of a run, or one checkpoint.

    Args:
        run: ``runs/NAME`` or a checkpoint folder.
        out: the bundle to write; must not exist.
        places, one_token: as ``export_bundle``.

    Returns:
        ``out``.

    Raises:
        InputError: no checkpoint or tokenizer there, or ``out`` exists.
    """
    from pangu_lab.checkpoint.source import open_weights, tokenizer_folder
    from pangu_lab.tokenizer import load_tokenizer

    _refuse_existing(Path(out))
    weights, config = open_weights(run)
    check(f"{run}: exporting", generation_need(config.model, places), generation_need)
    tokenizer = load_tokenizer(tokenizer_folder(run))
    return export_bundle(weights, config.model, tokenizer, out, config.sampling, places, one_token, progress)


def export_bundle(weights: Mapping[str, np.ndarray], config: ModelConfig, tokenizer: Any, out: Path | str,
                  sampling: SamplingConfig = SamplingConfig(), places: Optional[int] = None,
                  one_token: Optional[bool] = None, progress: Progress = silent) -> Path:
    """Write a bundle; it appears complete or not at all.

    Args:
        weights: every parameter under its released name; read one by one.
        tokenizer: a ``pangu_lab.tokenizer.Tokenizer``; its eod and pad go with it.
        out: the folder to write; must not exist.
        sampling: what generation uses when a request says nothing.
        places: positions of key-value cache over all sequences; by default one whole sequence, at least 1024.
        one_token: whether to write ``decode.mindir`` too; by default where it pays.

    Returns:
        ``out``.

    Raises:
        InputError: ``out`` exists, or weights, configuration and tokenizer do not belong together.
    """
    out = Path(out)
    _refuse_existing(out)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces and the model {config.vocab_size}: "
                         "give the tokenizer that the model was trained with")
    if one_token is None:
        one_token = 4 * config.num_parameters < ONE_TOKEN_LIMIT
    names = [name for name in GRAPHS if name != "decode" or one_token]
    places = default_places(config, places)
    with whole_folder(out) as folder:
        _write_graphs(weights, config, places, names, folder, progress)
        tokenizer.save(folder / "tokenizer")
        progress(len(names) + 1, len(names) + 2, "checksums")
        files = {path.relative_to(folder).as_posix(): sha256_file(path)
                 for path in sorted(folder.rglob("*")) if path.is_file()}
        description = _description(config, tokenizer, sampling, places, names, out.name, files)
        write_json_atomic(folder / DESCRIPTION, description)
    progress(len(names) + 2, len(names) + 2, str(out))
    return out


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} exists already: choose another folder or delete it first")


def _write_graphs(weights: Mapping[str, np.ndarray], config: ModelConfig, places: int, names: list[str],
                  folder: Path, progress: Progress) -> None:
    import mindspore as ms

    from pangu_lab.export.eval_loss import EvalLossNetwork, eval_loss_inputs
    from pangu_lab.export.mindir import SharedWeights, export_graph
    from pangu_lab.generate.network import CachedNetwork, OneTokenNetwork, dynamic_inputs, one_token_inputs

    progress(0, len(names) + 2, "building the network")
    ms.set_context(mode=ms.GRAPH_MODE)
    network = CachedNetwork(weights, config, places)
    graphs = {"prefill": lambda: (network, dynamic_inputs()),
              "decode": lambda: (OneTokenNetwork(network), one_token_inputs()),
              "eval_loss": lambda: (EvalLossNetwork(network), eval_loss_inputs())}
    shared = SharedWeights(folder)
    try:
        for number, name in enumerate(names):
            progress(number, len(names) + 2, f"compiling {name}")
            export_graph(*graphs[name](), folder, name, shared)
    finally:
        shared.close()


def _description(config: ModelConfig, tokenizer: Any, sampling: SamplingConfig, places: int, names: list[str],
                 bundle_name: str, files: dict[str, str]) -> dict[str, Any]:
    import mindspore as ms

    return {
        "format": FORMAT, "version": VERSION, "name": bundle_name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": {**dataclasses.asdict(config), "num_parameters": config.num_parameters, "places": places},
        "graphs": {name: {"file": f"{name}.mindir", **GRAPHS[name]} for name in names},
        "tokenizer": {"folder": "tokenizer", "kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size,
                      "fingerprint": tokenizer.fingerprint},
        "special_ids": {"eod": tokenizer.eod_id, "pad": tokenizer.pad_id},
        "sampling": {name: value for name, value in dataclasses.asdict(sampling).items()},
        "versions": {"pangu_lab": __version__, "mindspore": ms.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "files": files,
    }
