"""Every way through the network gives the numbers of one reference: a table of paths and presets, each cell a test.

The reference is ``reference.py``, which shares no code with the library; ``tests/model/test_pangu.py`` holds the library
to a second, foreign implementation. Paths that write see one document from position 0, paths that measure see records of
several.
"""

from __future__ import annotations

from functools import cached_property

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.config import ModelConfig
from pangu_lab.evaluate.scoring import LocalScorer
from pangu_lab.evaluate.split import TokenPair
from pangu_lab.export import export_bundle, load_bundle
from pangu_lab.generate import network_runner
from pangu_lab.interpret.activations import trace
from pangu_lab.launch import launch
from pangu_lab.model.pangu import PanguLogits, PanguLoss, PanguStage, Parts, Weights
from pangu_lab.ops.native.cells import kernels_for
from pangu_lab.ops.portable import Portable
from pangu_lab.tokenizer import load_tokenizer
from tests.equivalence.reference import (
    CONFIGS,
    log_softmax,
    reference_logits,
    reference_probabilities,
    rounded_to_bytes,
)
from tests.generate.fakes import random_weights

LENGTH = 24
CLOSE = 5e-5  # of logits up to 30: fp32 sums in another order


class Model:
    """Random weights of one configuration, texts for it, and what the reference says of them."""

    def __init__(self, config: ModelConfig, tokenizer, folder) -> None:
        ms.set_context(mode=ms.GRAPH_MODE)
        rng = np.random.default_rng(0)
        self.config, self.weights, self.tokenizer, self.folder = config, random_weights(config), tokenizer, folder
        self.ids = rng.integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
        self.straight = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
        self.restarting = np.concatenate([np.arange(9), np.arange(LENGTH - 9)]).astype(np.int32) * np.ones(
            (2, 1), np.int32
        )
        self.labels = rng.integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
        self.counted = rng.random((2, LENGTH)).astype(np.float32)

    @cached_property
    def logits(self):
        """(2, LENGTH, vocab), each row one document."""
        return reference_logits(self.weights, self.config, self.ids, self.straight)

    @cached_property
    def losses(self):
        """Σ weight · −log p(label) of each record of two documents."""
        told = log_softmax(reference_logits(self.weights, self.config, self.ids, self.restarting))
        return -(np.take_along_axis(told, self.labels[..., None], -1)[..., 0] * self.counted).sum(1)

    def runner(self):
        return network_runner(self.weights, self.config, 64)

    @cached_property
    def bundle(self):
        export_bundle(self.weights, self.config, self.tokenizer, self.folder / "bundle", slots=64)
        return load_bundle(self.folder / "bundle")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory, debug_data):
    return Model(CONFIGS[request.param], load_tokenizer(debug_data / "tokenizer"), tmp_path_factory.mktemp("model"))


def stage_of(model: Model, backend=Portable()) -> PanguStage:
    return PanguStage(Parts(model.config, Weights(model.weights), backend=backend, seq_length=LENGTH))


def loss_of(model: Model, backend, gradients: bool) -> float:
    cell = PanguLoss(stage_of(model, backend), gradients)
    samples = np.arange(2, dtype=np.int32)
    return float(cell(*map(Tensor, (model.ids, model.restarting, samples, model.labels, model.counted))).asnumpy())


def by_prompt(runner, ids):
    """(rows, vocab) of a prompt read at once."""
    at = np.arange(len(ids))[None]
    return runner.run(ids[None], at, at, at, np.arange(len(ids)))


def by_steps(runner, ids):
    """The same, one token after the other."""
    at = np.arange(len(ids))[None]
    return np.concatenate(
        [runner.run(ids[None, p : p + 1], at[:, p : p + 1], at[:, p : p + 1], at[:, : p + 1]) for p in range(len(ids))]
    )


def by_batch(runner, ids):
    """(batch, length, vocab): several sequences, a step of all at once, from scattered slots."""
    slots = np.random.default_rng(1).permutation(64)[: ids.size].reshape(ids.shape)
    steps = [
        runner.run(ids[:, p : p + 1], np.full((len(ids), 1), p), slots[:, p : p + 1], slots[:, : p + 1])
        for p in range(ids.shape[1])
    ]
    return np.stack(steps, 1)


def without_kernels(runner):
    runner._native = None
    return runner


def with_kernels(runner):
    if runner._native is None:
        pytest.skip("the decode kernels are for dense models")
    by_prompt(runner, np.arange(3)), by_steps(runner, np.arange(3))  # the first calls are made both ways
    assert runner._native.prompts.value and runner._native.steps.value
    return runner


