"""Running a bundle: graphs, tokenizer and description from its folder alone, all verified first.

The graphs are loaded one by one, each with its own copy of the parameters; ``assign_value`` then replaces the second
graph's parameters (and cache) by the first one's, which frees the copy. This works because a MindSpore tensor shares
its storage with the one it was assigned from, and it is tested: otherwise prefill and decode would not share one
cache.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.config import ModelConfig, RunConfig, SamplingConfig, config_from_dict
from pangu_lab.errors import InputError
from pangu_lab.export.description import AGAIN, DESCRIPTION, SIGNATURE, layout_of, mesh_of, read_description
from pangu_lab.export.mindir import without_weights
from pangu_lab.files import sha256_file
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.native import native_decoder, plain_name
from pangu_lab.generate.runner import Runner, make_runner
from pangu_lab.memory import Need, check, tokens_at_once, weight_bytes
from pangu_lab.model.inference import inference_shapes, is_product
from pangu_lab.planner.serving import part_need
from pangu_lab.tokenizer import load_tokenizer

STREAMED = 1 << 30  # bytes of weights above which they are read one by one
READ_SIZES = (128, 256, 512, 1024)  # a loaded graph compiles in a fifth of a second for 12 layers


class Bundle(Engine):
    """An exported model ready to generate: an ``Engine`` that also gives the loss of whole sequences.

    Attributes:
        folder: its path.
        description: the content of ``bundle.json``.
    """

    def __init__(
        self,
        folder: Path,
        description: dict[str, Any],
        runner: Runner,
        tokenizer: Any,
        sampling: SamplingConfig,
        first: Any,
    ) -> None:
        super().__init__(runner, tokenizer, sampling, description["name"])
        self.folder, self.description = folder, description
        self._first, self._eval_loss = first, None

    @property
    def config(self) -> ModelConfig:
        """The network's sizes."""
        return model_config(self.description)

    def reload(self) -> Runner:
        """A runner of the same graphs, read from the folder again, for when the first has failed."""
        self._first = self._eval_loss = None
        runner, self._first = load_runner(self.folder, self.description)
        return runner

    def eval_loss(
        self, ids: np.ndarray, positions: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Negative log-likelihoods of a batch of sequences.

        Args:
            ids, positions, labels: (batch, n) integers; positions restart at 0 with each document.
            weights: (batch, n) how much each label counts.

        Returns:
            Two (batch,) arrays: Σ weight · −log p(label) in nats, and Σ weight.

        Raises:
            InputError: the bundle was written without this graph.
        """
        from mindspore import Tensor

        if "eval_loss" not in self.description["graphs"]:
            raise InputError(f"{self.folder}: this bundle holds no eval-loss graph; export it again")
        if self._eval_loss is None:
            self._eval_loss = _load_graph(self.folder, self.description, "eval_loss")
            _share(self._first, self._eval_loss)
        inputs = [Tensor(np.ascontiguousarray(array, np.int32)) for array in (ids, positions, labels)]
        sums, counts = self._eval_loss(*inputs, Tensor(np.ascontiguousarray(weights, np.float32)))
        return sums.asnumpy(), counts.asnumpy()


def model_config(description: dict[str, Any]) -> ModelConfig:
    """The sizes of the network in a bundle's description.

    Raises:
        InputError: they are none that a network can have.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    return config_from_dict(
        {
            "model": {key: value for key, value in description["model"].items() if key in known},
            "data": {"seq_length": 1},
        }
    ).model


def load_bundle(folder: Path | str, verify: bool = True) -> Bundle:
    """Load a bundle for generation on this machine. No model code is imported.

    Args:
        folder: written by ``export_bundle``.
        verify: compare every file with its sha256 (a second for each gigabyte or two).

    Raises:
        InputError: no bundle there, or a file is missing, changed, or was never part of it; or it is for several
            processes.
    """
    folder = Path(folder)
    description = read_bundle(folder)
    if "parallel" in description:
        raise InputError(
            f"{folder}: exported for {layout_of(description).world_size} processes, which share the "
            f"model: give --nproc {layout_of(description).world_size}, or export it for one"
        )
    runner, first = load_runner(folder, description, verify)
    return Bundle(
        folder, description, runner, load_bundle_tokenizer(folder, description), sampling_of(description), first
    )


def read_bundle(folder: Path | str) -> dict[str, Any]:
    """The description of a bundle; for several processes, that of the first rank found here.

    Raises:
        InputError: no bundle there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle; make one with `pangu-lab export`")
    ranks = rank_folders(folder)
    return read_description(ranks[min(ranks)] if ranks else folder)


def rank_folders(folder: Path | str) -> dict[int, Path]:
    """The bundles of single ranks below ``folder``, by rank."""
    found = (path.parent for path in Path(folder).glob(f"rank_*/{DESCRIPTION}"))
    return {int(path.name.removeprefix("rank_")): path for path in found if path.name[len("rank_") :].isdecimal()}


def load_bundle_tokenizer(folder: Path, description: dict[str, Any]) -> Any:
    """The tokenizer inside a bundle, with the special ids that the model was trained with."""
    special = description["special_ids"]
    return load_tokenizer(folder / "tokenizer", eod=special["eod"], pad=special["pad"])


def sampling_of(description: dict[str, Any]) -> SamplingConfig:
    """The generation defaults of a request."""
    return config_from_dict({"sampling": description["sampling"]}, RunConfig()).sampling


def load_runner(folder: Path, description: dict[str, Any], verify: bool = True) -> tuple[Runner, Any]:
    """The graphs of one bundle, ready to be called, and the general one among them.

    The graphs of a rank communicate: the process must already have joined the others and created their group.

    Raises:
        InputError: as ``load_bundle``.
    """
    import mindspore as ms

    model, config = description["model"], model_config(description)
    check(f"{folder}: loading", rank_need(description))
    if verify:
        verify_files(folder, description["files"])
    ms.set_context(mode=ms.GRAPH_MODE)
    first, fixed = _load_graph(folder, description, "prefill"), {}
    _check_sizes(folder, description, first)
    for name, graph in description["graphs"].items():
        batch, n = graph["inputs"][1][1]  # of the positions
        if isinstance(batch, int) and isinstance(n, int):
            fixed[batch, n] = _load_graph(folder, description, name, fixed_shapes=True)
            _share(first, fixed[batch, n])
    alone = "parallel" not in description
    native = native_decoder(first.parameters_dict(), config, model["places"]) if alone else None
    return make_runner(
        mesh_of(description),
        first,
        model["vocab_size"],
        model["num_positions"],
        model["places"],
        fixed,
        READ_SIZES,
        tokens_at_once(config),
        native,
    ), first


def rank_need(description: dict[str, Any]) -> Need:
    """Memory that one process needs to run a bundle; of several, each with its part of weights and cache."""
    return part_need(
        model_config(description), description["model"]["places"], mesh_of(description), dtype_of(description)
    )


def dtype_of(description: dict[str, Any]) -> str:
    """The type of the weights of products; bundles of before there was a choice do not say it."""
    return description.get("dtype", "float32")


def _check_sizes(folder: Path, description: dict[str, Any], graph: Any) -> None:
    """Compare the parameters of a graph with the sizes that the description tells: compiled code trusts those."""
    held, half = {}, dtype_of(description) == "float16"
    for name, value in graph.parameters_dict().items():
        types = ["Float16" if half and is_product(plain_name(name)) else "Float32"]
        held[plain_name(name)] = tuple(value.shape) if str(value.dtype) in types else str(value.dtype)
    wanted = inference_shapes(model_config(description), description["model"]["places"], mesh_of(description))
    for name in sorted({*held, *wanted}):
        if held.get(name) != wanted.get(name):
            raise InputError(
                f"{folder / DESCRIPTION}: its sizes are not those of the graphs: {name} would be "
                f"{wanted.get(name, 'nowhere')}, and is {held.get(name, 'nowhere')}: {AGAIN}"
            )


def verify_files(folder: Path, files: dict[str, str]) -> None:
    """Compare every file below ``folder`` with its sha256.

    Raises:
        InputError: names the first file that is missing, changed, or not listed.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(present - set(files) - {DESCRIPTION, SIGNATURE}):
        raise InputError(f"{folder / name}: not part of this bundle; remove it or export again")
    for name, expected in files.items():
        if name not in present:
            raise InputError(f"{folder / name}: missing from this bundle; copy it again or export again")
        if sha256_file(folder / name) != expected:
            raise InputError(f"{folder / name}: changed since it was exported; copy it again or export again")


def _load_graph(folder: Path, description: dict[str, Any], name: str, fixed_shapes: bool = False) -> Any:
    """A graph ready to be called. With ``fixed_shapes`` it is compiled for each shape it is called with."""
    import mindspore as ms
    from mindspore import nn

    path = folder / f"{name}.mindir"
    try:
        streamed = weight_bytes(model_config(description)) >= STREAMED
        graph = _streamed_graph(path.resolve()) if streamed else nn.GraphCell(ms.load(str(path.resolve())))
    except (RuntimeError, ValueError) as error:
        written = description["versions"].get("mindspore")
        raise InputError(
            f"{path}: MindSpore {ms.__version__} cannot read this graph, which {written} wrote "
            f"({str(error).splitlines()[0]})"
        ) from None
    graph.set_train(False)
    if not fixed_shapes:
        graph.set_inputs(*_placeholders(description["graphs"][name]["inputs"], description["model"]["hidden_size"]))
    return graph


def _streamed_graph(path: Path) -> Any:
    """A graph with its parameters read one by one, so that memory holds the weights once."""
    import mindspore as ms
    from mindspore import Tensor, nn

    with tempfile.TemporaryDirectory() as folder:
        found = without_weights(path, Path(folder))
        graph = nn.GraphCell(ms.load(str(Path(folder) / path.name)))
    for name, parameter in graph.parameters_dict().items():
        file, offset, length = found[name]
        kind = np.dtype(np.float16 if parameter.dtype == ms.float16 else np.float32)
        value = np.fromfile(file, kind, length // kind.itemsize, offset=offset)
        if value.any():  # the cache is zero as it is
            parameter.assign_value(Tensor(value.reshape(parameter.shape)))
    return graph


def _placeholders(inputs: list[Any], hidden: int) -> list[Any]:
    """The inputs the graph was exported with: a named dimension may have any length, but for the hidden size.

    Without them MindSpore would recompile the graph for every length.
    """
    import mindspore as ms

    known = {"hidden_size": hidden}
    return [
        ms.Tensor(
            shape=[size if isinstance(size, int) else known.get(size) for size in shape], dtype=getattr(ms, dtype)
        )
        for _, shape, dtype in inputs
    ]


def _share(first: Any, second: Any) -> None:
    """Make ``second`` use the parameters of ``first``, including their storage."""
    own = first.parameters_dict()
    for name, parameter in second.parameters_dict().items():
        if name not in own or parameter.shape != own[name].shape:
            raise InputError(f"the graphs of this bundle do not belong together ({name} differs): {AGAIN}")
        parameter.assign_value(own[name])
