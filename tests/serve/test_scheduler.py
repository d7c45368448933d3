"""Many requests over one model: the same text whatever the company, in fair turns, within bounds."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export import load_bundle
from pangu_lab.generate import Engine, generate, generate_many, stream
from pangu_lab.generate.batch_invariant import make_batch_invariant
from pangu_lab.generate.sequence import prepare_prompt
from pangu_lab.serve import scheduler as scheduling
from pangu_lab.serve.limits import Limits, parse_limits
from pangu_lab.serve.request import Busy, RequestFailed, TooLate, Unavailable
from pangu_lab.serve.scheduler import Scheduler
from tests.generate.fakes import CharacterTokenizer, TableRunner, random_table
from tests.serve.running import scripted

GREEDY = SamplingConfig(temperature=0, max_new_tokens=16)
TEXTS = ("春天来了，", "他走进屋里，", "", "问：你是谁？\n答：", "山路很长，天色渐渐暗下来，", "雨")


def ask(scheduler: Scheduler, text: str, config: SamplingConfig = GREEDY, **how):
    prompt = prepare_prompt(text, scheduler.engine.tokenizer, config, scheduler.engine.max_length)
    return scheduler.submit([prompt], config, **how)[0]


@pytest.fixture
def start():
    """Starts schedulers; all closed at the end."""
    started = []

    def make(engine: Engine, **limits) -> Scheduler:
        started.append(Scheduler(engine, Limits(**limits)))
        started[-1].wait_ready()
        return started[-1]

    yield make
    for scheduler in started:
        scheduler.close(drain=False)


# -------------------------------------------------------------------------------------------------- equal results


def random_request(rng: random.Random) -> tuple[str, SamplingConfig]:
    count = rng.randint(1, 40)
    return rng.choice(TEXTS), SamplingConfig(
        max_new_tokens=count,
        min_new_tokens=rng.choice([0, count]),
        temperature=rng.choice([0, 0.7, 1.2]),
        top_p=rng.choice([None, 0.9]),
        top_k=rng.choice([None, 40]),
        seed=rng.randrange(2**31),
        num_return_sequences=rng.choice([1, 1, 1, 3]),
        logprobs=rng.choice([None, 2]),
        stop=rng.choice([(), ("。",)]),
        echo=rng.random() < 0.2,
        repetition_penalty=rng.choice([1.0, 1.2]),
    )


def loaded(bundle, by: str) -> Engine:
    """A bundle whose decode steps are made by the C kernels, or by its graphs as where there are none."""
    engine = load_bundle(bundle)
    if by == "graphs":
        engine.runner._native = None
    return engine


@pytest.fixture(scope="module", params=["kernels", "graphs"])
def offline(debug_bundle, request):
    """The same bundle, batch-invariant, without a scheduler."""
    engine = loaded(debug_bundle, request.param)
    make_batch_invariant(engine.runner)
    return engine


def decoded_by(engine: Engine) -> str:
    return "kernels" if engine.runner._native is not None else "graphs"


def some(engine: Engine, count: int) -> int:
    """Graphs are slow: a quarter of the trials will do."""
    return count if decoded_by(engine) == "kernels" else count // 4


def test_random_arrivals_write_what_each_would_offline_to_the_last_bit(start, debug_bundle, offline):
    scheduler, largest = start(loaded(debug_bundle, decoded_by(offline))), []
    scheduler.on_step = lambda batch, seconds: largest.append(batch)
    rng = random.Random(5)
    requests = [random_request(rng) for _ in range(some(offline, 80))]
    pauses = [rng.random() * 0.02 for _ in requests]
    asked = {}

    def somebody(number: int) -> None:
        for index in range(number, len(requests), 4):
            time.sleep(pauses[index])
            asked[index] = ask(scheduler, *requests[index], session=str(number))

    people = [threading.Thread(target=somebody, args=(number,)) for number in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for index, (text, config) in enumerate(requests):
        assert asked[index].result() == generate(offline, text, config), (text, config)
    assert max(largest, default=0) >= 4, "the requests never met: this test says nothing"
    assert scheduler.engine.runner.pool.free == scheduler.engine.runner.pool.slots


def test_the_server_streams_and_batches_write_what_generate_writes(start, debug_bundle, offline):
    scheduler, rng = start(loaded(debug_bundle, decoded_by(offline))), random.Random(7)
    for config in [random_request(rng)[1] for _ in range(some(offline, 8))]:
        expected = [generate(offline, text, config) for text in TEXTS]
        assert generate_many(offline, TEXTS, config) == expected
        asked = [ask(scheduler, text, config) for text in TEXTS]
        assert [request.result() for request in asked] == expected
        if config.num_return_sequences == 1:
            streams = [stream(offline, text, config) for text in TEXTS]
            echoed = [text if config.echo else "" for text in TEXTS]
            assert [text + "".join(pieces) for text, pieces in zip(echoed, streams)] == [done.text for done in expected]
            assert [pieces.completion for pieces in streams] == expected


def test_batch_invariant_steps_write_the_tokens_of_the_quickest_way(debug_bundle, offline):
    plain = loaded(debug_bundle, decoded_by(offline))
    rng = random.Random(6)
    for text, config in [random_request(rng) for _ in range(some(offline, 12))]:
        ours, theirs = generate(offline, text, config), generate(plain, text, config)
        assert [one.ids for one in ours.all] == [one.ids for one in theirs.all]


def test_rows_of_every_batch_size_have_the_same_bits_at_any_position(offline):
    runner, rng = offline.runner, np.random.default_rng(1)
    ids, lengths = rng.integers(10, 500, (16, 20)), rng.integers(1, 20, 16)
    with runner.pool.holding(16 * 20) as taken:
        slots = np.array(taken).reshape(16, 20)
        for row in range(16):
            known = slice(0, lengths[row])
            runner.run(
                ids[row : row + 1, known],
                np.arange(20)[None, known],
                slots[row : row + 1, known],
                slots[row : row + 1, known],
            )

        def step(rows):
            at = lengths[rows]
            return runner.run(ids[rows, at][:, None], at[:, None], slots[rows, at][:, None], slots[rows])

        alone = [step(np.array([row]))[0] for row in range(16)]
        for size in range(2, 17):
            rows = rng.permutation(16)[:size]
            assert np.array_equal(step(rows), [alone[row] for row in rows]), size


def test_only_graphs_are_held_to_batch_sizes(offline, monkeypatch):
    runner, made = offline.runner, []
    call = runner.call
    monkeypatch.setattr(runner, "call", lambda ids, *others: made.append(ids.shape) or call(ids, *others))
    generate(offline, "春天", SamplingConfig(max_new_tokens=3, min_new_tokens=3, num_return_sequences=7, seed=1))
    size = next((size for size in runner.batch_sizes if size >= 7), 7)
    assert made[1:] == [(size, 1)] * 2 and runner.decodes_by_kernels == (runner.batch_sizes == ())


def test_sizes_that_do_not_agree_are_left_out():
    class Uneven(TableRunner):
        def run(self, ids, positions, write, read, rows=None):
            made = super().run(ids, positions, write, read, rows)
            made[:, 0] += {16: 2, 12: 1, 8: 1, 1: 1}.get(len(ids), 0) * 1e-3  # 12, 8 and 1 agree
            if len(ids) == 16:
                made[-1] += 1e-3  # and its last row is another still
            return made

    tokenizer = CharacterTokenizer()
    runner = Uneven(random_table(tokenizer.vocab_size), tokenizer.vocab_size)
    assert make_batch_invariant(runner) == (1, 8, 12) == runner.batch_sizes
    assert runner.pool.free == runner.pool.slots


# ---------------------------------------------------------------------------------------------------- turns, bounds


def test_sessions_take_turns(start):
    scheduler = start(scripted(seconds=0.002), at_once=1)
    ended = []
    scheduler.on_end = lambda request: ended.append(request.owner)
    asked = [ask(scheduler, "ab", session="busy") for _ in range(4)]
    asked += [ask(scheduler, "ab", session="late"), ask(scheduler, "ab", session="later")]
    assert scheduler.position(asked[-1]) in (2, 3) and scheduler.position(asked[3]) > 3
    for request in asked:
        assert request.result().text == ("abc" * 8)[:16]
    assert ended[:4].count("busy") <= 2 and scheduler.position(asked[-1]) == 0


def test_the_queue_is_bounded_for_all_and_for_each_session(start):
    scheduler = start(scripted(seconds=0.01), at_once=1, waiting=4, waiting_per_session=2)
    ask(scheduler, "ab", session="a")
    time.sleep(0.1)  # it runs now
    for session in ("a", "a", "b", "b"):
        ask(scheduler, "ab", session=session)
    with pytest.raises(Busy, match="4 requests wait already and the queue holds 4"):
        ask(scheduler, "ab", session="c")
    prompt = prepare_prompt("ab", scheduler.engine.tokenizer, GREEDY, 32)
    with pytest.raises(InputError, match="3 prompts at once are more than the queue"):
        scheduler.submit([prompt] * 3, GREEDY)


def test_a_cancelled_request_gives_its_slots_back_and_keeps_its_text(start):
    scheduler = start(scripted(seconds=0.005))
    request = ask(scheduler, "ab")
    next(iter(request))
    request.cancel()
    done = request.result()
    assert done.finish_reason == "cancelled" and "abcabc".startswith(done.text[:6]) and done.text
    assert scheduler.engine.runner.pool.free == 256 and scheduler.counts.cancelled == 1


def test_a_waiting_request_can_be_cancelled(start):
    scheduler = start(scripted(seconds=0.01), at_once=1)
    first, second = ask(scheduler, "ab"), ask(scheduler, "ab")
    second.cancel()
    assert second.result().text == "" and first.result().finish_reason == "length"


def test_a_late_request_ends_with_what_it_has(start):
    scheduler = start(scripted(seconds=0.02), at_once=1)
    running, waiting = ask(scheduler, "ab", seconds=0.15), ask(scheduler, "ab", seconds=0.1)
    for request in (running, waiting):
        with pytest.raises(TooLate):
            request.result()
    assert running.completion.text and not waiting.completion.text
    assert scheduler.counts.late == 2 and scheduler.engine.runner.pool.free == 256


def test_what_cannot_work_is_refused_before_it_waits(start):
    scheduler = start(scripted(), choices=2)
    for config, message in (
        (SamplingConfig(num_return_sequences=3), "n=3 is more than this server's 2"),
        (SamplingConfig(num_beams=2), "beam search is not served"),
        (SamplingConfig(stop_ids=(9999,)), "names token 9999"),
    ):
        with pytest.raises(InputError, match=message):
            ask(scheduler, "ab", config)
    small = start(scripted(slots=48))
    with pytest.raises(InputError, match="the bundle has 48"):
        ask(small, "ab", SamplingConfig(max_new_tokens=30, num_return_sequences=2))


def test_a_request_with_nothing_to_choose_from_fails_alone(start):
    engine = scripted(seconds=0.002)
    written, wrong = engine.runner.logits_of, engine.tokenizer.id_of("z")
    engine.runner.logits_of = lambda ids: written(ids) * (np.nan if ids[0] == wrong and len(ids) > 4 else 1)
    scheduler = start(engine)
    good, bad = ask(scheduler, "ab"), ask(scheduler, "zb")
    with pytest.raises(InputError, match="the model's logits are not finite"):
        bad.result()
    assert good.result().finish_reason == "length" and ask(scheduler, "ab").result().ids
    assert engine.runner.pool.free == 256 and scheduler.counts.failed == 1


# -------------------------------------------------------------------------------- what breaks, and whose trouble it is


class Broken(Exception):
    """Nothing that anybody foresaw."""


def choosing_breaks(monkeypatch, error: type[BaseException], at: int) -> None:
    """Whoever has the seed 13 meets ``error`` at a token."""
    from pangu_lab.generate import sequence

    def choose(logits, config, history, random):
        if config.seed == 13 and len(history.new) == at:
            raise error("nobody foresaw this")
        return sampling_choose(logits, config, history, random)

    sampling_choose = sequence.choose
    monkeypatch.setattr(sequence, "choose", choose)


UNLUCKY = SamplingConfig(temperature=0, max_new_tokens=16, seed=13, num_return_sequences=2)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(
    "error", [Broken, ValueError, KeyError, MemoryError, StopIteration, RecursionError, AssertionError]
)
def test_whatever_choosing_raises_ends_one_request_and_no_other(start, monkeypatch, error, at):
    scheduler = start(scripted(seconds=0.001))
    before = ask(scheduler, "ab").result()
    choosing_breaks(monkeypatch, error, at)
    others = [ask(scheduler, "ab") for _ in range(2)]
    unlucky = ask(scheduler, "ab", UNLUCKY)
    with pytest.raises(RequestFailed, match="this request failed inside the server"):
        unlucky.result()
    assert [one.result().text for one in [*others, ask(scheduler, "ab")]] == [before.text] * 3
    assert scheduler.state == "ready" and scheduler.counts.failed == 1 and scheduler.running == 0
    assert scheduler.engine.runner.pool.free == scheduler.engine.runner.pool.slots


class BreakingStream:
    """A tokenizer's stream that cannot write some letter, or cannot end."""

    def __init__(self, stream, push: bool) -> None:
        self.stream, self.breaks = stream, push

    def push(self, index: int) -> str:
        if self.breaks:
            raise Broken
        return self.stream.push(index)

    def flush(self) -> str:
        raise Broken


