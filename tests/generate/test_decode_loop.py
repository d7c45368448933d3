"""The one loop under every way of writing: requests join and leave between two tokens, and stay to themselves."""

from __future__ import annotations

import random
import threading

import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine, generate, generate_many, stream
from pangu_lab.generate.beam import BeamSearch
from pangu_lab.generate.decode_loop import DecodeLoop, FairQueue, Request
from pangu_lab.generate.sequence import Sampling, prepare_prompt
from tests.generate.fakes import CharacterTokenizer, TableRunner, random_table

PROMPTS = ("春天", "abc的 不行", "好", "")
NO_END = ((0, -100.0),)  # the end of the document is never chosen


def engine_of(slots: int = 256, seed: int = 0) -> Engine:
    tokenizer = CharacterTokenizer()
    return Engine(TableRunner(random_table(tokenizer.vocab_size, seed), tokenizer.vocab_size, 32, slots), tokenizer)


class Told(Request):
    """A request that keeps what it is told."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.deltas, self.over = [], 0

    def deliver(self, deltas) -> None:
        self.deltas += deltas

    def ended(self, error) -> None:
        super().ended(error)
        self.over += 1


def request_of(engine: Engine, text: str, config: SamplingConfig, owner: str = "") -> Told:
    prompt = prepare_prompt(text, engine.tokenizer, config, engine.max_length)
    policy = (
        BeamSearch(engine.tokenizer, prompt, config)
        if config.num_beams > 1
        else Sampling(engine.tokenizer, prompt, config, config.seed or 0, range(config.num_return_sequences))
    )
    return Told(prompt, policy, owner)


def loop_of(engine: Engine, *requests: Request, **how) -> DecodeLoop:
    loop = DecodeLoop(engine.runner, FairQueue(), **how)
    for request in requests:
        loop.waiting.put(request)
    return loop


def random_settings(rng: random.Random) -> SamplingConfig:
    count = rng.choice([0, 1, 5, 40])
    beams = rng.choice([1, 1, 4])
    return SamplingConfig(
        max_new_tokens=count,
        min_new_tokens=rng.choice([0, min(count, 4)]),
        temperature=rng.choice([0, 0.7, 1.2]),
        top_k=rng.choice([None, 5]),
        seed=rng.randrange(2**31),
        num_beams=beams,
        logprobs=rng.choice([None, 2]),
        num_return_sequences=min(beams, 3) if beams > 1 else rng.choice([1, 1, 3, 19]),
        echo=rng.random() < 0.3,
        stop=rng.choice([(), ("a",), ("cd", "好")]),
        bad_words=rng.choice([(), ("ab",)]),
        stop_ids=rng.choice([(), (5, 7)]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        logit_bias=rng.choice([(), NO_END]),
    )


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("slots", [256, 128])  # 128: few fit at a time
def test_alone_together_as_a_stream_and_joining_one_by_one_write_the_same(seed, slots):
    engine, rng = engine_of(slots, seed), random.Random(seed)
    config = random_settings(rng)
    alone = [generate(engine, prompt, config) for prompt in PROMPTS]
    assert generate_many(engine, PROMPTS, config) == alone
    if config.num_beams == config.num_return_sequences == 1:
        streams = [stream(engine, prompt, config) for prompt in PROMPTS]
        for prompt, pieces, done in zip(PROMPTS, streams, alone):
            assert (prompt if config.echo else "") + "".join(pieces) == done.text and pieces.completion == done
    if config.num_return_sequences <= 3:
        requests = [request_of(engine, prompt, config) for prompt in PROMPTS]
        loop, coming = loop_of(engine, prefills=1), list(requests)
        while coming or loop.running or len(loop.waiting):
            if coming and rng.random() < 0.5:
                loop.waiting.put(coming.pop(0))
            loop.step()
        assert [request.policy.completions() for request in requests] == [list(done.all) for done in alone]
        assert [request.over for request in requests] == [1] * 4
    assert engine.runner.pool.free == slots


def test_who_joins_is_decoded_with_those_that_run_and_who_ends_leaves_its_slots_to_the_next():
    engine = engine_of(slots=40)
    config = SamplingConfig(max_new_tokens=10, seed=1, logit_bias=NO_END)
    first, second, third = (request_of(engine, "ab", config) for _ in range(3))  # 11 slots each
    fourth = request_of(engine, "abcdef", config)  # 15
    loop = loop_of(engine, first, second, third, fourth, prefills=1)
    sizes = []
    loop.on_step = lambda batch, seconds: sizes.append(batch)
    while loop.running or len(loop.waiting):
        loop.step()
    assert sizes[:3] == [1, 2, 3] and max(sizes) == 3 and fourth.tokens == 10
    assert loop.counts.new_tokens == 40 and loop.counts.prompts == 4 and loop.counts.steps == len(sizes)


def test_a_prompt_waits_for_no_more_than_a_step_and_a_step_feeds_no_more_prompts_than_it_may():
    engine = engine_of()
    config = SamplingConfig(max_new_tokens=10, seed=1, logit_bias=NO_END)
    loop = loop_of(engine, *(request_of(engine, "ab", config) for _ in range(4)), prefills=2)
    loop.step()
    assert engine.runner.calls == [(1, 2), (1, 2)]
    loop.step()
    assert engine.runner.calls[2:] == [(2, 1), (1, 2), (1, 2)]


def test_more_sequences_than_a_batch_run_alone_and_others_wait_for_them():
    engine = engine_of(slots=1024)
    wide = request_of(engine, "ab", SamplingConfig(max_new_tokens=3, num_beams=20, logit_bias=NO_END))
    small = request_of(engine, "ab", SamplingConfig(max_new_tokens=3, seed=1))
    loop = loop_of(engine, wide, small)
    loop.step()
    assert loop.running == [wide] and list(loop.waiting.order()) == [small]
    while loop.running or len(loop.waiting):
        loop.step()
    assert wide.completion.score is not None and small.tokens


def test_beams_of_several_prompts_share_their_steps():
    engine = engine_of()
    config = SamplingConfig(max_new_tokens=5, num_beams=4, logit_bias=NO_END)
    generate_many(engine, PROMPTS, config)
    assert [shape for shape in engine.runner.calls if shape[1] == 1 and shape[0] > 1] == [(16, 1)] * 4


def test_what_goes_wrong_with_one_request_is_its_own():
    engine = engine_of()
    config = SamplingConfig(max_new_tokens=6, seed=1, logit_bias=NO_END)
    good, bad, deaf = (request_of(engine, "ab", config) for _ in range(3))
    bad.policy.sequences[0]._choose = lambda logits: 1 / 0
    deaf.deliver = lambda deltas: [][1]
    loop = loop_of(engine, good, bad, deaf)
    while loop.running or len(loop.waiting):
        loop.step()
    assert isinstance(bad.error, ZeroDivisionError) and isinstance(deaf.error, IndexError) and good.error is None
    assert good.completion == generate(engine, "ab", config) and engine.runner.pool.free == 256


def test_what_the_network_raises_comes_out_of_the_step_and_ending_all_frees_the_cache():
    engine = engine_of()
    requests = [request_of(engine, "ab", SamplingConfig(max_new_tokens=6, seed=1)) for _ in range(2)]
    loop = loop_of(engine, *requests, prefills=1)
    loop.step()
    engine.runner.logits_of = lambda ids: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.step()
    gone = RuntimeError("gone")
    loop.end_all(gone)
    assert [request.error for request in requests] == [gone, gone] and engine.runner.pool.free == 256


def test_a_cancelled_request_leaves_between_two_tokens_and_shows_what_was_held_back():
    engine = engine_of()
    config = SamplingConfig(max_new_tokens=20, seed=1, logit_bias=NO_END)
    running, other, waiting = (request_of(engine, "ab", config) for _ in range(3))
    loop = loop_of(engine, running, other, waiting, at_once=2)
    loop.step()
    loop.step()
    for request in (running, waiting):
        request.cancel()
    assert loop.step() == [running, waiting] and loop.running == [other]
    assert running.tokens == 2 and "".join(delta.text for delta in running.deltas) == running.completion.text
    assert [request.deltas[-1].finish_reason for request in (running, waiting)] == ["cancelled"] * 2
    loop.end_all()
    assert engine.runner.pool.free == 256 and other.completion.finish_reason == "cancelled"


def test_owners_take_turns():
    engine, queue = engine_of(), FairQueue()
    *busy, late = [request_of(engine, "a", SamplingConfig(), owner) for owner in ("busy", "busy", "busy", "late")]
    for request in (*busy, late):
        queue.put(request)
    assert queue.order() == [busy[0], late, busy[1], busy[2]] and queue.of_owner("busy") == 3
    assert [queue.pop() for _ in range(2)] == [busy[0], late] and queue.first() is busy[1]
    assert queue.remove(lambda request: request is busy[1]) == [busy[1]] and len(queue) == 1


def test_two_loops_share_a_cache_that_holds_one_of_them_at_a_time():
    engine = engine_of(slots=16)
    config = SamplingConfig(max_new_tokens=8, seed=3, logit_bias=NO_END)
    expected, found = generate(engine, "abcd", config), {}

    def work(number: int) -> None:
        found[number] = generate_many(engine, ["abcd"] * 3, config)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(4)] == [[expected] * 3] * 4 and engine.runner.pool.free == 16


def test_whoever_drops_a_stream_or_breaks_off_leaves_no_slots_taken():
    engine = engine_of()
    config = SamplingConfig(max_new_tokens=8, seed=3, logit_bias=NO_END)
    for _piece in stream(engine, "ab", config):
        break
    assert engine.runner.pool.free == 256

    def stop(done, total, text=""):
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError) as caught:  # whose traceback keeps the frames
        generate_many(engine, PROMPTS * 8, config, progress=stop)
    assert engine.runner.pool.free == 256 and caught.traceback


def test_progress_tells_every_sequence_that_has_ended():
    told = []
    generate_many(
        engine_of(),
        PROMPTS,
        SamplingConfig(max_new_tokens=4, num_return_sequences=2, seed=1),
        progress=lambda *values: told.append(values),
    )
    assert told[0] == (0, 8, "sequences") and told[-1] == (8, 8, "sequences")


def test_an_error_of_one_prompt_is_raised_and_frees_the_cache():
    engine = engine_of()
    engine.runner.logits_of = lambda ids: [float("nan")] * engine.vocab_size
    with pytest.raises(InputError, match="the model's logits are not finite"):
        generate_many(engine, PROMPTS, SamplingConfig(max_new_tokens=4))
    assert engine.runner.pool.free == 256


# ------------------------------------------------------------------------------------------------- pipeline stages


class StagedRunner(TableRunner):
    """A runner of three stages: what it begins is computed in order, and given out when it is asked for."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.stages, self.under_way, self.most = 3, 0, 0

    def start(self, *arrays):
        logits = self.run(*arrays)
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def wait():
            self.under_way -= 1
            return logits

        return wait


