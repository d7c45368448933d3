"""Inspecting the network while it runs: the output of every part.

``trace`` runs the same cells as training and generation, one operation after the other instead of as one
compiled graph, and keeps what each returns. It is for small models and for study; MindSpore's mode is
global to the process and is set back to graphs afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.memory import Need, estimate, forward_bytes, weight_bytes
from pangu_lab.model.parameters import parameter_specs

OPERATIONS = (
    "norm1",
    "attention.projections.query",
    "attention.projections.key",
    "attention.projections.value",
    "attention",
    "norm2",
    "feed_forward.mapping",
    "feed_forward",
)


def trace(
    weights: Mapping[str, np.ndarray], config: ModelConfig, ids: np.ndarray, positions: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The output of every part of the network for ``ids``, in order of execution.

    Args:
        weights: all parameters by published name, as ``checkpoint.source.open_weights`` gives them.
        ids: (batch, seq) token ids.
        positions: (batch, seq); 0, 1, 2 … when not given.

    Returns:
        By name: ``embedding``, ``blocks.0.attention.query`` …, ``norm``, ``query_layer`` with its parts: rows
        (batch·seq, …); ``blocks.0.attention.probabilities`` … (batch, heads, seq, seq), [query, key]; and ``logits``
        (batch, seq, vocab).

    Raises:
        InputError: another shape, too many tokens, or an id outside the vocabulary.
    """
    import mindspore as ms

    from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts, Weights

    ids = np.asarray(ids)
    if (
        ids.ndim != 2
        or not 1 <= ids.shape[1] <= config.num_positions
        or ids.min() < 0
        or ids.max() >= config.vocab_size
    ):
        raise InputError(
            f"ids must be (batch, seq) with at most {config.num_positions} tokens a row, each from 0 to "
            f"{config.vocab_size - 1}; given were {ids.shape}"
        )
    if positions is None:
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    activations: dict[str, np.ndarray] = {}
    given: dict[str, tuple] = {}  # to each attention
    arrays = {name: weights[name] for name in parameter_specs(config)}
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        config = dataclasses.replace(config, dropout_rate=0.0)  # which is part of the network that trains
        network = PanguLogits(PanguStage(Parts(config, Weights(arrays), seq_length=ids.shape[1]))).set_train(False)
        for name, cell in network.cells_and_names():
            if _kept(name):
                cell.register_forward_hook(_keep(activations, _public_name(name)))
            if name.endswith(".attention.attend"):
                cell.register_forward_hook(_keep_inputs(given, name))
        inputs = [ms.Tensor(np.ascontiguousarray(array, np.int32)) for array in (ids, positions)]
        logits = network(*inputs).asnumpy()
        for name, cell in network.cells_and_names():
            if name.endswith(".attention"):
                inputs = given[f"{name}.attend"]
                activations[f"{_public_name(name)}.probabilities"] = _probabilities(cell.attend, *inputs)
        activations["logits"] = logits
    finally:
        ms.set_context(mode=mode)
    return activations


def attention_layers(activations: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The layers of a trace that attend, upwards: ``blocks.0`` …, ``query_layer``."""
    ending = ".attention.probabilities"
    return tuple(name.removesuffix(ending) for name in activations if name.endswith(ending))


@dataclasses.dataclass(frozen=True)
class Attention:
    """Where every head of every layer looks in a text.

    Attributes:
        tokens: the pieces of the text, as the vocabulary spells them; ``ids`` their numbers.
        layers: ``blocks.0`` …, and last ``query_layer``, in which row p is not token p that looks but the query of
            position p, "what follows here?", attending over the text up to p.
        probabilities: (layers, heads, seq, seq) float32, [query, key]; a row sums to 1, and is 0 after the diagonal.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    layers: tuple[str, ...]
    probabilities: np.ndarray


def attention_need(config: ModelConfig, texts: int, tokens: int) -> Need:
    """To trace ``texts`` texts of ``tokens`` tokens: the weights once more, and all that is kept."""
    return Need({"weights": weight_bytes(config), "what is kept": forward_bytes(config, texts * tokens, tokens)})


def attention(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    texts: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[str]],
) -> list[Attention]:
    """Where the network looks in some texts of (seq,) ids each, spelled ``tokens``; all in one trace.

    Raises:
        InputError: no ids, too many, or one outside the vocabulary; or what would be kept exceeds the free memory.
    """
    longest = max(map(len, texts))
    estimate(f"attention of {len(texts)} × {longest} tokens", attention_need(config, len(texts), longest))
    padded = np.zeros((len(texts), longest), np.int32)
    for row, ids in zip(padded, texts):
        row[: len(ids)] = ids  # what stands behind a text is seen by nothing in it
    activations = trace(weights, config, padded)
    layers = attention_layers(activations)
    found = np.stack([activations[f"{layer}.attention.probabilities"] for layer in layers], 1).astype(np.float32)
    return [
        Attention(tuple(pieces), tuple(int(index) for index in ids), layers, looks[..., : len(ids), : len(ids)])
        for ids, pieces, looks in zip(texts, tokens, found)
    ]


def _kept(name: str) -> bool:
    name = name.removeprefix("stage.")
    parts = name.split(".")
    if name in ("embedding", "norm", "query_layer") or (parts[0] == "blocks" and len(parts) == 2):
        return True
    return parts[0] in ("blocks", "query_layer") and name.endswith(OPERATIONS) and not name.endswith("norm.norm")


def _public_name(name: str) -> str:
    """A cell's name for people: without the parts of it that only say how the network is put together."""
    return name.removeprefix("stage.").replace(".projections.", ".")


def _keep(activations: dict[str, np.ndarray], name: str):
    def hook(cell, inputs, output) -> None:
        activations[name] = (output[0] if isinstance(output, tuple) else output).asnumpy()

    return hook


def _keep_inputs(given: dict[str, tuple], name: str):
    def hook(cell, inputs, output) -> None:
        given[name] = inputs

    return hook


def _probabilities(attend, q, k, v, mask, *row_keys) -> np.ndarray:
    """What an attention mixes values with, (batch, heads, seq, seq): the cell asked once more with what it was given.

    MindSpore calls no hook of a cell that has a backward pass of its own.
    """
    batch, _, seq, _ = mask.shape
    return attend.by_head(q, k, v, mask)[1].asnumpy().reshape(batch, -1, seq, seq)


def query_distance(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far apart the queries of two traced texts of equal length are, layer by layer and place by place.

    Returns:
        By layer (``blocks.0`` …, ``query_layer``): (rows,) |q₁ − q₂| ÷ the mean of |q₁| and |q₂|; 0 where equal.
    """
    found = {}
    for name in (name for name in first if name.endswith("attention.query")):
        one, two = first[name], second[name]
        scale = (np.linalg.norm(one, axis=1) + np.linalg.norm(two, axis=1)) / 2
        found[name.removesuffix(".attention.query")] = np.linalg.norm(one - two, axis=1) / scale
    return found
