"""The scoring engine against the plain way: every sequence whole, alone, through the network as it is."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_lab.errors import InputError
from pangu_lab.evaluate.scoring import LocalScorer
from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts, Weights
from tests.evaluate.letters import LetterTokenizer, debug_model, sample_lines

ms.set_context(mode=ms.GRAPH_MODE)
GOLDEN = Path(__file__).with_name("golden_scores.json")


@pytest.fixture(scope="module")
def naive(scorer):
    """(log-probability, tokens, greedy) of a pair: one sequence, batch 1, a full row of logits."""
    config, weights = debug_model()
    network = PanguLogits(PanguStage(Parts(config, Weights(weights))))

    def score(context: str, continuation: str, cut: str = "context"):
        pair = scorer.encode(context, continuation, cut)
        ids = np.zeros((1, config.num_positions), np.int32)
        ids[0, : len(pair.inputs)] = pair.inputs
        logits = network(Tensor(ids), Tensor(np.arange(config.num_positions, dtype=np.int32)[None])).asnumpy()[0]
        logits = logits.astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows = range(pair.start - 1, len(pair.ids) - 1)
        values = [log_probs[row, pair.ids[row + 1]] for row in rows]
        return sum(values), len(values), all(log_probs[row].argmax() == pair.ids[row + 1] for row in rows)

    return score


def real_pairs() -> list[tuple[str, str]]:
    """Candidates with a shared context, texts without any, long ones, short ones, the same one twice."""
    lines = sample_lines(30)
    pairs = [(f"问：{lines[0]}\n答：", option) for option in ("因为船大。", "因为轻", "不知道", lines[1])]
    pairs += [(line[:5], line[5:]) for line in lines] + [("", line) for line in lines[:6]]
    pairs += [(lines[2], "。"), (lines[2], "。"), ("一", "二"), ("".join(lines[3:7]), lines[7][:10])]
    return pairs


def assert_equal_to_naive(scores, pairs, naive, **options):
    for score, pair in zip(scores, pairs):
        logprob, tokens, greedy = naive(*pair, **options)
        assert score.tokens == tokens and abs(score.logprob - logprob) < 1e-4, pair
        assert score.greedy == greedy, pair
        assert abs(sum(score.token_logprobs) - score.logprob) < 1e-9


def test_scores_equal_naive_scoring_one_by_one_and_keep_their_order(scorer, naive):
    pairs = real_pairs()
    assert_equal_to_naive(scorer.loglikelihood(pairs), pairs, naive)


def test_the_order_of_the_requests_changes_nothing(scorer):
    pairs = real_pairs()
    shuffled = np.random.default_rng(0).permutation(len(pairs))
    scores, again = scorer.loglikelihood(pairs), scorer.loglikelihood([pairs[i] for i in shuffled])
    for place, number in enumerate(shuffled):
        assert abs(scores[number].logprob - again[place].logprob) < 1e-4


def test_a_context_that_is_too_long_loses_its_left_and_the_result_says_so(scorer, naive):
    text = "".join(sample_lines(40))
    pairs = [(text[:200], text[200:210]), (text[:12], text[12:16])]
    long, short = scorer.loglikelihood(pairs)
    assert long.cut > 0 and short.cut == 0
    assert_equal_to_naive([long, short], pairs, naive)
    kept = scorer.encode(*pairs[0])
    assert len(kept.inputs) == scorer.window
    assert kept.ids == tuple(scorer.tokenizer.encode(text[:210]))[-scorer.window - 1 :]


def test_a_continuation_that_is_too_long_can_lose_its_right_instead(scorer, naive):
    text = "".join(sample_lines(40))
    [score] = scorer.loglikelihood([(text[:20], text[20:300])], cut="continuation")
    assert score.cut > 0 and score.tokens < scorer.window
    assert_equal_to_naive([score], [(text[:20], text[20:300])], naive, cut="continuation")
    kept = scorer.encode(text[:20], text[20:300], "continuation")
    assert kept.ids[:5] == tuple(scorer.tokenizer.encode(text)[:5])


def test_text_longer_than_the_window_on_both_sides_is_still_scored(scorer):
    text = "".join(sample_lines(60))
    for cut in ("context", "continuation"):
        [score] = scorer.loglikelihood([(text[:300], text[300:600])], cut=cut)
        assert 0 < score.tokens <= scorer.window and score.cut > 100
    with pytest.raises(InputError, match="cut='left' must be"):
        scorer.loglikelihood([("a", "b")], cut="left")


def test_the_first_token_of_a_text_is_scored_only_after_a_start_token(scorer):
    line = sample_lines(1)[0]
    config, weights = debug_model()
    started = LocalScorer(config, weights, LetterTokenizer(), batch_tokens=512, start_id=7)
    [without], [with_start] = scorer.loglikelihood([("", line)]), started.loglikelihood([("", line)])
    assert with_start.tokens == without.tokens + 1 == len(scorer.tokenizer.encode(line))
    assert started.loglikelihood([("", "一")])[0].tokens == 1 and scorer.loglikelihood([("", "一")])[0].tokens == 0


def test_nothing_to_score_is_no_tokens_and_no_cost(scorer):
    assert scorer.loglikelihood([]) == []
    [empty] = scorer.loglikelihood([("一二三", "")])
    assert (empty.logprob, empty.tokens, empty.mean) == (0.0, 0, 0.0)


def test_progress_counts_every_pair_once(scorer):
    calls = []
    pairs = real_pairs()
    scorer.loglikelihood(pairs, progress=lambda done, total, text: calls.append((done, total)))
    assert calls[-1] == (len(pairs), len(pairs)) and calls == sorted(calls)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused():
    config, weights = debug_model()
    with pytest.raises(InputError, match="has 600 pieces, the model knows 512"):
        LocalScorer(config, weights, LetterTokenizer(600))


def test_scores_are_those_that_were_stored(scorer):
    """A fixed model and a fixed list: a change that only makes things faster may not move these."""
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    scores = scorer.loglikelihood([tuple(item["pair"]) for item in stored])
    for score, item in zip(scores, stored):
        assert score.logprob == pytest.approx(item["logprob"], abs=1e-3, rel=1e-5), item["pair"]
        assert (score.tokens, score.greedy) == (item["tokens"], item["greedy"])
