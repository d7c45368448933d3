"""``bundle.json``: what it must say, and how its reader knows that nobody changed it.

Three things are checked. The description and every file of the bundle have a sha256 in it, which shows damage. A
graph's inputs follow from its name, and the sizes of the network are compared with the parameters of the graph before
any of them is used (``loading.py``): compiled code trusts both. And a bundle may be signed: with HMAC-SHA256 of the
description under a secret key, which shows that it was made by somebody who has the key. That protects a bundle on a
shared disk or on its way to another host; it does not protect from those who have the key, who could sign as well.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pangu_lab.config import MOST_LAYERS, ParallelConfig
from pangu_lab.errors import InputError
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.ranges import shown
from pangu_lab.reading import checked, content_of, read_json
from pangu_lab.schema import Count, Schema, Sha256

DESCRIPTION, SIGNATURE = "bundle.json", "bundle.hmac"
FORMAT, VERSION = "pangu-lab bundle", 1
AGAIN = "export the bundle again"
SHORTEST_KEY = 16  # bytes
INT, FLOAT = "int32", "float32"
EVAL_LOSS = {
    "inputs": [
        ["ids", ["batch", "n"], INT],
        ["positions", ["batch", "n"], INT],
        ["labels", ["batch", "n"], INT],
        ["weights", ["batch", "n"], FLOAT],
    ],
    "outputs": [["loss_sums", ["batch"], FLOAT], ["weight_sums", ["batch"], FLOAT]],
}
_FIXED = re.compile(r"(decode|prefill)(?:_([1-9][0-9]{0,8}))?")
FilePath = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)*$", max_length=1000)]
Size = Annotated[int, Field(ge=1, le=1 << 31)]


class _Model(Schema):
    """The sizes; ``ModelConfig`` checks the other settings, and that they go together."""

    vocab_size: Size
    num_positions: Size
    hidden_size: Size
    num_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    num_heads: Size
    places: Size


class _SpecialIds(Schema):
    eod: Count
    pad: Count


class _Parallel(Schema):
    tensor: Annotated[int, Field(ge=1, le=1 << 16)]
    pipeline: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    rank: Annotated[int, Field(ge=0, le=1 << 16)]
    group: str
    export_id: str


class _Description(Schema):
    name: str
    model: _Model
    graphs: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], dict[str, Any]]
    special_ids: _SpecialIds
    sampling: dict[str, Any]
    files: dict[FilePath, Sha256]
    versions: dict[str, str]
    parallel: _Parallel | None = None
    dtype: Literal["float32", "float16"] = "float32"


def layout_of(description: dict[str, Any]) -> ParallelConfig:
    """The processes that a bundle is for: pipeline stages × tensor-parallel ranks."""
    parallel = description.get("parallel", {})
    return ParallelConfig(tensor=parallel.get("tensor", 1), pipeline=parallel.get("pipeline", 1))


def mesh_of(description: dict[str, Any]) -> Mesh:
    """The same, and the rank that this bundle is for.

    Raises:
        InputError: there is no such rank.
    """
    return Mesh(layout_of(description), description.get("parallel", {}).get("rank", 0))


def cache_graph(batch: int | str, n: int | str, rows: int | str, mesh: Mesh = Mesh()) -> dict[str, Any]:
    """Inputs and outputs of a graph over the cache; a dimension with a name may have any length. Between pipeline stages
    hidden rows, one for each token, replace ids and logits."""
    hidden = [batch * n if isinstance(batch, int) and isinstance(n, int) else "tokens", "hidden_size"]
    first = ["ids", [batch, n], INT] if mesh.is_first_stage else ["hidden", hidden, FLOAT]
    shapes = {"positions": [batch, n], "write": [batch, n], "read": [batch, "t" if n in (1, "n") else n]}
    last = mesh.is_last_stage
    return {
        "inputs": [first, *([name, shape, INT] for name, shape in shapes.items()), *[["rows", [rows], INT]] * last],
        "outputs": [["logits", [rows, "vocab_size"], FLOAT] if last else ["hidden", hidden, FLOAT]],
    }


def graph_of(name: str, mesh: Mesh = Mesh()) -> dict[str, Any] | None:
    """Inputs and outputs of the graph called ``name`` in the bundle of a rank; None when no graph is called so."""
    if name == "prefill":
        return cache_graph("batch", "n", "m", mesh)
    if name == "eval_loss":
        return EVAL_LOSS if mesh.size("pipeline") == 1 else None
    match = _FIXED.fullmatch(name)
    if match is None:
        return None
    number = int(match[2] or 1)
    return cache_graph(1, number, 1, mesh) if match[1] == "prefill" else cache_graph(number, 1, number, mesh)


def with_checksum(description: dict[str, Any]) -> dict[str, Any]:
    """The description with its own sha256, which covers all else in it."""
    return {**description, "sha256": _sha256(description)}


def _sha256(description: dict[str, Any]) -> str:
    rest = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check ``bundle.json``; one of before there were checksums of it has none.

    Raises:
        InputError: it is missing, damaged or changed, of another version, or describes what no bundle holds.
    """
    path = folder / DESCRIPTION
    description = read_json(path, "the bundle's description", fix=AGAIN)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{path}: not a bundle's description")
    if description.get("version") != VERSION:
        raise InputError(
            f"{path}: written in version {shown(description.get('version'), repr)} of the format, "
            f"this program reads version {VERSION}: {AGAIN}"
        )
    if "sha256" in description and description["sha256"] != _sha256(description):
        raise InputError(f"{path}: changed since it was exported; copy it again or {AGAIN}")
    checked(description, _Description, str(path), AGAIN)
    if "prefill" not in description["graphs"]:
        raise InputError(f"{path}: says nothing of the graph prefill: {AGAIN}")
    mesh = mesh_of(description)
    if mesh.size("pipeline") > description["model"]["num_layers"]:
        raise InputError(f"{path}: says of more pipeline stages than the network has layers: {AGAIN}")
    for name, graph in description["graphs"].items():
        told = {key: graph.get(key) for key in ("inputs", "outputs")}
        if told != graph_of(name, mesh):
            raise InputError(f"{path}: what it says of the graph {name} is not so of any graph of that name: {AGAIN}")
    return description


