"""A model in two lines: a run, a checkpoint, a converted release, or an exported bundle.

    lm = PanguLM.load("verse")
    print(lm.generate("《春夜》\\n", max_new_tokens=80, temperature=0.8))

``PanguLM`` is a thin front end: ``generate`` and ``stream`` are those of ``pangu_lab.generate``, ``score`` is that of
``pangu_lab.evaluate``. All of them, and ``logits``, share one copy of the weights and one compiled network.
``attention`` needs values that a compiled network does not expose: it reads the weights again and runs them one
operation after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from pangu_lab.cluster import Cluster, ClusterRunner, Places, find_places
from pangu_lab.config import RunConfig, SamplingConfig, apply_overrides
from pangu_lab.errors import InputError, nearest
from pangu_lab.evaluate.engine import EngineScorer
from pangu_lab.evaluate.scoring import Score
from pangu_lab.generate.constraint import Constraint
from pangu_lab.generate.engine import CompletionStream, generate, generate_many, stream
from pangu_lab.generate.runner import ONE_AT_A_TIME
from pangu_lab.generate.sampling import Stage, explain
from pangu_lab.generate.sequence import Completion, SequenceInProgress, prepare_prompt
from pangu_lab.interpret.activations import Attention, attention
from pangu_lab.loading import Model, find
from pangu_lab.ranges import shown


class PanguLM(Model):
    """A model ready to generate, to score, and to be inspected. ``PanguLM.load`` opens one; see ``Model``."""

    _cluster: Cluster | None = None

    @classmethod
    def load(
        cls,
        source: str | Path,
        tokenizer: str | None = None,
        slots: int | None = None,
        dtype: str | None = None,
        processes: int | Places = 1,
        log_dir: str | Path | None = None,
        pipeline: int | None = None,
    ):
        """As ``Model.load``; over several processes if asked, which share weights and work (tensor and pipeline
        parallelism). Then ``dtype`` is "float32", the default, or "float16".

        Args:
            processes: how many on this machine, or ``pangu_lab.cluster.find_places`` of hosts or a rank table. They end
                with ``close``, or with this process.
            pipeline: the stages that the processes form, one after the other in the network; a number that divides theirs.
            log_dir: a folder for what they print.

        Raises:
            InputError: as ``Model.load``; or so many processes cannot share this model.
        """
        if isinstance(processes, int):
            if processes == 1 and pipeline in (None, 1):
                return super().load(source, tokenizer, slots, dtype)
            processes = find_places(processes, pipeline=pipeline)
        elif pipeline is not None:
            raise InputError("pipeline= goes with a number of processes; of places it is that of find_places")
        if not isinstance(processes, Places):
            raise InputError(f"processes={shown(processes, repr)} must be a whole number, or what find_places gives")
        cluster = processes.open(find(source), tokenizer, log_dir, slots, dtype)
        shared = cluster.shared
        made = cls(
            shared.config, shared.tokenizer, shared.sampling, shared.name, shared.origin, runner=ClusterRunner(cluster)
        )
        made._cluster = cluster
        weakref.finalize(made, cluster.close)
        return made

    def close(self) -> None:
        """End the processes, if the model has any."""
        if self._cluster is not None:
            self._cluster.close()

    @property
    def scorer(self) -> EngineScorer:
        """The scorer that ``pangu_lab.evaluate.evaluate`` takes as its source."""
        return EngineScorer(self.engine, name=self.name)

    @overload
    def generate(
        self, prompt: str, explain: bool = ..., constraint: Constraint | None = ..., **sampling: Any
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: Sequence[str], explain: bool = ..., constraint: Constraint | None = ..., **sampling: Any
    ) -> list[Completion]: ...

    def generate(self, prompt, explain=False, constraint=None, **sampling):
        """Continue a prompt, or each of several.

        Args:
            prompt: a text, or a list of texts, which are then written several at a time.
            explain: keep in ``Completion.explained``, for every token, the distribution after each step of the
                sampling chain, the model's own first.
            constraint: what the text is held to, such as ``pangu_lab.generate.Verse(lines=4, length=7, rhyme=True)``.
            sampling: any field of ``SamplingConfig``, such as max_new_tokens, temperature, top_p, stop, seed; over
                the model's own. Or ``sampling=``, a whole ``SamplingConfig``.

        Returns:
            A ``Completion``, whose ``str`` is its text; a list of them for several prompts.

        Raises:
            InputError: a setting is unknown or out of its range, or there is no tokenizer.
        """
        chosen = self._sampling(sampling)
        if isinstance(prompt, str):
            return generate(self.engine, prompt, chosen, explain, constraint)
        return generate_many(self.engine, list(prompt), chosen, explain=explain, constraint=constraint)

    def stream(self, prompt: str, constraint: Constraint | None = None, **sampling: Any) -> CompletionStream:
        """Continue a prompt, giving the text piece by piece; settings as ``generate``."""
        return stream(self.engine, prompt, self._sampling(sampling), constraint)

    def logits(self, ids: Any) -> np.ndarray:
        """The logits of the network after every token.

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
        if self.tokenizer is not None:
            self.engine.release_prefix(min(batch, group) * seq)
        parts = [self._logits(ids[start : start + group]) for start in range(0, batch, group)]
        return np.concatenate(parts)

    def explain(self, prompt: str, constraint: Constraint | None = None, **sampling: Any) -> list[Stage]:
        """How the token after ``prompt`` would be chosen: the distribution after each step of the sampling chain.

        Settings as ``generate``. The first stage is the model's own distribution.
        """
        chosen, engine = self._sampling(sampling), self.engine
        read = prepare_prompt(prompt, engine.tokenizer, chosen, engine.max_length)
        begun = SequenceInProgress(read, engine.tokenizer, chosen, 0, constraint=constraint)
        logits = engine.prefill(read.ids)[: engine.tokenizer.vocab_size]
        engine.reset()
        return explain(logits, chosen, begun.history())

    @overload
    def attention(self, text: str) -> Attention: ...

    @overload
    def attention(self, text: Sequence[str]) -> list[Attention]: ...

    def attention(self, text):
        """The attention of every head of every layer over ``text``, with the query layer; for small models and texts.

        Args:
            text: a text, or a list of texts, which are then looked at together.

        Returns:
            Tokens, layers, and probabilities (layers, heads, seq, seq); a list of them for several texts.

        Raises:
            InputError: the model is a bundle or over several processes, a text is empty or longer than the model's
                positions, or the memory does not suffice.
        """
        if self._cluster is not None:
            raise InputError(
                f"{self.name}: several processes have the weights, attention needs them in this one: load it "
                "without processes="
            )
        weights, tokenizer = self.require_weights("looked into"), self.require_tokenizer()
        texts = [tokenizer.encode(one) for one in ([text] if isinstance(text, str) else text)]
        if not texts or not all(texts):
            raise InputError("the text is empty: attention needs at least one token")
        try:
            with ONE_AT_A_TIME:
                found = attention(
                    weights, self.config, texts, [[tokenizer.piece(index) for index in ids] for ids in texts]
                )
        except OSError as error:
            raise InputError(
                f"{self.name}: its weights cannot be read any more, load the model again ({error})"
            ) from None
        return found[0] if isinstance(text, str) else found

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
            raise InputError(
                f"token {wrong} is outside the vocabulary: the model has 0 to {self.runner.vocab_size - 1}"
            )
        return ids

    def _logits(self, ids: np.ndarray) -> np.ndarray:
        """As ``logits``, for as many rows as the cache holds."""
        taken = self.runner.pool.take(ids.size)
        try:
            slots = np.array(taken).reshape(ids.shape)
            positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            rows = self.runner.run(ids, positions, slots, slots, np.arange(ids.size))
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
        return (
            f"PanguLM({self.name}: {self.config.num_layers} layers × {self.config.hidden_size}, "
            f"{self.config.num_parameters:,} parameters)"
        )
