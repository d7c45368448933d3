"""The network for generation as numbers: which parameters a process holds, in which shapes, and how it can be split.

The layers of ``generate/network.py`` ask for these parameters; a bundle's are compared with them, and memory is planned
with them. Over several processes the network is split as in training: the layers over pipeline stages, and within a
stage heads, feed-forward part and vocabulary over tensor-parallel ranks. The first stage has the embeddings; the last
has the query layer, and the word embedding once more as the head.
"""

from __future__ import annotations

from pangu_lab.config import ModelConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import FINAL_NORM, POSITION, QUERY_LAYER, WORD, layer_prefix
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.ranges import shown

QUERIES = f"{QUERY_LAYER}.query_of_position"  # the query layer's query of every position, made when weights are loaded
ALL = Mesh()
GRAPH_DTYPES = ("float32", "float16")  # of weights: a CPU has no products in bfloat16, where a graph could be tested


def is_product(name: str) -> bool:
    """Whether a parameter of the network for generation is a product's weight, which may be in half precision."""
    return name == WORD or name.endswith(".weight")


def check_dtype(config: ModelConfig, dtype: str) -> None:
    """Refuse a type in which a graph of this network cannot keep its weights.

    Raises:
        InputError: says what there is.
    """
    if dtype not in GRAPH_DTYPES:
        raise InputError(
            f"dtype {shown(dtype)}: in a bundle, and over several processes, there are {' and '.join(GRAPH_DTYPES)}"
        )
    if dtype != "float32" and config.moe_layers:
        raise InputError(f"dtype {dtype} is for dense models: leave it out")


def check_split(config: ModelConfig, tensor: int, pipeline: int = 1) -> None:
    """Refuse numbers of tensor-parallel ranks and of pipeline stages that cannot share this network.

    Raises:
        InputError: names what cannot be split.
    """
    for name, amount in (("num_heads", config.num_heads), ("vocab_size", config.vocab_size)):
        if amount % tensor:
            raise InputError(
                f"{tensor} tensor-parallel ranks cannot split model.{name}={amount}: take a number that divides it"
            )
    if tensor > 1 and config.moe_layers:
        raise InputError(
            "a mixture of experts is not split here: leave tensor parallelism at 1 (pipeline stages can share "
            "its layers)"
        )
    if pipeline > config.num_layers:
        raise InputError(f"{pipeline} pipeline stages are more than model.num_layers={config.num_layers}: take fewer")


def inference_shapes(config: ModelConfig, slots: int, mesh: Mesh = ALL) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the network for generation, and of its cache, that a rank of ``mesh`` holds."""
    hidden, parts, layers = config.hidden_size, mesh.size("tensor"), mesh.layers(config.num_layers)
    query_layer = config.num_layers - 1
    shapes: dict[str, tuple[int, ...]] = {}
    if mesh.is_first_stage or mesh.is_last_stage:
        shapes[WORD] = config.vocab_size // parts, hidden
    if mesh.is_first_stage:
        shapes[POSITION] = config.num_positions, hidden
    if mesh.is_last_stage:
        shapes[QUERIES] = config.num_positions, hidden // parts
    if query_layer - 1 in layers:
        shapes |= _norm(FINAL_NORM, hidden)
    for layer in layers:
        shapes |= _layer(config, layer, slots, parts)
    return shapes


def _norm(prefix: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{kind}": (hidden,) for kind in ("gamma", "beta")}


def _layer(config: ModelConfig, layer: int, slots: int, parts: int) -> dict[str, tuple[int, ...]]:
    """Norms, products and cache of one layer; the query layer's query needs no product."""
    hidden, inner, experts, prefix = (
        config.hidden_size,
        config.ffn_hidden_size,
        config.num_experts,
        layer_prefix(config, layer),
    )
    fused = (2 if layer == config.num_layers - 1 else 3) * hidden // parts
    weights: dict[str, tuple[int, ...]] = {
        "attention.qkv": (fused, hidden),
        "attention.projection": (hidden, hidden // parts),
    }
    shapes = {**_norm(f"{prefix}.layernorm1", hidden), **_norm(f"{prefix}.layernorm2", hidden)}
    if layer in config.moe_layers:
        shapes[f"{prefix}.output.router.weight"] = (hidden, experts)
        weights |= {
            "output.experts.mapping": (experts, inner, hidden),
            "output.experts.projection": (experts, hidden, inner),
        }
    else:
        weights |= {"output.mapping": (inner // parts, hidden), "output.projection": (hidden, inner // parts)}
    shapes |= {f"{prefix}.{name}.weight": shape for name, shape in weights.items()}
    shapes |= {f"{prefix}.{name}.bias": shape[:-1] for name, shape in weights.items()}
    cache = (config.num_heads // parts * slots, config.head_dim)
    return {**shapes, **{f"{prefix}.cache.{kind}": cache for kind in ("keys", "values")}}
