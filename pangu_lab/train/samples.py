"""Samples while a run learns: at every evaluation the model continues the texts of ``train.sample_prompts``.

The training process generates with the network of inference, over a copy of the weights that every evaluation renews.
Prompts and seeds are the same each time. Training is not touched: no weight, no random number, no position in the data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine, generate
from pangu_lab.generate.runner import network_runner
from pangu_lab.memory import check, generation_need
from pangu_lab.model.pangu import Weights
from pangu_lab.model.parameters import OneByOne
from pangu_lab.tokenizer import Tokenizer
from pangu_lab.train.run_folder import RunFolder


class Samples:
    """Writes ``sample`` events.

    Args:
        tokenizer: of the data set; None where there are no prompts.
    """

    def __init__(self, config: RunConfig, run: RunFolder, tokenizer: Tokenizer | None):
        self.config, self.run, self.tokenizer = config, run, tokenizer
        self.prompts = config.train.sample_prompts
        self._engine: Engine | None = None

    def write(self, step: int, weights: Weights) -> None:
        """Continue the prompts with the weights of this step; nothing where the run cannot: then a warning says why."""
        if not self.prompts:
            return
        try:
            engine = self._engine_of(weights)
        except InputError as error:
            self.prompts = ()
            self.run.warn(f"no samples are written: {error}")
            return
        for number, prompt in enumerate(self.prompts):
            chosen = replace(
                self.config.sampling,
                max_new_tokens=self.config.train.sample_tokens,
                min_new_tokens=0,
                num_return_sequences=1,
                num_beams=1,
                echo=False,
                logprobs=None,
                seed=self.config.train.seed + number,
            )
            self.run.event("sample", step=step, prompt=prompt, text=generate(engine, prompt, chosen).text)

    def _engine_of(self, weights: Weights) -> Engine:
        model = self.config.model
        if self.config.parallel.world_size > 1:
            raise InputError("several processes share the weights; generate from a checkpoint of the run instead")
        values = OneByOne(weights.parameters, lambda name: weights(name).asnumpy().astype(np.float32))
        if self._engine is None:
            check("writing samples", generation_need(model), generation_need)
            self._engine = Engine(network_runner(values, model), self.tokenizer)
        else:
            self._engine.runner.renew(values)
        return self._engine