# ---------------------------------------------------------------------------------------------------- signatures


def read_key(path: Path | str) -> bytes:
    """The secret key in a file: its bytes, whatever they are.

    Raises:
        InputError: no such file, or too few bytes to be a secret.
    """
    key = content_of(path, "the key of signatures", 1 << 16)
    if len(key) < SHORTEST_KEY:
        raise InputError(
            f"{path}: a key of {len(key)} bytes can be guessed; make one of {2 * SHORTEST_KEY} with "
            f"`head -c {2 * SHORTEST_KEY} /dev/urandom > {path}`"
        )
    return key


def sign(folder: Path, key: bytes) -> None:
    """Sign the bundle in ``folder``, which is complete but for this."""
    (folder / SIGNATURE).write_text(_signature(folder, key) + "\n", encoding="ascii")


def verify_signature(folder: Path | str, key: bytes) -> None:
    """Check that whoever made a bundle, or the bundles of several ranks in one folder, had the key.

    Raises:
        InputError: there is no bundle, it was not signed, or it was signed with another key or changed since.
    """
    folder = Path(folder)
    found = (
        [folder]
        if (folder / DESCRIPTION).is_file()
        else sorted(path.parent for path in folder.glob(f"rank_*/{DESCRIPTION}"))
    )
    if not found:
        raise InputError(f"{folder}: only bundles are signed: make one with `pangu-lab export --sign KEY`")
    for one in found:
        if not (one / SIGNATURE).is_file():
            raise InputError(
                f"{one}: not signed: make it again with `pangu-lab export --sign KEY`, or leave out --verify"
            )
        told = content_of(one / SIGNATURE, "the signature", 1 << 10).strip()
        if not hmac.compare_digest(told, _signature(one, key).encode()):
            raise InputError(
                f"{one}: its signature is not of this key and this content: do not use it, unless you know "
                "who changed it"
            )


def _signature(folder: Path, key: bytes) -> str:
    content = content_of(folder / DESCRIPTION, "the bundle's description")
    return hmac.new(key, content, hashlib.sha256).hexdigest()
