"""One way to open any model: a run, a checkpoint, a converted release, a bundle, or the name of one.

The command line, notebooks (through ``PanguLM``), evaluation, export and the server all open models here.
Opening reads settings and tokenizer, and checks the folder; the network is made when it is first needed, from
weights that are read one by one, so that memory holds them once. A bundle runs without model code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pangu_lab.checkpoint.best import MARK, named
from pangu_lab.checkpoint.source import StoredWeights, resolve_checkpoint, tokenizer_folder
from pangu_lab.config import ModelConfig, RunConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export.description import DESCRIPTION
from pangu_lab.export.loading import (
    dtype_of,
    load_bundle,
    load_bundle_tokenizer,
    model_config,
    read_bundle,
    sampling_of,
)
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.native import has_kernels
from pangu_lab.generate.runner import DTYPES, HALF_DTYPES, Runner, kernel_runner, network_runner
from pangu_lab.memory import check, generation_need
from pangu_lab.ranges import shown
from pangu_lab.shipped import shipped_folder, shipped_names
from pangu_lab.tokenizer import Tokenizer, load_tokenizer

FOLDERS = ("runs", "exports")  # where a bare name is looked for


class Model:
    """A model that has been opened.

    Args:
        runner: the network, if already made.
        bundle: the folder of an exported model; its graphs are the network.
        slots: of the key-value cache, over all sequences; by default one whole sequence, at least 1024.
        int8: round every product's weights to int8 with one scale per output: decode steps read a quarter of
            the memory. Needs the C kernels.
        dtype: of the weights in memory: "float32"; or "float16", "bfloat16" or "int8" (rounded, one scale per output),
            for which the C kernels are needed: a half or a quarter of the memory, and of the reading in a decode step.
            By default float16 where they are stored so and the kernels can read them, which gives the same text.

    Attributes:
        config: the network's sizes.
        tokenizer: None if the folder has none; then only logits are available.
        sampling: the generation defaults.
        name: a display name. ``origin`` also names the checkpoint, as in "first/step-00000400".
        weights: by released name, read when they are asked for; None for a bundle.
        settings: the run's, of a run or checkpoint.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        sampling: SamplingConfig = SamplingConfig(),
        name: str = "model",
        origin: str = "",
        weights: Mapping[str, np.ndarray] | None = None,
        settings: RunConfig | None = None,
        runner: Runner | None = None,
        bundle: Path | None = None,
        slots: int | None = None,
        dtype: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {shown(dtype, repr)}: there are {', '.join(DTYPES)}")
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model {config.vocab_size}: "
                "give the tokenizer that the model was trained with"
            )
        self.config, self.tokenizer, self.sampling, self.name, self.origin = (
            config,
            tokenizer,
            sampling,
            name,
            origin or name,
        )
        self.weights, self.settings, self.bundle = weights, settings, bundle
        self._runner, self._engine, self._slots, self._dtype = runner, None, slots, dtype

    @classmethod
    def load(cls, source: str | Path, tokenizer: str | None = None, slots: int | None = None, dtype: str | None = None):
        """The model in ``source``.

        Args:
            source: a run (its newest whole checkpoint; its best with ``@best`` behind it), a checkpoint, a release that
                ``pangu-lab convert`` wrote, a bundle; or a name, of a folder below ``runs`` or ``exports`` or of a model
                that comes with the lab.
            tokenizer: instead of the one kept in the folder: "pangu", or a folder.
            slots: of the key-value cache, over all sequences; by default one whole sequence, at least 1024.
            dtype: see above.

        Raises:
            InputError: no model there, a damaged one, a tokenizer that does not belong to it, or no kernels for ``dtype``.
        """
        folder = find(source)
        if (folder / DESCRIPTION).is_file() or any(folder.glob(f"rank_*/{DESCRIPTION}")):
            if tokenizer is not None or slots is not None:
                raise InputError(f"{source}: a bundle has its own tokenizer and cache: leave out tokenizer and places")
            return cls._of_bundle(folder, dtype)
        checkpoint = resolve_checkpoint(folder)
        name = Path(source).name if str(source).endswith(MARK) else folder.resolve().name
        settings, place = checkpoint.config, checkpoint.folder.resolve()
        of_run = f"{place.parent.parent.name}/{place.name}" if place.parent.name == "checkpoints" else place.name
        return cls(
            settings.model,
            _tokenizer(folder, tokenizer, settings),
            settings.sampling,
            name,
            of_run,
            StoredWeights(checkpoint, settings),
            settings,
            slots=slots,
            dtype=dtype,
        )

    @classmethod
    def _of_bundle(cls, folder: Path, dtype: str | None):
        description = read_bundle(folder)
        held = dtype_of(description)
        if dtype not in (None, held, "int8"):
            raise InputError(
                f"{folder}: a bundle exported with {held} weights: leave out dtype {dtype}, or export it again with "
                f"`--dtype {dtype}`"
            )
        first = folder if (folder / DESCRIPTION).is_file() else min(folder.glob(f"rank_*/{DESCRIPTION}")).parent
        return cls(
            model_config(description),
            load_bundle_tokenizer(first, description),
            sampling_of(description),
            description["name"],
            bundle=folder,
            dtype=dtype or held,
        )

    @property
    def runner(self) -> Runner:
        """The network, ready to be called; compiled at the first use.

        Raises:
            InputError: the memory does not suffice, or there are no kernels for ``dtype``.
        """
        if self._runner is None:
            if self.bundle is not None:
                self._engine = load_bundle(self.bundle)
                self._runner = self._engine.runner
                if self._dtype == "int8":
                    self._runner.use_int8()
            else:
                check(
                    f"{self.name}: generating", generation_need(self.config, self._slots, self.dtype), generation_need
                )
                self._runner = (
                    network_runner(self.weights, self.config, self._slots)
                    if self.dtype == "float32"
                    else kernel_runner(self.weights, self.config, self.dtype, self._slots)
                )
        return self._runner

    @property
    def dtype(self) -> str:
        """Of the weights in memory, as it was asked for, or as they are stored."""
        if self._dtype is not None:
            return self._dtype
        half = getattr(self.weights, "dtype", "float32") in HALF_DTYPES
        return self.weights.dtype if half and has_kernels(self.config) else "float32"

    @property
    def engine(self) -> Engine:
        """The engine that the functions of ``pangu_lab.generate`` take. For a bundle it is a ``Bundle``.

        Raises:
            InputError: there is no tokenizer.
        """
        self.require_tokenizer()
        runner = self.runner
        if self._engine is None:
            self._engine = Engine(runner, self.tokenizer, self.sampling, self.name)
        return self._engine

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: there is none.
        """
        if self.tokenizer is None:
            raise InputError(
                f"{self.name}: no tokenizer is kept with this model; load it with tokenizer= (--tokenizer): "
                "'pangu' for the published releases, or a tokenizer's folder"
            )
        return self.tokenizer

    def require_weights(self, purpose: str) -> Mapping[str, np.ndarray]:
        """The weights; ``purpose`` completes "a bundle cannot be …".

        Raises:
            InputError: it is a bundle.
        """
        if self.weights is None:
            raise InputError(
                f"{self.name}: an exported bundle cannot be {purpose}: load the run, checkpoint or release that "
                "it was made from"
            )
        return self.weights


def find(source: str | Path) -> Path:
    """The folder that ``source`` names: itself, or one of that name below ``runs`` or ``exports``; with ``@best`` behind
    it, the best checkpoint of that run. Last, a model that comes with the lab (``verse``).

    Raises:
        InputError: there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if (shipped := shipped_folder(source)) is not None and not any(
        (Path(parent) / folder).is_dir() for parent in FOLDERS
    ):
        return shipped
    run = Path(str(source).removesuffix(MARK))
    if run.is_dir() and run != folder:
        return named(folder)
    if len(folder.parts) == 1:
        for parent in FOLDERS:
            if (Path(parent) / run).is_dir():
                return named(Path(parent) / folder)
        raise InputError(
            f"{source}: no such folder, here or in {' or '.join(FOLDERS)}; give a run (runs/NAME), a checkpoint, "
            f"a bundle, or a model that comes with the lab ({', '.join(shipped_names())})"
        )
    raise InputError(f"{source}: no such folder; give a run (runs/NAME), a checkpoint or a bundle")


def _tokenizer(folder: Path, name: str | Path | Tokenizer | None, settings: RunConfig) -> Tokenizer | None:
    """The one that is named, or else the one kept with a run or checkpoint, whose special tokens were chosen with the
    data."""
    if isinstance(name, Tokenizer):
        return name
    if name is not None:
        return load_tokenizer(name)
    try:
        kept = tokenizer_folder(folder)
    except InputError:
        return None
    return load_tokenizer(kept, settings.tokenizer.eod, settings.tokenizer.pad)
