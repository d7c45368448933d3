"""Parameter names in other projects' files, and which of their entries are not parameters.

The published names are those of the first release. Later files use ``backbone.embedding.word_embedding…``, the
loader of the sharded release has other names for its three ``.npy`` tables, and the community's PyTorch port
(``gpt_pangu``) has GPT-2's names, keeps every matrix (out, in) and counts the query layer as the last ``h``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pangu_lab.errors import InputError, nearest
from pangu_lab.model.parameters import FINAL_NORM, POSITION, QUERY, QUERY_LAYER, WORD

NPY_FILES = {WORD: "word_embedding.npy", POSITION: "position_embedding.npy", QUERY: "top_query_embedding.npy"}
_OTHER_NAMES = {
    "word_embedding_table": WORD,
    "position_embedding_table": POSITION,
    "query_embedding_table": QUERY,
    "top_query_embedding_table": QUERY,
}
_BOOKKEEPING = re.compile(
    r"(adam_[mv]|moment[s12]?|moment1|moment2|accu_grads?|grad_accum|clone)\..*|global_step|step_num|epoch_num|"
    r"current_iterator_step|last_overflow_iterator_step|scale_sense|loss_scale|learning_rate|beta[12]_power|"
    r"random_op|.*\.(is_first_iteration|key_past|value_past|batch_valid_length)"
)

_EMBEDDINGS = {WORD: "transformer.wte.weight", POSITION: "transformer.wpe.weight", QUERY: "transformer.wqe.weight"}
_PARTS = {
    "layernorm1": "ln_1",
    "layernorm2": "ln_2",
    "attention.dense1": "attn.q_proj",
    "attention.dense2": "attn.k_proj",
    "attention.dense3": "attn.v_proj",
    "attention.projection": "attn.c_proj",
    "output.mapping": "mlp.c_fc",
    "output.projection": "mlp.c_proj",
}
_LAST = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
LM_HEAD = "lm_head.weight"
_BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")


def published_name(name: str) -> str | None:
    """The first release's name of an entry of a ``.ckpt``; None if it is not a parameter of the model."""
    if _BOOKKEEPING.fullmatch(name):
        return None
    if name.startswith("backbone.embedding."):
        return "backbone." + name[len("backbone.embedding.") :]
    return _OTHER_NAMES.get(name.removeprefix("backbone."), name)


def gpt_name(name: str, num_layers: int) -> tuple[str, bool]:
    """The community port's name of a parameter, and whether it is stored transposed there."""
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name], False
    path, _, last = name.rpartition(".")
    if path == FINAL_NORM:
        return f"transformer.ln_f.{_LAST[last]}", False
    if path.startswith(QUERY_LAYER):
        layer, part = num_layers - 1, path[len(QUERY_LAYER) + 1 :]
    else:
        number, _, part = path.removeprefix("backbone.blocks.").partition(".")
        layer = int(number)
    transposed = last == "weight" and part in ("attention.projection", "output.mapping", "output.projection")
    return f"transformer.h.{layer}.{_PARTS[part]}.{_LAST[last]}", transposed


def is_gpt_buffer(name: str) -> bool:
    """Whether this is a mask that old versions of the port keep among the weights."""
    return _BUFFERS.fullmatch(name) is not None


def check_names(where: Any, held: Iterable[str], needed: Mapping[str, Any]) -> None:
    """Check that every parameter is there, and nothing else.

    Raises:
        InputError: lists what is missing and what is left over, each with the nearest name on the other side.
    """
    held = set(held)
    missing = [name for name in needed if name not in held]
    surplus = sorted(held - set(needed))
    if not missing and not surplus:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: " + _listed(missing, surplus))
    if surplus:
        parts.append(f"{len(surplus)} left over: " + _listed(surplus, missing or list(needed)))
    raise InputError(
        f"{where}: the parameters are not those of this model ({'; '.join(parts)}). Give the files of "
        f"one whole release, or the settings (--preset, --set) of the model they belong to"
    )


def _listed(names: list[str], others: list[str]) -> str:
    shown = ", ".join(name + nearest(name, others).replace("did you mean", "near") for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