@pytest.mark.parametrize("push", [True, False], ids=["writing", "ending"])
def test_a_text_that_cannot_be_written_ends_alone(start, push):
    scheduler = start(scripted(seconds=0.001))
    tokenizer = scheduler.engine.tokenizer
    whole, before = tokenizer.stream, ask(scheduler, "ab").result().text
    tokenizer.stream = lambda: BreakingStream(whole(), push)
    bad = ask(scheduler, "ab")
    tokenizer.stream = whole
    good = ask(scheduler, "ab")
    with pytest.raises(RequestFailed):
        bad.result()
    assert good.result().text == before and scheduler.engine.runner.pool.free == 256


def test_a_cancelled_or_late_text_that_cannot_end_ends_nothing_else(start):
    scheduler = start(scripted(seconds=0.01))
    whole = scheduler.engine.tokenizer.stream
    scheduler.engine.tokenizer.stream = lambda: BreakingStream(whole(), False)
    late, cancelled = ask(scheduler, "ab", seconds=0.05), ask(scheduler, "ab")
    scheduler.engine.tokenizer.stream = whole
    cancelled.cancel()
    for one in (late, cancelled):
        with pytest.raises((TooLate, RequestFailed)):
            one.result()
    assert ask(scheduler, "ab").result().text and scheduler.engine.runner.pool.free == 256


