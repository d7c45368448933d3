"""Every parameter of the network by its published name: shape, initial values, and how it is split.

This table is plain data, made without MindSpore. The network, initialisation, checkpoints, conversion and planning
all take the parameters from it, and so cannot disagree. Names and shapes are those of the first release; ``dense1``,
``dense2``, ``dense3`` are query, key and value and are stored (out, in), the other matrices (in, out).

No parameter names of PanGu-α with experts are published. Here a block with experts has,
in place of ``output.mapping`` and ``output.projection``, one tensor each for all experts (the expert is axis 0):
``output.experts.mapping.weight`` (experts, hidden, 4·hidden) and ``.bias`` (experts, 1, 4·hidden),
``output.experts.projection.weight`` (experts, 4·hidden, hidden) and ``.bias`` (experts, 1, hidden), and
``output.router.weight`` (hidden, experts).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pangu_lab.config import ModelConfig

WORD = "backbone.word_embedding.embedding_table"
POSITION = "backbone.position_embedding.embedding_table"
QUERY = "backbone.top_query_embedding.embedding_table"
QUERY_LAYER = "backbone.top_query_layer"
FINAL_NORM = "backbone.layernorm"


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of the whole (unsplit) model.

    ``init`` is "normal" (with ``std``), "ones" or "zeros"; ``tensor_axis`` the axis that tensor parallelism
    splits, or None for a parameter that every tensor rank holds whole; ``decay`` whether weight decay applies;
    ``layer`` the layer that owns it: 0 … num_layers − 1, where the last is the query layer, or −1 for embeddings;
    ``expert`` whether axis 0 counts experts, which expert parallelism spreads over ranks.
    """

    name: str
    shape: tuple[int, ...]
    init: str
    std: float
    tensor_axis: int | None
    decay: bool
    layer: int
    expert: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


class OneByOne(Mapping[str, np.ndarray]):
    """Parameters by name, each made or read when it is asked for, and not kept.

    A caller that takes them one by one, as the network does, never holds the model twice.

    Args:
        names: the names available.
        read: returns the value of a name.
    """

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray]):
        self.names, self.read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix of a layer: of attention, a feed-forward network or experts, and no router."""
    return name.endswith(".weight") and (".attention." in name or ".output." in name) and ".router." not in name


def layer_prefix(config: ModelConfig, layer: int) -> str:
    """``backbone.blocks.3`` or, for the last layer, ``backbone.top_query_layer``."""
    return QUERY_LAYER if layer == config.num_layers - 1 else f"backbone.blocks.{layer}"


def parameter_specs(config: ModelConfig) -> dict[str, ParameterSpec]:
    """All parameters of ``config``, in the order of the data flow, by name."""
    specs = _embedding_specs(config)
    for layer in range(config.num_layers):
        specs += _layer_specs(config, layer)
    last_block = config.num_layers - 2
    specs += _norm_specs(FINAL_NORM, config.hidden_size, last_block)
    return {spec.name: spec for spec in specs}


def _embedding_specs(config: ModelConfig) -> list[ParameterSpec]:
    hidden, std = config.hidden_size, config.init_std
    return [
        ParameterSpec(WORD, (config.vocab_size, hidden), "normal", std, 0, True, -1),
        ParameterSpec(POSITION, (config.num_positions, hidden), "normal", std, None, True, -1),
        ParameterSpec(QUERY, (config.num_positions, hidden), "normal", std, None, True, config.num_layers - 1),
    ]


def _norm_specs(prefix: str, hidden: int, layer: int) -> list[ParameterSpec]:
    return [
        ParameterSpec(f"{prefix}.gamma", (hidden,), "ones", 0.0, None, False, layer),
        ParameterSpec(f"{prefix}.beta", (hidden,), "zeros", 0.0, None, False, layer),
    ]


def _layer_specs(config: ModelConfig, layer: int) -> list[ParameterSpec]:
    prefix, hidden, inner = layer_prefix(config, layer), config.hidden_size, config.ffn_hidden_size
    residual_std = config.init_std / (2 * config.num_layers) ** 0.5  # keeps the residual sum's variance level
    specs = _norm_specs(f"{prefix}.layernorm1", hidden, layer) + _norm_specs(f"{prefix}.layernorm2", hidden, layer)

    def linear(name: str, shape: tuple[int, int], bias: int, std: float, axis: int, bias_split: bool) -> None:
        specs.append(ParameterSpec(f"{prefix}.{name}.weight", shape, "normal", std, axis, True, layer))
        specs.append(
            ParameterSpec(f"{prefix}.{name}.bias", (bias,), "zeros", 0.0, 0 if bias_split else None, False, layer)
        )

    for name in ("dense1", "dense2", "dense3"):
        linear(f"attention.{name}", (hidden, hidden), hidden, config.init_std, 0, True)
    linear("attention.projection", (hidden, hidden), hidden, residual_std, 0, False)
    if layer in config.moe_layers:
        return specs + _expert_specs(config, layer, residual_std)
    linear("output.mapping", (hidden, inner), inner, config.init_std, 1, True)
    linear("output.projection", (inner, hidden), hidden, residual_std, 0, False)
    return specs


def _expert_specs(config: ModelConfig, layer: int, residual_std: float) -> list[ParameterSpec]:
    """The router and the experts of one block."""
    prefix, hidden, inner, experts = (
        layer_prefix(config, layer),
        config.hidden_size,
        config.ffn_hidden_size,
        config.num_experts,
    )
    both = f"{prefix}.output.experts"
    std = config.init_std
    return [
        ParameterSpec(f"{prefix}.output.router.weight", (hidden, experts), "normal", std, None, True, layer),
        ParameterSpec(f"{both}.mapping.weight", (experts, hidden, inner), "normal", std, 2, True, layer, True),
        ParameterSpec(f"{both}.mapping.bias", (experts, 1, inner), "zeros", 0.0, 2, False, layer, True),
        ParameterSpec(
            f"{both}.projection.weight", (experts, inner, hidden), "normal", residual_std, 1, True, layer, True
        ),
        ParameterSpec(f"{both}.projection.bias", (experts, 1, hidden), "zeros", 0.0, None, False, layer, True),
    ]


def initial_value(spec: ParameterSpec, seed: int) -> np.ndarray:
    """The whole parameter's initial value, fp32; depends only on the seed and the name, never on the layout."""
    if spec.init != "normal":
        return np.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, np.float32)
    generator = np.random.Generator(np.random.Philox(key=(seed << 32) + zlib.crc32(spec.name.encode())))
    return generator.standard_normal(spec.shape, np.float32) * np.float32(spec.std)


def initial_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Initial values of all parameters, whole."""
    return {name: initial_value(spec, seed) for name, spec in parameter_specs(config).items()}
