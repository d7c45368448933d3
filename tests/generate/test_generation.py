"""Generation from prompt to completion: cached equals uncached, alone equals together, and the edges."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, generate, generate_many, stream
from pangu_lab.generate.sampling import log_softmax
from tests.generate.fakes import TableRunner, random_table, script

PROMPTS = ("春天", "abc的 不行", "好")
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12, logit_bias={0: -100})
DRAWN = SamplingConfig(temperature=0.9, top_p=0.95, top_k=30, max_new_tokens=12, seed=5, repetition_penalty=1.1)


def scripted(tokenizer, text_pieces, prompt="ab", max_length=32):
    """An engine whose greedy text is the given pieces."""
    ids = [tokenizer.id_of(piece) if isinstance(piece, str) else piece for piece in text_pieces]
    length = len(tokenizer.encode(prompt)) or 1
    table = script(tokenizer.vocab_size, ids, length)
    return Engine(TableRunner(table, tokenizer.vocab_size, max_length), tokenizer)


def uncached(engine, prompt, config):
    """Greedy text by running the whole prefix anew for each token."""
    ids = engine.tokenizer.encode(prompt)
    new = []
    for _ in range(config.max_new_tokens):
        logits = engine.logits([*ids, *new])[-1].copy()
        for index, bias in config.logit_bias:
            logits[index] += bias
        new.append(int(logits.argmax()))
    return tuple(new)


# ------------------------------------------------------------------------------------------------ the real network


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cached_equals_uncached_token_for_token(engine, prompt):
    done = generate(engine, prompt, GREEDY)
    assert done.ids == uncached(engine, prompt, GREEDY)
    assert len(set(done.ids)) > 2 and done.finish_reason == "length"
    assert done.text == engine.tokenizer.decode(done.ids)


def test_prefill_and_step_give_the_logits_of_the_whole(engine):
    ids = engine.tokenizer.encode("春天好的abc")
    whole = engine.logits(ids)
    np.testing.assert_allclose(engine.prefill(ids[:4]), whole[3], atol=1e-4)
    for place in range(4, len(ids)):
        np.testing.assert_allclose(engine.step(ids[place]), whole[place], atol=1e-4)
    assert engine.length == len(ids)
    engine.reset()
    assert engine.length == 0


def test_a_sequence_too_long_for_the_one_token_graph_goes_on_with_the_general_one(engine):
    expected = generate(engine, "春天", GREEDY).ids
    sizes, engine.runner._read_sizes = engine.runner._read_sizes, [8]
    try:
        assert sizes == [32] and generate(engine, "春天", GREEDY).ids == expected
    finally:
        engine.runner._read_sizes = sizes


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_prompts_of_different_lengths_together_give_the_tokens_of_each_alone(engine, config):
    together = generate_many(engine, PROMPTS * 2, config)
    alone = [generate(engine, prompt, config) for prompt in PROMPTS]
    assert [done.ids for done in together] == [done.ids for done in alone * 2]
    assert len({done.ids for done in alone}) == 3


def test_several_sequences_of_a_prompt_differ_and_each_has_its_place_in_the_seed(engine):
    done = generate(engine, "春天", SamplingConfig(max_new_tokens=8, seed=3, num_return_sequences=3))
    assert len({item.ids for item in done.all}) == 3
    assert generate(engine, "春天", SamplingConfig(max_new_tokens=8, seed=3)).ids == done.ids
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_more_sequences_than_the_cache_holds_are_made_in_turns(engine):
    few = SamplingConfig(max_new_tokens=20, seed=3, num_return_sequences=3)
    many = SamplingConfig(max_new_tokens=20, seed=3, num_return_sequences=19)
    assert [item.ids for item in generate(engine, "春天", many).all[:3]] == [
        item.ids for item in generate(engine, "春天", few).all
    ]


def test_streams_that_take_turns_do_not_touch_each_other(engine):
    alone = [generate(engine, prompt, DRAWN).text for prompt in PROMPTS]
    streams = [stream(engine, prompt, DRAWN) for prompt in PROMPTS]
    texts = ["", "", ""]
    for _ in range(2 * DRAWN.max_new_tokens):
        texts = [text + next(item, "") for text, item in zip(texts, streams)]
    assert texts == alone
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_generation_works_from_other_threads(engine):
    alone = [generate(engine, prompt, DRAWN).ids for prompt in PROMPTS]
    found: dict[int, tuple[int, ...]] = {}

    def work(number: int) -> None:
        found[number] = generate(engine, PROMPTS[number % 3], DRAWN).ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(6)] == alone * 2


def test_a_generation_that_needs_the_cache_ends_the_plain_sequence(tokenizer):
    engine = Engine(TableRunner(random_table(tokenizer.vocab_size), tokenizer.vocab_size, 32, slots=40), tokenizer)
    engine.prefill([3] * 30)
    generate(engine, "ab", SamplingConfig(max_new_tokens=4, seed=1))
    assert engine.length == 30 and engine.step(3).shape == (tokenizer.vocab_size,)
    generate(engine, "ab" * 6, SamplingConfig(max_new_tokens=4, seed=1))
    with pytest.raises(InputError, match="call prefill first"):
        engine.step(3)


def test_cache_held_by_others_is_waited_for_and_not_for_ever(tokenizer, monkeypatch):
    monkeypatch.setattr("pangu_lab.generate.runner.SLOTS_TIMEOUT", 0.2)
    engine = Engine(TableRunner(random_table(tokenizer.vocab_size), tokenizer.vocab_size, 32, slots=40), tokenizer)
    running = stream(engine, "a" * 20, SamplingConfig(max_new_tokens=10, seed=1, logit_bias={0: -100}))
    next(running)
    with pytest.raises(InputError, match="other generations hold 29 of the 40 positions"):
        generate(engine, "b" * 20, SamplingConfig(max_new_tokens=4))
    threading.Timer(0.05, running.close).start()
    assert generate(engine, "b" * 20, SamplingConfig(max_new_tokens=4, logit_bias={0: -100})).ids


def test_a_text_may_fill_the_sequence_and_then_ends(engine):
    prompt = "a" * (engine.max_length - 3)
    done = generate(engine, prompt, SamplingConfig(temperature=0, max_new_tokens=50, logit_bias={0: -100}))
    assert (len(done.ids), done.finish_reason, done.warnings) == (4, "sequence_full", ())
    full = generate(engine, "a" * engine.max_length, SamplingConfig(temperature=0, logit_bias={0: -100}))
    assert (len(full.ids), full.finish_reason) == (1, "sequence_full")


# -------------------------------------------------------------------------------------------------------- prompts


def test_an_empty_prompt_starts_as_a_document_does(tokenizer):
    engine = scripted(tokenizer, "好", prompt="")
    done = generate(engine, "", SamplingConfig(temperature=0))
    assert done.prompt_ids == (tokenizer.eod_id,) and done.text == "好"


def test_a_prompt_longer_than_the_sequence_loses_its_oldest_part_and_says_so(tokenizer):
    engine = Engine(TableRunner(random_table(tokenizer.vocab_size), tokenizer.vocab_size, 32), tokenizer)
    prompt = "a" * 30 + "b" * 30
    done = generate(engine, prompt, SamplingConfig(temperature=0, max_new_tokens=8, logit_bias={0: -100}))
    assert done.prompt_ids == tuple(tokenizer.encode(prompt[-25:])) and len(done.ids) == 8
    (warning,) = done.warnings
    assert warning == "the prompt has 60 tokens and the model holds 32: its oldest 35 tokens were left out"
    half = generate(engine, prompt, SamplingConfig(temperature=0, max_new_tokens=500, logit_bias={0: -100}))
    assert len(half.prompt_ids) == 16 and half.finish_reason == "sequence_full" and len(half.ids) == 17


def test_unknown_characters_and_a_written_unknown_token_stop_nothing(tokenizer):
    engine = scripted(tokenizer, ["a", 1, "b"], prompt="龘")
    done = generate(engine, "龘", SamplingConfig(temperature=0))
    assert done.prompt_ids == (1,) and done.ids == (tokenizer.id_of("a"), 1, tokenizer.id_of("b"))
    assert done.text == "ab"


def test_no_new_tokens_may_be_asked_for(tokenizer):
    done = generate(scripted(tokenizer, "abc"), "ab", SamplingConfig(max_new_tokens=0, echo=True, seed=1))
    assert (done.text, done.ids, done.finish_reason) == ("ab", (), "length")


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    with pytest.raises(InputError, match="the tokenizer has .* the model 8"):
        Engine(TableRunner(random_table(8), 8), tokenizer)


def test_plain_interface_refuses_what_cannot_work(engine):
    with pytest.raises(InputError, match="no tokens to start from"):
        engine.prefill([])
    with pytest.raises(InputError, match="token 999 is outside"):
        engine.prefill([999])
    engine.prefill([2] * engine.max_length)
    with pytest.raises(InputError, match="would have 33 tokens, the model holds 32"):
        engine.step(2)
    engine.reset()


# --------------------------------------------------------------------------------------------------------- endings


def test_exactly_max_new_tokens_are_written(tokenizer):
    done = generate(scripted(tokenizer, "abcdef"), "ab", SamplingConfig(temperature=0, max_new_tokens=4))
    assert (done.text, done.finish_reason) == ("abcd", "length")


def test_the_end_of_the_document_ends_the_text_and_is_no_part_of_it(tokenizer):
    done = generate(scripted(tokenizer, "abc"), "ab", SamplingConfig(temperature=0))
    assert (done.text, done.finish_reason, len(done.ids)) == ("abc", "end_of_document", 3)


def test_stop_ids_end_the_text(tokenizer):
    config = SamplingConfig(temperature=0, stop_ids=(tokenizer.id_of("。"),))
    done = generate(scripted(tokenizer, "ab。c"), "ab", config)
    assert (done.text, done.finish_reason) == ("ab", "stop")


def test_a_stop_string_ends_the_text_and_its_tokens_leave(tokenizer):
    done = generate(scripted(tokenizer, ["x", "cde", "y", "z"]), "ab", SamplingConfig(temperature=0, stop=("ey",)))
    assert (done.text, done.finish_reason) == ("xcd", "stop")
    assert done.ids == (tokenizer.id_of("x"), tokenizer.id_of("cde"))


def test_bad_words_are_never_written(tokenizer):
    engine = scripted(tokenizer, ["春", "天", "春天"])
    done = generate(engine, "ab", SamplingConfig(temperature=0, bad_words=("春天",), max_new_tokens=3))
    assert "春天" not in done.text and done.text.startswith("春")


def test_echo_puts_the_prompt_first(tokenizer):
    assert generate(scripted(tokenizer, "xy"), "ab", SamplingConfig(temperature=0, echo=True)).text == "abxy"


# ------------------------------------------------------------------------------------------------- logprobs, seeds


def test_logprobs_are_the_models_own_and_belong_to_the_tokens(engine):
    config = SamplingConfig(max_new_tokens=5, seed=1, temperature=0.7, top_k=5, logprobs=3, echo=True)
    done = generate(engine, "春天好", config)
    ids = [*done.prompt_ids, *done.ids]
    expected = log_softmax(engine.logits(ids))
    told = [*done.prompt_logprobs, *done.logprobs]
    assert [item.id for item in told] == ids and told[0].logprob is None
    for place in range(1, len(ids)):
        assert told[place].logprob == pytest.approx(expected[place - 1, ids[place]], abs=1e-4)
        best = np.argsort(-expected[place - 1], kind="stable")[:3]
        assert [index for index, _ in told[place].top] == best.tolist()


def test_explained_tokens_show_the_distribution_after_every_step_and_are_the_same_tokens(engine):
    config = SamplingConfig(max_new_tokens=6, seed=1, temperature=0.7, top_k=5, repetition_penalty=1.2)
    done = generate(engine, "春天好", config, explain=True)
    assert done.ids == generate(engine, "春天好", config).ids
    expected = log_softmax(engine.logits([*done.prompt_ids, *done.ids]))
    assert len(done.explained) == len(done.ids)
    for place, (index, stages) in enumerate(zip(done.ids, done.explained)):
        first, last = stages[0], stages[-1]
        assert first.name == "model" and last.name == "min_p"
        own = expected[len(done.prompt_ids) - 1 + place]
        assert np.abs(first.probabilities - np.exp(own)).max() < 1e-5
        assert np.count_nonzero(last.probabilities) == 5 and last.probabilities[index] > 0
        assert {stage.name for stage in stages if stage.changed} == {
            "model",
            "repetition_penalty",
            "temperature",
            "top_k",
        }


def test_explained_stages_go_with_the_tokens_that_a_stop_string_leaves(tokenizer):
    engine = scripted(tokenizer, "abcd")
    done = generate(engine, "ab", SamplingConfig(temperature=0, stop=("cd",)), explain=True)
    assert len(done.explained) == len(done.ids)
    assert [stages[-1].top(1)[0][0] for stages in done.explained] == list(done.ids)
    assert generate(engine, "ab", SamplingConfig(temperature=0, stop=("cd",))).explained is None


def test_a_search_with_beams_cannot_be_explained_and_says_so(engine):
    with pytest.raises(InputError, match="explain needs sampling.num_beams of 1"):
        generate(engine, "ab", SamplingConfig(num_beams=2), explain=True)


def test_the_seed_of_a_completion_gives_it_again(engine):
    first = generate(engine, "春天", SamplingConfig(max_new_tokens=10))
    again = generate(engine, "春天", SamplingConfig(max_new_tokens=10, seed=first.seed))
    other = generate(engine, "春天", SamplingConfig(max_new_tokens=10))
    assert first.ids == again.ids and other.seed != first.seed


# --------------------------------------------------------------------------------------------------------- streams


def test_a_stream_gives_the_text_piece_by_piece(tokenizer):
    halves = [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    engine = scripted(tokenizer, ["x", "cde", *halves])
    running = stream(engine, "ab", SamplingConfig(temperature=0))
    assert list(running) == ["x", "cde", "é"]
    again = generate(engine, "ab", SamplingConfig(temperature=0, seed=running.completion.seed))
    assert running.completion == again


def test_cancel_stops_a_stream_and_frees_its_cache(tokenizer):
    engine = scripted(tokenizer, "abcdefghij")
    running = stream(engine, "ab", SamplingConfig(temperature=0))
    assert [next(running), next(running)] == ["a", "b"]
    running.cancel()
    assert list(running) == []
    assert (running.completion.text, running.completion.finish_reason, running.tokens) == ("ab", "cancelled", 2)
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_cancel_shows_what_was_held_back(tokenizer):
    running = stream(scripted(tokenizer, "xyabq"), "ab", SamplingConfig(temperature=0, stop=("abc",)))
    assert [next(running), next(running)] == ["x", "y"]
    assert next(running) == "abq"


def test_a_stream_left_in_the_middle_frees_its_cache(tokenizer):
    engine = scripted(tokenizer, "abcdefghij")
    running = stream(engine, "ab", SamplingConfig(temperature=0))
    next(running)
    running.close()
    assert engine.runner.pool.free == engine.runner.pool.slots and list(running) == []


def test_a_stream_never_started_takes_no_cache(tokenizer):
    engine = scripted(tokenizer, "abc")
    stream(engine, "ab", SamplingConfig(temperature=0)).close()
    assert engine.runner.pool.free == engine.runner.pool.slots


def test_a_stream_writes_one_text(tokenizer):
    for settings in ({"num_beams": 2}, {"num_return_sequences": 2}):
        with pytest.raises(InputError, match="a stream generates one text"):
            stream(scripted(tokenizer, "abc"), "ab", SamplingConfig(**settings))
