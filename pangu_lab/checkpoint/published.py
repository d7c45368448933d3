"""The published weights of PanGu-α: which files there are, and whether a downloaded one is intact.

Names, sizes and md5 sums are those in the README files of the two releases. Download them by hand from the pages
named here. The parts of a sharded release together hold its 512 ``filerted_*.ckpt``, all of which go into one folder
with the three tables and the strategy file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.errors import InputError
from pangu_lab.progress import Progress, silent

SHARDED = "https://git.openi.org.cn/PCL-Platform.Intelligence/PanGu-Alpha"
SINGLE = "https://git.openi.org.cn/PCL-Platform.Intelligence/PanGu-Alpha-GPU"


@dataclass(frozen=True)
class PublishedFile:
    """One file to download; ``size`` as the page prints it (None where it does not)."""

    model: str
    name: str
    size: str | None
    md5: str
    page: str


def _sharded(model: str, sizes: tuple[str, str, str], digests: str) -> list[PublishedFile]:
    names = ["part0", "part1", "part2", "part3", "word_embedding", "top_query_embedding", "position_embedding"]
    part, word, table = sizes
    return [
        PublishedFile(model, f"{model}_{name}", size, md5, SHARDED)
        for name, size, md5 in zip(names, [part] * 4 + [word, table, table], digests.split())
    ]


PUBLISHED: tuple[PublishedFile, ...] = (
    PublishedFile("2.6B", "Pangu-alpha_2.6B.ckpt", None, "da404a985671f1b5ad913631a4e52219", SINGLE),
    PublishedFile("2.6B", "PanguAlpha_2.6B_fp16.ckpt", None, "3a14e8bf50548a717160e89df7c14b63", SINGLE),
    PublishedFile("13B", "PanguAlpha_13b_fp16.ckpt", None, "f2734649b9b859ff4cf62d496291249a", SINGLE),
    *_sharded(
        "2.6B",
        ("2.6G", "391M", "10M"),
        """
        3904bb0e551f36206cfca96ab0f63cba 19407cbc33ee4929d68f500e015869cc 9ce140312f962079e13f91f681a269ad
        290158ffc426a89b7e357018c701e71d 9ca91161bde9c089dd8304db0428455e 320b401050319c1c63117c36b93651c1
        bf7eb84b7b9fd6004cb22260883ab080""",
    ),
    *_sharded(
        "13B",
        ("12G", "781M", "20M"),
        """
        724bdaf87e0eb4aa9ca0f35e8af92464 493579a1ccc2a16a616cf04daedd031f de4e8a023c56b7134bff4dfbcc230871
        6a6bcfdadf5a0d23c567d6959bf4eaba a4e0c5893d255500396dfa1bfe7ba3ba 4d75c3b42f85db825cebdc99329160bd
        299ee4174cc4de7fdebec1c3e631e348""",
    ),
)


def md5_file(path: Path | str, progress: Progress = silent) -> str:
    """Hexadecimal md5 of a file's content.

    Raises:
        InputError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size >> 20
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
            done += len(block)
            progress(done >> 20, total, "MiB")
    return digest.hexdigest()


def recognise(path: Path | str, progress: Progress = silent) -> PublishedFile | None:
    """The published file that ``path`` is an intact copy of, whatever its name; None when it is none of them.

    Raises:
        InputError: no such file.
    """
    digest = md5_file(path, progress)
    return next((file for file in PUBLISHED if file.md5 == digest), None)