def staged_engine(slots: int = 256, seed: int = 0) -> Engine:
    tokenizer = CharacterTokenizer()
    return Engine(StagedRunner(random_table(tokenizer.vocab_size, seed), tokenizer.vocab_size, 32, slots), tokenizer)


@pytest.mark.parametrize("seed", range(10))
def test_in_stages_each_sequence_is_written_as_by_one_process(seed):
    engine, staged, config = engine_of(seed=seed), staged_engine(seed=seed), random_settings(random.Random(seed))
    assert generate_many(staged, PROMPTS, config) == [generate(engine, prompt, config) for prompt in PROMPTS]
    assert staged.runner.pool.free == 256 and staged.runner.most <= 3 and not staged.runner.under_way


def test_the_running_sequences_form_as_many_groups_as_there_are_stages():
    engine = staged_engine()
    config = SamplingConfig(max_new_tokens=8, seed=1, logit_bias=NO_END)
    requests = [request_of(engine, "ab", config) for _ in range(6)]
    loop, sizes = loop_of(engine, *requests), []
    loop.on_step = lambda batch, seconds: sizes.append(batch)
    while loop.running or len(loop.waiting):
        loop.step()
    assert engine.runner.most == 3 and sizes == [2] * 21  # the first of 8 tokens comes with the prompt
    assert [request.completion for request in requests] == [generate(engine_of(), "ab", config)] * 6


def test_who_leaves_while_its_step_is_under_way_leaves_the_others_alone():
    engine = staged_engine()
    config = SamplingConfig(max_new_tokens=8, seed=1, logit_bias=NO_END)
    gone, stays = (request_of(engine, "ab", config) for _ in range(2))
    loop = loop_of(engine, gone, stays)
    for _ in range(3):
        loop.step()
    gone.cancel()
    while loop.running:
        loop.step()
    assert stays.completion == generate(engine_of(), "ab", config)
    assert gone.completion.finish_reason == "cancelled" and engine.runner.pool.free == 256
    loop.waiting.put(again := request_of(engine, "ab", config))
    while loop.running or len(loop.waiting):
        loop.step()
    assert again.completion == stays.completion
