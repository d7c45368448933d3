"""A model in two lines, wherever it lies: a run, a checkpoint, a converted release, or an exported bundle.

    lm = PanguLM.load("runs/first")
    print(lm.generate("春天来了，", max_new_tokens=40, temperature=0.8))

``PanguLM`` is a thin front of what the library does anyway: ``generate`` and ``stream`` are those of
``pangu_lab.generate``, ``score`` is that of ``pangu_lab.evaluate``. All of them, and ``logits``, share one copy of
the weights and one compiled network. ``attention`` looks inside, which a compiled network does not allow: it reads the
weights again and runs them one operation after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union, overload

import numpy as np

from pangu_lab.config import ModelConfig, RunConfig, SamplingConfig, apply_overrides
from pangu_lab.errors import InputError, nearest
from pangu_lab.evaluate.engine import EngineScorer
from pangu_lab.evaluate.scoring import Score
from pangu_lab.export.loading import DESCRIPTION, Bundle, load_bundle
from pangu_lab.generate.engine import CompletionStream, Engine, generate, generate_many, stream
from pangu_lab.generate.loading import load_runner
from pangu_lab.generate.runner import ONE_AT_A_TIME, Runner
from pangu_lab.generate.sampling import Stage, explain
from pangu_lab.generate.sequence import Completion, SequenceInProgress, prepare_prompt
from pangu_lab.model.trace import Attention, attention
from pangu_lab.tokenizer import Tokenizer


class PanguLM:
    """A model ready to write, to score, and to be looked into. Made by ``load``.

    Attributes:
        config: the network's sizes.
        tokenizer: None where the folder keeps none; only ``logits`` then works.
        sampling: what ``generate`` uses when it is told nothing.
        name: for people.
    """

    def __init__(self, runner: Runner, config: ModelConfig, tokenizer: Optional[Tokenizer],
                 sampling: SamplingConfig = SamplingConfig(), name: str = "model",
                 engine: Optional[Engine] = None, weights: Optional[Mapping[str, np.ndarray]] = None) -> None:
        self.runner, self.config, self.tokenizer, self.sampling, self.name = runner, config, tokenizer, sampling, name
        self._weights = weights
        if engine is None and tokenizer is not None:
            engine = Engine(runner, tokenizer, sampling, name)
        self._engine = engine

    @classmethod
    def load(cls, folder: Union[str, Path], tokenizer: Optional[str] = None,
             places: Optional[int] = None, int8: bool = False) -> PanguLM:
        """The model in ``folder``.

        Args:
            folder: a run (its newest whole checkpoint), a checkpoint, a release that ``pangu-lab convert`` wrote, or
                a bundle.
            tokenizer: instead of the one kept in the folder: "pangu", or a folder.
            places: positions of key-value cache over all sequences; by default one whole sequence, at least 1024.
            int8: round every weight of a product to a byte with one factor for each output: decode steps read a
                quarter of the memory. Needs the C kernels.

        Raises:
            InputError: no model there, a damaged one, a tokenizer that does not belong to it, or no kernels for int8.
        """
        found = cls._load(folder, tokenizer, places)
        if int8:
            found.runner.use_int8()
        return found

    @classmethod
    def _load(cls, folder: Union[str, Path], tokenizer: Optional[str], places: Optional[int]) -> PanguLM:
        if (Path(folder) / DESCRIPTION).is_file():
            if tokenizer is not None or places is not None:
                raise InputError(f"{folder}: a bundle has its own tokenizer and cache: leave out tokenizer and places")
            return cls._of_bundle(load_bundle(folder))
        runner, weights, config, found, name = load_runner(folder, tokenizer, places)
        return cls(runner, config.model, found, config.sampling, name, weights=weights)

    @classmethod
    def _of_bundle(cls, bundle: Bundle) -> PanguLM:
        return cls(bundle.runner, bundle.config, bundle.tokenizer, bundle.sampling, bundle.name, bundle)

    @property
    def engine(self) -> Engine:
        """What generates; the functions of ``pangu_lab.generate`` take it.

        Raises:
            InputError: there is no tokenizer.
        """
        if self._engine is None:
            raise InputError(f"{self.name}: no tokenizer is kept with this model; load it with tokenizer=: "
                             "'pangu' for the published releases, or a tokenizer's folder")
        return self._engine

    @property
    def scorer(self) -> EngineScorer:
        """What scores; ``pangu_lab.evaluate.evaluate`` takes it as its source."""
        return EngineScorer(self.engine, name=self.name)

    @overload
    def generate(self, prompt: str, explain: bool = ..., **sampling: Any) -> Completion: ...

    @overload
    def generate(self, prompt: Sequence[str], explain: bool = ..., **sampling: Any) -> list[Completion]: ...

    def generate(self, prompt, explain=False, **sampling):
        """Continue a prompt, or each of several.

        Args:
            prompt: a text, or a list of texts, which are then written several at a time.
            explain: keep in ``Completion.explained``, for every token, the distribution after each step of the
                sampling chain, the model's own first.
            sampling: any field of ``SamplingConfig``, such as max_new_tokens, temperature, top_p, stop, seed; over
                the model's own. Or ``sampling=``, a whole ``SamplingConfig``.

        Returns:
            A ``Completion``, whose ``str`` is its text; a list of them for several prompts.

        Raises:
            InputError: a setting is unknown or out of its range, or there is no tokenizer.
        """
        chosen = self._sampling(sampling)
        if isinstance(prompt, str):
            return generate(self.engine, prompt, chosen, explain)
        return generate_many(self.engine, list(prompt), chosen, explain=explain)

    def stream(self, prompt: str, **sampling: Any) -> CompletionStream:
        """Continue a prompt, giving the text piece by piece; settings as ``generate``."""
        return stream(self.engine, prompt, self._sampling(sampling))

    def logits(self, ids: Any) -> np.ndarray:
        """What the network says after every token.

        Args:
            ids: (batch, seq) integers; each row is a text of its own that begins at position 0.

        Returns:
            (batch, seq, vocab) float32.

        Raises:
            InputError: another shape, more tokens than the model has positions, or an id outside the vocabulary.
        """
        ids = self._checked(np.asarray(ids))
        batch, seq = ids.shape
        group = max(1, self.runner.pool.slots // seq)
        if self._engine is not None:
            self._engine.make_room(min(batch, group) * seq)
        parts = [self._logits(ids[start:start + group]) for start in range(0, batch, group)]
        return np.concatenate(parts)

    def explain(self, prompt: str, **sampling: Any) -> list[Stage]:
        """How the token after ``prompt`` would be chosen: the distribution after each step of the sampling chain.

        Settings as ``generate``. The first stage is the model's own distribution.
        """
        chosen, engine = self._sampling(sampling), self.engine
        read = prepare_prompt(prompt, engine.tokenizer, chosen, engine.max_length)
        logits = engine.prefill(read.ids)[:engine.tokenizer.vocab_size]
        engine.reset()
        return explain(logits, chosen, SequenceInProgress(read, engine.tokenizer, chosen, 0).history())

    def attention(self, text: str) -> Attention:
        """Where every head of every layer looks in ``text``, the query layer's too; for small models and short texts.

        Returns:
            Tokens, layers, and probabilities (layers, heads, seq, seq).

        Raises:
            InputError: the model is a bundle, the text is empty or longer than the model's positions, or the memory
                does not suffice.
        """
        if self._weights is None:
            raise InputError(f"{self.name}: an exported bundle cannot be looked into: load the run, checkpoint or "
                             "release that it was made from")
        tokenizer = self.engine.tokenizer
        ids = tokenizer.encode(text)
        if not ids:
            raise InputError("the text is empty: attention needs a token at least")
        try:
            with ONE_AT_A_TIME:
                return attention(self._weights, self.config, ids, [tokenizer.piece(index) for index in ids])
        except OSError as error:
            raise InputError(f"{self.name}: its weights cannot be read any more, load the model again ({error})") from None

    def score(self, context: str, continuation: str) -> Score:
        """How probable ``continuation`` is after ``context``: its log-probability in nats, tokens, and mean.

        With an empty context the first token, which nothing predicts, is read and not scored.

        Raises:
            InputError: there is no tokenizer.
        """
        return self.scorer.loglikelihood([(context, continuation)])[0]

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"ids must be whole numbers in (batch, seq), not {ids.dtype} in {ids.shape}")
        if ids.shape[1] > self.runner.max_length:
            raise InputError(f"ids has {ids.shape[1]} tokens a row, the model holds {self.runner.max_length}")
        if ids.min() < 0 or ids.max() >= self.runner.vocab_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"token {wrong} is outside the vocabulary: the model has 0 to "
                             f"{self.runner.vocab_size - 1}")
        return ids

    def _logits(self, ids: np.ndarray) -> np.ndarray:
        """As ``logits``, for as many rows as the cache holds."""
        taken = self.runner.pool.take(ids.size)
        try:
            places = np.array(taken).reshape(ids.shape)
            positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            rows = self.runner.run(ids, positions, places, places, np.arange(ids.size))
        finally:
            self.runner.pool.give_back(taken)
        return rows.reshape(*ids.shape, -1)

    def _sampling(self, given: dict[str, Any]) -> SamplingConfig:
        base = given.pop("sampling", None) or self.sampling
        known = SamplingConfig.__dataclass_fields__
        for key in given:
            if key not in known:
                raise InputError(f"unknown setting '{key}'{nearest(key, known)}; there are {', '.join(known)}")
        changes = {f"sampling.{key}": value for key, value in given.items()}
        return apply_overrides(RunConfig(sampling=base), changes).sampling

    def __repr__(self) -> str:
        return (f"PanguLM({self.name}: {self.config.num_layers} layers × {self.config.hidden_size}, "
                f"{self.config.num_parameters:,} parameters)")
