"""Where the files of a sharded release lie, as people have them: unpacked or still in tar parts, flat or in a tree.

    ckpts/checkpoint_file/        filerted_0.ckpt … (also filtered_, filitered_), or 13B_part0 … as downloaded;
                                  word_embedding.npy …, also as 13B_word_embedding
    ckpts/strategy_load_ckpt/     the strategy file, whatever its name
    ckpts/tokenizer/              vocab.model

A part is a tar of shards. It is read where it lies: shards are found by their offsets, nothing is unpacked. A part with
a link or holes, or a member whose name would lead out of its folder, is refused.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pangu_lab.checkpoint.layouts import NPY_FILES
from pangu_lab.checkpoint.mindspore_ckpt import Member
from pangu_lab.errors import InputError
from pangu_lab.ranges import shown

SHARD = re.compile(r"(?:filerted|filtered|filitered)_([0-9]{1,6})\.ckpt")  # the releases and the guide spell it so
PART = re.compile(r"(?:[\w.]+_)?part\d+(?:\.tar)?")
TABLE = re.compile(r"(?:\d[\w.]*_)?(word|position|top_query)_embedding(?:\.npy)?")
FILES, STRATEGY, TOKENIZER = "checkpoint_file", "strategy_load_ckpt", "tokenizer"


@dataclass(frozen=True)
class ReleaseFiles:
    """The files of a sharded release.

    Attributes:
        folder: where shards or parts lie.
        shards: by number, each a path or a member of a part.
        tables: the paths of the embedding tables, by published name.
        strategies: files that may be the strategy.
        tokenizer: the folder of that name, where there is one.
    """

    folder: Path
    shards: dict[int, Path | Member]
    tables: dict[str, Path]
    strategies: list[Path]
    tokenizer: Path | None


def is_release(where: Path) -> bool:
    """Whether a folder holds shards or parts, or the tree of a release."""
    return (where / FILES).is_dir() or any(SHARD.fullmatch(path.name) or _is_part(path) for path in where.iterdir())


def find_release(where: Path) -> ReleaseFiles:
    """What lies in a folder, or in the tree that it is the top of, or the ``checkpoint_file`` of.

    Raises:
        InputError: two files are the same shard or table, or a part cannot be trusted.
    """
    folder = where / FILES if (where / FILES).is_dir() else where
    around = (folder, folder / STRATEGY, folder.parent / STRATEGY)[: 3 if folder.name == FILES else 2]
    strategies = sorted(
        path
        for place in around
        if place.is_dir()
        for path in place.glob("*.ckpt" if place.name == STRATEGY else "*strategy*.ckpt")
        if path.is_file()
    )
    tokenizer = folder.parent / TOKENIZER if folder.name == FILES else folder / TOKENIZER
    return ReleaseFiles(folder, _shards(folder), _tables(folder), strategies, tokenizer if tokenizer.is_dir() else None)


def _is_part(path: Path) -> bool:
    return bool(PART.fullmatch(path.name)) and path.is_file()


def _shards(folder: Path) -> dict[int, Path | Member]:
    found: dict[int, Path | Member] = {}
    for path in sorted(folder.iterdir()):
        for shard in _members(path) if _is_part(path) else [path] if path.is_file() else []:
            if match := SHARD.fullmatch(shard.name):
                rank = int(match[1])
                if rank in found:
                    raise InputError(
                        f"{folder}: {_named(found[rank])} and {_named(shard)} are both shard {rank}; keep one"
                    )
                found[rank] = shard
    return found


def _named(shard: Path | Member) -> str:
    return shard.name if isinstance(shard, Path) else f"{shard.archive.name}: {shard.name}"


def _members(part: Path) -> list[Member]:
    """The files in a part.

    Raises:
        InputError: no whole, uncompressed tar, or something in it that no release has.
    """
    size = part.stat().st_size
    try:
        with tarfile.open(part, "r:") as archive, part.open("rb") as file:
            entries = archive.getmembers()
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile ends at the first header that it cannot read
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        why = shown(error) or type(error).__name__
        raise InputError(
            f"{part}: not a whole tar file ({why}); download it again; if it is compressed, unpack it"
        ) from None
    for entry in entries:
        name = PurePosixPath(entry.name)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(
                f"{part}: holds '{shown(entry.name)}', which would lie outside its folder: this is no part of a release"
            )
        if entry.issparse() or entry.size < 0:
            raise InputError(
                f"{part}: '{shown(entry.name)}' has holes or less than no bytes: this is no part of a release"
            )
        if not (entry.isreg() or entry.isdir()):
            raise InputError(f"{part}: holds the link or device '{shown(entry.name)}': this is no part of a release")
    for entry in entries:
        if entry.offset_data + entry.size > size:
            raise InputError(f"{part}: ends within '{shown(entry.name)}'; download it again")
    return [
        Member(part, PurePosixPath(entry.name).name, entry.offset_data, entry.size)
        for entry in entries
        if entry.isreg()
    ]


def _tables(folder: Path) -> dict[str, Path]:
    names = {file.removesuffix("_embedding.npy"): name for name, file in NPY_FILES.items()}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = TABLE.fullmatch(path.name) if path.is_file() else None
        if match:
            name = names[match[1]]
            if name in found:
                raise InputError(
                    f"{folder}: {found[name].name} and {path.name} are both the table of "
                    f"'{match[1]}' embeddings; keep the one of this size"
                )
            found[name] = path
    return found
