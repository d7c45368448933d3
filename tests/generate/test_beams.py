"""Beam search against looking at every text there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, generate
from pangu_lab.generate.sampling import log_softmax
from tests.generate.fakes import CharacterTokenizer, TableRunner, random_table


class FourLetters(CharacterTokenizer):
    """End of document, and a, b, c."""

    def __init__(self) -> None:
        self.pieces = [b"", b"a", b"b", b"c"]
        self.vocab_size, self.eod_id, self.pad_id = 4, 0, 0


def every_text(logits_of, prompt: tuple[int, ...], limit: int, penalty: float) -> list[tuple[float, tuple]]:
    """Score and tokens of every text of at most ``limit`` tokens, best first."""
    found = []
    for length in range(1, limit + 1):
        for text in itertools.product(range(4), repeat=length):
            ended, inner = text[-1] == 0, text[:-1]
            if 0 in inner or (not ended and length < limit):
                continue
            total = sum(
                log_softmax(np.float32(logits_of((*prompt, *text[:place]))))[text[place]] for place in range(length)
            )
            found.append((total / length**penalty, inner if ended else text))
    return sorted(found, reverse=True)


def engine_over(table) -> Engine:
    return Engine(TableRunner(table, 4, 32, slots=512), FourLetters())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
def test_enough_beams_find_the_best_texts_there_are(seed, penalty):
    table = random_table(4, seed)
    config = SamplingConfig(num_beams=30, num_return_sequences=5, max_new_tokens=3, length_penalty=penalty)
    done = generate(engine_over(table), "ab", config)
    expected = every_text(table, (1, 2), 3, penalty)[:5]
    assert [item.ids for item in done.all] == [text for _, text in expected]
    assert [item.score for item in done.all] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_one_beam_is_greedy_and_more_are_never_worse():
    table = random_table(4, 9)
    engine = engine_over(table)
    scores = {}
    for beams in (2, 4, 16):
        config = SamplingConfig(num_beams=beams, max_new_tokens=6, length_penalty=0.0)
        scores[beams] = generate(engine, "a", config).score
    assert scores[16] >= scores[2] and scores[16] == pytest.approx(every_text(table, (1,), 6, 0.0)[0][0], abs=1e-4)


def test_a_higher_length_penalty_prefers_longer_texts():
    table = random_table(4, 3)
    lengths = [
        len(
            generate(
                engine_over(table), "ab", SamplingConfig(num_beams=8, max_new_tokens=6, length_penalty=penalty)
            ).ids
        )
        for penalty in (-5.0, 5.0)
    ]
    assert lengths[0] < lengths[1]


def test_beams_obey_bans_and_stop_strings():
    engine = engine_over(random_table(4, 5))
    config = SamplingConfig(
        num_beams=4, num_return_sequences=4, max_new_tokens=5, bad_words=("ab",), stop=("cc",), min_new_tokens=3
    )
    for item in generate(engine, "c", config).all:
        assert "ab" not in item.text and "cc" not in item.text[3:]
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_beams_of_the_real_network_score_their_own_tokens(engine):
    config = SamplingConfig(
        num_beams=4, num_return_sequences=2, max_new_tokens=8, length_penalty=0.0, logprobs=0, logit_bias={0: -100}
    )
    for item in generate(engine, "春天", config).all:
        assert len(item.ids) == 8 and item.finish_reason == "length"
        logits = engine.logits([*item.prompt_ids, *item.ids]).copy()
        told = sum(entry.logprob for entry in item.logprobs)
        logits[:, 0] -= 100
        expected = log_softmax(logits)[len(item.prompt_ids) - 1 : -1]
        assert item.score == pytest.approx(sum(row[index] for row, index in zip(expected, item.ids)), abs=1e-3)
        assert told <= item.score + 1e-3  # without the bias the same tokens are a little less likely


def test_more_beams_than_the_cache_holds_are_refused_with_the_number(engine):
    config = SamplingConfig(num_beams=60, max_new_tokens=20)
    with pytest.raises(InputError, match="needs 1142 positions of key-value cache at once, there are 160"):
        generate(engine, "春天", config)