def test_whoever_looks_on_and_fails_ends_nothing(start):
    def fails(*values) -> None:
        raise Broken

    scheduler = start(scripted())
    before = ask(scheduler, "ab").result().text
    scheduler.on_step = scheduler.on_end = fails
    assert ask(scheduler, "ab", notify=fails).result().text == before == ask(scheduler, "ab").result().text


class Failing:
    """A scripted network that fails while it is told to, and can be loaded anew."""

    def __init__(self, engine: Engine, seconds: float = 0.0) -> None:
        self.engine, self.broken, self.loaded = engine, False, 0
        self.written, runner = engine.runner.logits_of, engine.runner
        runner.logits_of = self.logits_of
        runner._graph = object()
        runner.reload = self.reload

    def logits_of(self, ids):
        if self.broken:
            raise Broken("the accelerator has gone")
        return self.written(ids)

    def reload(self):
        self.loaded += 1
        fresh = TableRunner(self.written, self.engine.vocab_size)
        fresh._graph = object()
        return fresh


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(scheduling, "RELOAD_WAITS", (0.05, 0.05, 0.05))


def wait_for(condition, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_failed_network_is_told_to_everybody_with_the_wait_and_comes_back_anew(start, no_waits):
    network = Failing(scripted(seconds=0.002))
    scheduler = start(network.engine)
    before = ask(scheduler, "ab").result().text
    running, waiting = ask(scheduler, "ab"), ask(scheduler, "ab")
    network.broken = True
    for one in (running, waiting):
        with pytest.raises(Unavailable, match=r"the network has failed and is loaded anew in 0 s \(try 1 of 3\)"):
            one.result()
    network.broken = False
    wait_for(scheduler.ready.is_set)
    assert network.loaded >= 1 and scheduler.state == "ready"
    assert ask(scheduler, "ab").result().text == before and network.engine.runner.pool.free == 256


def test_while_it_is_loaded_anew_nothing_is_taken(start, monkeypatch):
    monkeypatch.setattr(scheduling, "RELOAD_WAITS", (60.0,))
    network = Failing(scripted(seconds=0.002))
    scheduler = start(network.engine)
    request, network.broken = ask(scheduler, "ab"), True
    with pytest.raises(Unavailable):
        request.result()
    with pytest.raises(Unavailable, match=r"loaded anew in 60 s \(try 1 of 1\): ask again"):
        ask(scheduler, "ab")
    assert scheduler.close(seconds=1)  # and its end does not wait for that minute


def test_a_network_that_fails_again_and_again_has_failed_for_good(start, no_waits):
    network = Failing(scripted(seconds=0.002))
    scheduler = start(network.engine)
    request, network.broken = ask(scheduler, "ab"), True
    with pytest.raises(Unavailable, match="the network has failed"):
        request.result()
    wait_for(lambda: scheduler.state == "the network has failed; see the server's log")
    with pytest.raises(Unavailable):
        ask(scheduler, "ab")
    assert network.loaded == 3 and not scheduler.ready.is_set()
    assert isinstance(scheduler._failure, Broken) and network.engine.runner.pool.free == 256


def test_failures_of_long_ago_do_not_count(start, no_waits, monkeypatch):
    monkeypatch.setattr(scheduling, "RELOAD_WINDOW", 0.0)
    network = Failing(scripted(seconds=0.002))
    scheduler = start(network.engine)
    for _ in range(5):
        request, network.broken = ask(scheduler, "ab"), True
        with pytest.raises(Unavailable):
            request.result()
        network.broken = False
        wait_for(scheduler.ready.is_set)
    assert ask(scheduler, "ab").result().text


def test_a_network_that_never_worked_is_not_tried_again():
    network = Failing(scripted())
    network.broken = True
    scheduler = Scheduler(network.engine)
    with pytest.raises(Broken):
        scheduler.wait_ready()
    assert network.loaded == 0


def test_a_bundle_whose_graphs_fail_is_read_again_and_writes_the_same(start, no_waits, debug_bundle):
    bundle = load_bundle(debug_bundle)
    bundle.runner.reload = bundle.reload
    scheduler = start(bundle)
    config = SamplingConfig(temperature=0.8, seed=3, max_new_tokens=12)
    before = ask(scheduler, "春天来了，", config).result()

    def broken(*arrays):
        raise RuntimeError("the graph is gone")

    bundle.runner._graph, bundle.runner._fixed, bundle.runner._native = broken, {}, None
    with pytest.raises(Unavailable, match="loaded anew"):
        ask(scheduler, "春天来了，", config).result()
    wait_for(scheduler.ready.is_set, 120)
    assert ask(scheduler, "春天来了，", config).result() == before


def test_a_draining_end_finishes_what_was_taken_and_takes_nothing_new(start):
    scheduler = start(scripted(seconds=0.005), at_once=1)
    asked = [ask(scheduler, "ab") for _ in range(3)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    time.sleep(0.05)
    with pytest.raises(Unavailable, match="the server is ending"):
        ask(scheduler, "ab")
    closing.join()
    assert [request.result().finish_reason for request in asked] == ["length"] * 3


def test_an_end_that_does_not_wait_cuts_off(start):
    scheduler = start(scripted(seconds=0.01), at_once=1)
    asked = [ask(scheduler, "ab") for _ in range(3)]
    assert not scheduler.close(drain=False)
    assert all(request.result().finish_reason == "cancelled" for request in asked)


def test_limits_are_read_from_words():
    assert parse_limits(["new_tokens=5", "seconds=2.5"]) == Limits(new_tokens=5, seconds=2.5)
    for text, message in (
        ("new_token=5", "did you mean 'new_tokens'"),
        ("seconds=x", "must be a number"),
        ("waiting=0", "must be above 0"),
        ("at_once=17", "at most 16"),
    ):
        with pytest.raises(InputError, match=message):
            parse_limits([text])
