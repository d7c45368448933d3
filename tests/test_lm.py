"""``PanguLM``: two lines from a folder to text, scores and logits, the same whatever the folder is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pangu_lab import PanguLM
from pangu_lab.checkpoint.convert import convert_checkpoint
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import FINAL_NORM, POSITION, QUERY, WORD, layer_prefix
from pangu_lab.ops.native import decode
from tests.generate.fakes import random_weights, small_lm

PROMPT = "春天来了，"
SETTINGS = {"model.num_heads": 4, "model.hidden_act": "gelu"}


@pytest.fixture(scope="module")
def places(debug_run, tmp_path_factory):
    """The same weights as a run, a checkpoint, a release that went out and came back, and a bundle."""
    from pangu_lab.checkpoint import list_checkpoints
    from pangu_lab.export import export_run

    folder = tmp_path_factory.mktemp("places")
    convert_checkpoint(debug_run, folder / "theirs", "gpt_pangu")
    convert_checkpoint(
        folder / "theirs", folder / "release", overrides=SETTINGS, tokenizer=str(debug_run / "tokenizer")
    )
    export_run(debug_run, folder / "bundle", decode_batches=())
    return {
        "run": debug_run,
        "checkpoint": list_checkpoints(debug_run / "checkpoints")[-1],
        "release": folder / "release",
        "bundle": folder / "bundle",
    }


@pytest.fixture(scope="module")
def lm(places):
    return PanguLM.load(places["run"])


def test_two_lines_write_a_text(lm):
    drawn = dict(max_new_tokens=12, temperature=0.9, seed=1)
    done = lm.generate(PROMPT, **drawn)
    assert str(done) == done.text and done.text and len(done.ids) <= 12
    pieces = lm.stream(PROMPT, **drawn)
    assert "".join(pieces) == done.text and pieces.completion.ids == done.ids
    both = lm.generate([PROMPT, "水"], **drawn)
    assert [item.ids for item in both] == [done.ids, lm.generate("水", **drawn).ids]


def test_explain_keeps_the_chain_of_every_token(lm):
    done = lm.generate(PROMPT, explain=True, max_new_tokens=4, temperature=0.9, seed=1)
    assert [len(stages) > 4 for stages in done.explained] == [True] * len(done.ids)
    assert done.ids == lm.generate(PROMPT, max_new_tokens=4, temperature=0.9, seed=1).ids


def test_what_the_model_was_given_as_sampling_settings_is_the_default(lm):
    assert lm.generate(PROMPT, seed=3).ids == lm.generate(PROMPT, seed=3, sampling=lm.sampling).ids
    biased = lm.generate(PROMPT, max_new_tokens=3, logit_bias={7: 100.0}, temperature=0)
    assert biased.ids == (7, 7, 7)


def test_logits_are_those_of_the_network_that_is_trained(lm, debug_run):
    from mindspore import Tensor

    from pangu_lab.checkpoint import load_weights
    from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts, Weights

    weights, config = load_weights(debug_run)
    network = PanguLogits(PanguStage(Parts(config.model, Weights(weights), seq_length=24)))
    ids = np.random.default_rng(0).integers(0, 512, (3, 24))
    positions = np.broadcast_to(np.arange(24), ids.shape)
    want = network(Tensor(ids.astype(np.int32)), Tensor(positions.astype(np.int32))).asnumpy()
    got = lm.logits(ids)
    assert got.shape == (3, 24, 512) and got.dtype == np.float32 and np.abs(got - want).max() < 1e-4
    assert lm.runner.pool.free == lm.runner.pool.slots


def test_more_rows_than_the_cache_holds_are_taken_in_turns(lm):
    ids = np.random.default_rng(1).integers(0, 512, (40, 40))  # 1600 positions, the cache has 1024
    assert np.abs(lm.logits(ids)[[0, 39]] - lm.logits(ids[[0, 39]])).max() < 1e-5


@pytest.mark.parametrize("what", ["checkpoint", "release", "bundle"])
def test_it_is_the_same_model_wherever_it_lies(places, lm, what):
    other = PanguLM.load(places[what])
    same = dict(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=5)
    assert other.generate(PROMPT, **same).ids == lm.generate(PROMPT, **same).ids
    assert other.score("春天来", "了，花开了。").logprob == pytest.approx(
        lm.score("春天来", "了，花开了。").logprob, abs=1e-4
    )
    ids = np.arange(20).reshape(2, 10)
    assert np.abs(other.logits(ids) - lm.logits(ids)).max() < 1e-4
    assert other.config.num_parameters == lm.config.num_parameters


@pytest.mark.skipif(decode.library() is None, reason="no C compiler here")
@pytest.mark.parametrize("what", ["run", "bundle"])
def test_int8_is_nearly_the_same_model_and_writes(places, lm, what):
    rounded = PanguLM.load(places[what], dtype="int8")
    ids = np.arange(20, 40)[None]
    exact, found = lm.logits(ids), rounded.logits(ids)
    assert 0 < np.abs(found - exact).max() < 0.03 * np.abs(exact).max()
    assert rounded.generate(PROMPT, max_new_tokens=4, temperature=0).ids


def test_scores_are_those_of_the_scoring_engine(lm, debug_run):
    from pangu_lab.evaluate import open_scorer

    pairs = [("春天来", "了，花开了。"), ("", "水从山上流下来。"), ("他说", ""), ("长" * 80, "短")]
    engine = open_scorer(debug_run)
    for (context, continuation), want in zip(pairs, engine.loglikelihood(pairs)):
        got = lm.score(context, continuation)
        assert got.logprob == pytest.approx(want.logprob, abs=1e-4)
        assert (got.tokens, got.greedy, got.cut) == (want.tokens, want.greedy, want.cut)


def attention_by_hand(weights, config, ids):
    """(layers, heads, seq, seq) of a text, in plain numpy and float64: PanGu-α as the paper says it."""

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * weights[f"{name}.gamma"]
            + weights[f"{name}.beta"]
        )

    def heads(x):
        return x.reshape(len(ids), config.num_heads, -1).swapaxes(0, 1)

    x, found = weights[WORD][ids].astype(float) + weights[POSITION][: len(ids)], []
    for layer in range(config.num_layers):
        prefix, last = layer_prefix(config, layer), layer == config.num_layers - 1
        x = norm(x, FINAL_NORM) if last else x
        inner = norm(x, f"{prefix}.layernorm1")
        asked = weights[QUERY][: len(ids)].astype(float) if last else inner
        q, k, v = (
            heads(linear(source, f"{prefix}.attention.dense{number}"))
            for number, source in ((1, asked), (2, inner), (3, inner))
        )
        scores = np.where(np.tri(len(ids), dtype=bool), q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
        found.append(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))
        mixed = (found[-1] @ v).swapaxes(0, 1).reshape(len(ids), -1)
        out = f"{prefix}.attention.projection"
        x = x + mixed @ weights[f"{out}.weight"] + weights[f"{out}.bias"]
        up, down = f"{prefix}.output.mapping", f"{prefix}.output.projection"
        inner = norm(x, f"{prefix}.layernorm2") @ weights[f"{up}.weight"] + weights[f"{up}.bias"]
        inner = inner * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + inner @ weights[f"{down}.weight"] + weights[f"{down}.bias"]
    return np.stack(found)


def test_attention_is_that_of_the_network_written_in_numpy_the_query_layers_too():
    lm = small_lm()
    seen = lm.attention("春天好。ab!")
    assert seen.tokens == ("春", "天", "好", "。", "a", "b", "!") and seen.ids == tuple(
        lm.tokenizer.encode("春天好。ab!")
    )
    assert seen.layers == ("blocks.0", "blocks.1", "query_layer") and seen.probabilities.shape == (3, 4, 7, 7)
    want = attention_by_hand(random_weights(lm.config), lm.config, list(seen.ids))
    assert np.abs(seen.probabilities - want).max() < 1e-5 and np.abs(want[2] - want[1]).max() > 0.1
    alone, both = lm.attention("春天"), lm.attention(["春天好。ab!", "春天"])
    np.testing.assert_allclose(both[0].probabilities, seen.probabilities, atol=1e-6)
    assert both[1].tokens == ("春", "天")
    assert np.allclose(both[1].probabilities, alone.probabilities, atol=1e-5)
    for nothing in ("", [], ["春天", ""]):
        with pytest.raises(InputError, match="the text is empty"):
            lm.attention(nothing)
    with pytest.raises(InputError, match="at most 32 tokens"):
        lm.attention("a" * 33)


def test_attention_of_a_run_is_read_from_its_own_checkpoint_and_a_bundle_has_none(places, lm):
    seen = lm.attention(PROMPT)
    assert seen.probabilities.shape == (2, 4, len(seen.ids), len(seen.ids)) and np.allclose(
        seen.probabilities.sum(-1), 1
    )
    same = PanguLM.load(places["release"]).attention(PROMPT)
    assert same.ids == seen.ids and np.abs(same.probabilities - seen.probabilities).max() < 1e-5
    with pytest.raises(InputError, match="an exported bundle cannot be looked into: load the run") as refused:
        PanguLM.load(places["bundle"]).attention(PROMPT)
    assert "\n" not in str(refused.value)


def test_without_a_tokenizer_there_are_logits_and_a_clear_word(places, tmp_path):
    convert_checkpoint(places["release"].parent / "theirs", tmp_path / "bare", overrides=SETTINGS)
    bare = PanguLM.load(tmp_path / "bare")
    assert bare.logits([[1, 2, 3]]).shape == (1, 3, 512)
    with pytest.raises(InputError, match="no tokenizer is kept .* tokenizer="):
        bare.generate(PROMPT)
    with pytest.raises(InputError, match="512"):
        PanguLM.load(tmp_path / "bare", tokenizer="pangu")


@pytest.mark.parametrize(
    "ids,word",
    [
        ([1, 2], "batch, seq"),
        ([[1.5]], "whole numbers"),
        ([[]], "batch, seq"),
        ([[512]], "token 512"),
        ([[-1]], "token -1"),
        ([[0] * 65], "65 tokens"),
    ],
)
def test_ids_that_cannot_be_are_refused(lm, ids, word):
    with pytest.raises(InputError, match=word):
        lm.logits(ids)


def test_wrong_settings_and_folders_are_named(lm, places, tmp_path):
    with pytest.raises(InputError, match="unknown setting 'max_tokens'.*max_new_tokens"):
        lm.generate(PROMPT, max_tokens=3)
    with pytest.raises(InputError, match="sampling.temperature=-1"):
        lm.generate(PROMPT, temperature=-1)
    with pytest.raises(InputError, match="no such folder"):
        PanguLM.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="a bundle has its own tokenizer"):
        PanguLM.load(places["bundle"], tokenizer="pangu")


def test_the_name_is_there_and_nothing_is_loaded_for_it():
    code = (
        "import sys, pangu_lab; before = 'mindspore' in sys.modules; assert 'PanguLM' in dir(pangu_lab); "
        "from pangu_lab import PanguLM; print(before, PanguLM.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "PanguLM"], done.stderr
