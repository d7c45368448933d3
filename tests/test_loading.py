"""One way to open a model: everything a model lies in, by folder or by name, and one line for what is none."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_lab.checkpoint import list_checkpoints
from pangu_lab.errors import InputError
from pangu_lab.evaluate import evaluate, open_scorer, perplexity
from pangu_lab.export import Bundle, export_run
from pangu_lab.lm import PanguLM
from pangu_lab.loading import Model


@pytest.fixture(scope="module")
def workplace(debug_run, tmp_path_factory):
    """A folder with ``runs/first`` and the bundle of it in ``exports/first-bundle``."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "runs").mkdir()
    (folder / "runs" / "first").symlink_to(debug_run)
    export_run(debug_run, folder / "exports" / "first-bundle", decode_batches=())
    return folder


@pytest.fixture
def inside(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def test_a_run_its_checkpoint_its_bundle_and_their_names_open_as_one_model(inside, debug_run):
    (checkpoint,) = list_checkpoints(debug_run / "checkpoints")[-1:]
    ids, found = [[5, 9, 33, 7]], {}
    for source in ("runs/first", checkpoint, "exports/first-bundle", "first", "first-bundle"):
        lm = PanguLM.load(source)
        found[str(source)] = lm.logits(ids)
        assert lm.generate("春天", max_new_tokens=3, temperature=0.0).ids
        assert (lm.bundle is not None) == ("bundle" in str(source)) == isinstance(lm.engine, Bundle)
    first, *others = found.values()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-5)


def test_nothing_is_compiled_before_it_is_asked_for(debug_run, monkeypatch):
    monkeypatch.setattr("pangu_lab.loading.network_runner", lambda *_: pytest.fail("compiled"))
    model = Model.load(debug_run)
    assert model.tokenizer.vocab_size == model.config.vocab_size == 512
    assert model.weights["backbone.layernorm.gamma"].shape == (model.config.hidden_size,)


def test_what_is_no_model_is_refused_in_one_line(inside, tmp_path):
    with pytest.raises(InputError, match="nothing: no such folder, here or in runs or exports; give a run"):
        Model.load("nothing")
    with pytest.raises(InputError, match="runs/nothing: no such folder"):
        Model.load("runs/nothing")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        Model.load(tmp_path)
    with pytest.raises(InputError, match="a bundle has its own tokenizer and cache"):
        Model.load("first-bundle", slots=128)
    with pytest.raises(InputError, match="first-bundle: an exported bundle cannot be looked into"):
        PanguLM.load("first-bundle").attention("春天")


def test_a_bundle_is_measured_and_scored_as_the_run_it_was_made_from(inside, debug_data):
    run, bundle = (perplexity(name, debug_data / "heldout", max_records=8) for name in ("first", "first-bundle"))
    assert bundle.loss == pytest.approx(run.loss, rel=1e-5) and bundle.tokens == run.tokens
    pairs = [("春天", "来了"), ("", "好")]
    scores = [[score.logprob for score in open_scorer(name).loglikelihood(pairs)] for name in ("first", "first-bundle")]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_a_task_takes_a_bundle(inside):
    from pangu_lab.data import sample_folder

    found = [evaluate("c3", name, sample_folder() / "questions", limit=6).value for name in ("first", "first-bundle")]
    assert found[0] == found[1]