WRITING = {
    "prompt": lambda runner, model: np.stack([by_prompt(runner, ids) for ids in model.ids]),
    "steps": lambda runner, model: by_steps(runner, model.ids[0])[None],
    "batch": lambda runner, model: by_batch(runner, model.ids),
}


@pytest.mark.parametrize("way", WRITING)
@pytest.mark.parametrize("kind", [without_kernels, with_kernels])
def test_new_tokens_over_the_cache(model, way, kind):
    found = WRITING[way](kind(model.runner()), model)
    np.testing.assert_allclose(found, model.logits[: len(found)], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("way", WRITING)
@pytest.mark.parametrize("kind", [without_kernels, with_kernels])
def test_the_bundle(model, way, kind):
    runner = model.bundle.runner
    native = runner._native
    try:
        found = WRITING[way](kind(runner), model)
    finally:
        runner._native = native
    np.testing.assert_allclose(found, model.logits[: len(found)], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("way", WRITING)
def test_weights_rounded_to_bytes(model, way):
    runner = model.runner()
    if runner._native is None:
        pytest.skip("int8 needs the decode kernels")
    runner.use_int8()
    wanted = reference_logits(rounded_to_bytes(model.weights), model.config, model.ids, model.straight)
    found = WRITING[way](with_kernels(runner), model)
    np.testing.assert_allclose(found, wanted[: len(found)], rtol=0, atol=CLOSE)


def test_whole_records_by_operators(model):
    found = PanguLogits(stage_of(model))(Tensor(model.ids), Tensor(model.straight)).asnumpy()
    np.testing.assert_allclose(found, model.logits, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("backend", ["portable", "kernels"])
def test_the_loss_of_training(model, backend, gradients):
    chosen = Portable() if backend == "portable" else kernels_for(model.config)
    if chosen is None:
        pytest.skip("no C compiler here")
    assert loss_of(model, chosen, gradients) == pytest.approx(model.losses.sum(), rel=2e-6)


def test_the_loss_graph_of_a_bundle(model):
    found, counted = model.bundle.eval_loss(model.ids, model.restarting, model.labels, model.counted)
    np.testing.assert_allclose(found, model.losses, rtol=2e-6)
    np.testing.assert_allclose(counted, model.counted.sum(1), rtol=1e-6)


def test_the_trace(model):
    seen = trace(model.weights, model.config, model.ids)
    np.testing.assert_allclose(seen["logits"], model.logits, rtol=0, atol=CLOSE)
    wanted = reference_probabilities(model.weights, model.config, model.ids[0], model.straight[0])
    names = [name for name in seen if name.endswith(".probabilities")]
    for name, probabilities in zip(names, wanted, strict=True):
        np.testing.assert_allclose(seen[name][0], probabilities, rtol=0, atol=CLOSE)


def test_evaluation_with_a_shared_beginning(model):
    scorer = LocalScorer(model.config, model.weights, model.tokenizer)
    shared, endings = tuple(int(i) for i in model.ids[0][:10]), ((3, 7), (3, 9, 4), (12,))
    scores = scorer.score_tokens([TokenPair((*shared, *ending), 10) for ending in endings])
    for score, ending in zip(scores, endings):
        ids = np.array([[*shared, *ending]])
        told = log_softmax(reference_logits(model.weights, model.config, ids, np.arange(ids.shape[1])[None]))[0]
        wanted = [told[9 + i, index] for i, index in enumerate(ending)]
        np.testing.assert_allclose(score.token_logprobs, wanted, rtol=0, atol=CLOSE)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_two_processes(tmp_path, debug_data, debug_config):
    """Tensor parallel, and with sequence parallelism: the loss of training, and new tokens over the cache."""
    (tmp_path / "run").mkdir()
    for name, config in CONFIGS.items():
        model = Model(config, load_tokenizer(debug_data / "tokenizer"), tmp_path)
        np.savez(
            tmp_path / "run" / f"{name}.npz",
            ids=model.ids,
            restarting=model.restarting,
            labels=model.labels,
            counted=model.counted,
            samples=np.arange(2, dtype=np.int32),
            losses=model.losses,
            logits=model.logits,
            **{f"w/{key}": value for key, value in model.weights.items()},
        )
    result = launch(
        debug_config.replace(**{"parallel.tensor": 2}),
        tmp_path / "run",
        2,
        program=("-m", "tests.equivalence.two_processes_program"),
    )
    assert result.reason == "equal"
