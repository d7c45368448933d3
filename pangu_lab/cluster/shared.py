"""A model that several processes share, as each of them opens it for itself.

It is a bundle that was exported for so many processes, one folder for each, or anything with weights, of which every
process reads its part: of the layers of its pipeline stage, its tensor-parallel slices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.config import ModelConfig, ParallelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export.description import layout_of
from pangu_lab.export.loading import load_runner, rank_folders, read_bundle
from pangu_lab.generate.runner import Runner, default_slots, network_runner
from pangu_lab.loading import Model
from pangu_lab.memory import check
from pangu_lab.model.inference import check_dtype, check_split
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.planner.serving import part_need
from pangu_lab.ranges import shown


@dataclass(frozen=True)
class SharedModel:
    """Such a model.

    Attributes:
        source: the folder.
        layout: how many processes share it, pipeline × tensor; ``world`` in all.
        asked: the same where the model itself does not say it, else None.
        identity: equal where the same model was opened.
        slots: of the key-value cache.
        ranks: those that this folder holds; None for all.
        dtype: of the weights in memory: "float32" or "float16".
    """

    source: Path
    layout: ParallelConfig
    identity: str
    config: ModelConfig
    slots: int
    tokenizer: Any
    sampling: SamplingConfig
    name: str
    origin: str
    ranks: tuple[int, ...] | None = None
    model: Model | None = None
    dtype: str = "float32"

    @classmethod
    def open(
        cls,
        source: Path | str,
        world: int | None = None,
        tokenizer: str | None = None,
        pipeline: int | None = None,
        slots: int | None = None,
        dtype: str | None = None,
    ) -> SharedModel:
        """The model in ``source``, for ``world`` processes in ``pipeline`` stages; by default as a bundle has it, or one.

        Args:
            slots, dtype: of the cache, and of the weights in memory (fp32 by default), of a model that is no bundle.

        Raises:
            InputError: no model there, or one that so many processes cannot share.
        """
        dtype = dtype or "float32"
        model = Model.load(source, tokenizer)
        if model.bundle is not None:
            if slots is not None or dtype != "float32":
                raise InputError(f"{source}: a bundle has its own cache and weights: leave out slots and dtype")
            return cls._of_bundle(model, world, pipeline)
        layout = split(world or 1, pipeline or 1)
        check_split(model.config, layout.tensor, layout.pipeline)
        check_dtype(model.config, dtype)
        weights = model.require_weights("opened")
        manifest = weights.checkpoint.folder / "manifest.json"
        return cls(
            weights.checkpoint.folder,
            layout,
            hashlib.sha256(manifest.read_bytes()).hexdigest()[:16],
            model.config,
            default_slots(model.config, slots),
            model.tokenizer,
            model.sampling,
            model.name,
            model.origin,
            model=model,
            dtype=dtype,
        )

    @classmethod
    def _of_bundle(cls, model: Model, world: int | None, pipeline: int | None) -> SharedModel:
        description = read_bundle(model.bundle)
        made, parallel = layout_of(description), description.get("parallel", {"export_id": ""})
        wanted = split(made.world_size if world is None else world, pipeline or made.pipeline)
        if wanted != made:
            raise InputError(
                f"{model.bundle}: exported for {in_words(made)}; export it with {options(wanted)} first, or "
                "give the run that it was made from"
            )
        folders = rank_folders(model.bundle)
        for rank, folder in folders.items():
            held = read_bundle(folder).get("parallel", {})
            if (held.get("rank"), held.get("export_id")) != (rank, parallel["export_id"]):
                raise InputError(
                    f"{folder}: this is rank {held.get('rank')} of another export than {model.bundle}'s first: "
                    "copy the ranks of one export"
                )
        return cls(
            model.bundle,
            made,
            parallel["export_id"],
            model.config,
            description["model"]["places"],
            model.tokenizer,
            model.sampling,
            model.name,
            model.origin,
            tuple(sorted(folders)),
        )

    @property
    def world(self) -> int:
        return self.layout.world_size

    @property
    def asked(self) -> ParallelConfig | None:
        return self.layout if self.ranks is None else None

    def require_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            InputError: there is none.
        """
        return self.tokenizer if self.model is None else self.model.require_tokenizer()

    def check_ranks(self, nproc: int) -> None:
        """Refuse a number of processes on this host for which this folder has too few parts.

        Raises:
            InputError: says what fits.
        """
        if not 1 <= nproc <= self.world:
            made = "exported for" if self.ranks is not None else "to be shared by"
            raise InputError(
                f"{self.source}: {made} {self.world} processes, so --nproc {nproc} must be from 1 to "
                f"{self.world}; agents on other hosts bring the rest"
            )
        if self.ranks is not None and (0 not in self.ranks or len(self.ranks) < nproc):
            raise InputError(
                f"{self.source}: holds the ranks {', '.join(map(str, self.ranks))}; {nproc} on this host, "
                "rank 0 among them, need a folder each: copy them here"
            )

    @property
    def order(self) -> dict[str, Any]:
        """What a rank needs to know beside its number."""
        return {
            "tensor": self.layout.tensor,
            "pipeline": self.layout.pipeline,
            "slots": self.slots,
            "dtype": self.dtype,
        }

    def runner(self, mesh: Mesh, slots: int, dtype: str) -> Runner:
        """The network of one rank of ``mesh``, in a process that has joined the others of its stage.

        Args:
            slots, dtype: as the front end has them; a bundle has its own.

        Raises:
            InputError: this part is damaged, or the memory does not suffice.
        """
        if self.model is None:
            folder = rank_folders(self.source)[mesh.rank]
            return load_runner(folder, read_bundle(folder))[0]
        check(
            f"{self.name}: a part for one of {mesh.parallel.world_size} processes",
            part_need(self.config, slots, mesh, dtype),
        )
        return network_runner(self.model.require_weights("opened"), self.config, slots, mesh, dtype)


def split(world: int, pipeline: int) -> ParallelConfig:
    """``world`` processes as pipeline stages × tensor-parallel ranks.

    Raises:
        InputError: so many stages do not divide them.
    """
    if pipeline < 1 or world % pipeline:
        raise InputError(
            f"--pipeline {shown(pipeline)}: {world} process{'es' * (world > 1)} cannot form so many stages of equal "
            "size; it must divide the number of processes"
        )
    return ParallelConfig(tensor=world // pipeline, pipeline=pipeline)


def in_words(layout: ParallelConfig) -> str:
    """``one process``, ``4 processes``, ``4 processes (2 pipeline stages)``."""
    if layout.world_size == 1:
        return "one process"
    stages = f" ({layout.pipeline} pipeline stages)" if layout.pipeline > 1 else ""
    return f"{layout.world_size} processes{stages}"


def options(layout: ParallelConfig) -> str:
    """The options of ``export`` that make it."""
    return f"--tensor-parallel {layout.tensor}" + (f" --pipeline {layout.pipeline}" if layout.pipeline > 1 else "")
