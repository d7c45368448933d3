"""A model that several processes share, as each of them opens it for itself.

It is a bundle that was exported for so many processes, one folder for each, or anything with weights, of which every
process reads its slices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pangu_lab.config import ModelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export.bundle import GROUP
from pangu_lab.export.loading import load_runner, rank_folders, read_bundle
from pangu_lab.generate.runner import Runner, default_slots, network_runner
from pangu_lab.loading import Model
from pangu_lab.memory import Need, check, generation_need


@dataclass(frozen=True)
class SharedModel:
    """Such a model.

    Attributes:
        source: the folder.
        world: how many processes share it. ``asked``: the same where the model itself does not say it, else None.
        identity: equal where the same model was opened.
        slots: of the key-value cache.
        ranks: those that this folder holds; None for all.
    """

    source: Path
    world: int
    identity: str
    config: ModelConfig
    slots: int
    tokenizer: Any
    sampling: SamplingConfig
    name: str
    origin: str
    ranks: Optional[tuple[int, ...]] = None
    model: Optional[Model] = None

    @classmethod
    def open(cls, source: Path | str, world: Optional[int] = None, tokenizer: Optional[str] = None) -> SharedModel:
        """The model in ``source``, for ``world`` processes.

        Raises:
            InputError: no model there, or one that so many processes cannot share.
        """
        from pangu_lab.generate.network import check_group  # imports MindSpore
        from pangu_lab.parallel.collectives import Group

        model = Model.load(source, tokenizer)
        if model.bundle is not None:
            return cls._of_bundle(model, world)
        check_group(model.config, Group(GROUP, tuple(range(world or 1)), 0))
        weights = model.require_weights("opened")
        manifest = weights.checkpoint.folder / "manifest.json"
        return cls(weights.checkpoint.folder, world or 1, hashlib.sha256(manifest.read_bytes()).hexdigest()[:16],
                   model.config, default_slots(model.config), model.tokenizer, model.sampling, model.name, model.origin,
                   model=model)

    @classmethod
    def _of_bundle(cls, model: Model, world: Optional[int]) -> SharedModel:
        description = read_bundle(model.bundle)
        parallel = description.get("parallel", {"tensor": 1, "export_id": ""})
        if world is not None and world != parallel["tensor"]:
            made = "one process" if parallel["tensor"] == 1 else f"{parallel['tensor']} processes"
            raise InputError(f"{model.bundle}: exported for {made}; export it with --tensor-parallel {world} first, or "
                             "give the run that it was made from")
        folders = rank_folders(model.bundle)
        for rank, folder in folders.items():
            held = read_bundle(folder).get("parallel", {})
            if (held.get("rank"), held.get("export_id")) != (rank, parallel["export_id"]):
                raise InputError(f"{folder}: this is rank {held.get('rank')} of another export than {model.bundle}'s first: "
                                 "copy the ranks of one export")
        return cls(model.bundle, parallel["tensor"], parallel["export_id"], model.config, description["model"]["places"],
                   model.tokenizer, model.sampling, model.name, model.origin, tuple(sorted(folders)))

    @property
    def asked(self) -> Optional[int]:
        return self.world if self.ranks is None else None

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
            raise InputError(f"{self.source}: {made} {self.world} processes, so --nproc {nproc} must be from 1 to "
                             f"{self.world}; agents on other hosts bring the rest")
        if self.ranks is not None and (0 not in self.ranks or len(self.ranks) < nproc):
            raise InputError(f"{self.source}: holds the ranks {', '.join(map(str, self.ranks))}; {nproc} on this host, "
                             "rank 0 among them, need a folder each: copy them here")

    def runner(self, rank: int, world: int) -> Runner:
        """The network of one rank, in a process that has joined the others of ``GROUP``.

        Raises:
            InputError: this part is damaged, or the memory does not suffice.
        """
        from pangu_lab.parallel.collectives import Group

        if self.model is None:
            folder = rank_folders(self.source)[rank]
            return load_runner(folder, read_bundle(folder))[0]
        check(f"{self.name}: a part for one of {world} processes", shared_need(self.config, self.slots, world))
        weights = self.model.require_weights("opened")
        return network_runner(weights, self.config, self.slots, Group(GROUP, tuple(range(world)), rank))


def shared_need(config: ModelConfig, slots: Optional[int], world: int) -> Need:
    """Memory of one of so many processes: each has its part of weights and cache."""
    need = generation_need(config, slots)
    return Need({name: amount // world if name in ("weights", "key-value cache") else amount
                 for name, amount in need.parts.items()})
