"""From a folder to a compiled network: the weights are read one by one, so that memory holds them once.

A bundle runs without model code, so this module, which every engine's package imports, asks for it only when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import numpy as np

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.runner import Runner, network_runner
from pangu_lab.memory import check, generation_need
from pangu_lab.tokenizer import Tokenizer, load_tokenizer


Loaded = tuple[Runner, Mapping[str, np.ndarray], RunConfig, Optional[Tokenizer], str]


def load_runner(folder: Path | str, tokenizer: Optional[str] = None, places: Optional[int] = None) -> Loaded:
    """(network, its weights as stored, settings, tokenizer, name) of a run's newest checkpoint, or of one checkpoint.

    The tokenizer is the one kept there unless another is named, and None where there is neither.

    Raises:
        InputError: no checkpoint there, or a tokenizer that does not belong to it.
    """
    from pangu_lab.checkpoint.source import open_weights

    weights, config = open_weights(folder)
    found = _tokenizer(folder, tokenizer, config)
    need = generation_need(config.model, places)
    check(f"{folder}: generating", need, generation_need)
    runner = network_runner(weights, config.model, places)
    return runner, weights, config, found, Path(folder).resolve().name


def _tokenizer(folder: Path | str, name: Optional[str], config: RunConfig) -> Optional[Tokenizer]:
    from pangu_lab.checkpoint.source import tokenizer_folder

    if name is not None:
        found = load_tokenizer(name)
    else:
        try:
            place = tokenizer_folder(folder)
        except InputError:
            return None
        found = load_tokenizer(place, config.tokenizer.eod, config.tokenizer.pad)
    if found.vocab_size > config.model.vocab_size:
        raise InputError(f"the tokenizer has {found.vocab_size} pieces and the model {config.model.vocab_size}: "
                         "give the tokenizer that the model was trained with")
    return found


def load_engine(folder: Path | str, tokenizer: Optional[str] = None, places: Optional[int] = None) -> Engine:
    """An engine over the newest checkpoint of a run, or over one checkpoint.

    Args:
        folder: ``runs/NAME`` or a checkpoint folder.
        tokenizer: another tokenizer than the one kept with the run, whose choice of eod and pad was made with the
            data.

    Raises:
        InputError: no checkpoint or tokenizer there, or they do not belong together.
    """
    from pangu_lab.checkpoint.source import tokenizer_folder

    if tokenizer is None:
        tokenizer_folder(folder)  # says what is missing before anything large is read
    runner, _, config, found, name = load_runner(folder, tokenizer, places)
    assert found is not None
    return Engine(runner, found, config.sampling, name)
