"""The same numbers through an API: a small server that speaks the protocol, with the local scorer behind it."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.evaluate import ServerScorer, evaluate
from pangu_lab.evaluate.split import TokenPair
from tests.evaluate.letters import sample_lines
from tests.evaluate.published import write_all


class FakeServer(http.server.ThreadingHTTPServer):
    """``/v1/models`` and ``/v1/completions`` with echo and logprobs; requests are kept in ``asked``."""

    def __init__(self, scorer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scorer, self.asked = scorer, []
        self.failures: list[int] = []  # status codes to answer with first
        self.refuse_zero = False  # as servers do that must write at least one token
        self.with_logprobs = True
        self.says_window = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        window = {"max_model_len": self.server.scorer.window} if self.server.says_window else {}
        self._answer(200, {"object": "list", "data": [{"id": "debug", **window}]})

    def do_POST(self):
        values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(values)
        if self.server.failures:
            return self._answer(self.server.failures.pop(0), {"error": {"message": "too busy"}})
        if values["max_tokens"] == 0 and self.server.refuse_zero:
            return self._answer(400, {"error": {"message": "max_tokens must be at least 1"}})
        choices = [{"index": i, **self._choice(prompt, values)} for i, prompt in enumerate(values["prompt"])]
        self._answer(200, {"choices": choices[::-1]})  # clients must go by the index

    def _choice(self, prompt, values):
        scorer = self.server.scorer
        if not values.get("echo"):
            return {"text": "四十年"}
        ids = scorer.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        texts = [scorer.tokenizer.decode([index]) for index in ids]
        [score] = scorer.score_tokens([TokenPair(tuple(ids), 1)])
        singles = scorer.score_tokens([TokenPair(tuple(ids[:end]), end - 1) for end in range(2, len(ids) + 1)])
        logprobs = [None, *score.token_logprobs]
        tops = [None] + [
            {text: value if one.greedy else value + 0.5}
            for text, value, one in zip(texts[1:], score.token_logprobs, singles)
        ]
        if values["max_tokens"]:
            texts, logprobs, tops = [*texts, "多"], [*logprobs, -0.5], [*tops, {"多": -0.5}]
        found = {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops}
        return {"text": "", "logprobs": found if self.server.with_logprobs else None}

    def _answer(self, status, values):
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(scorer):
    server = FakeServer(scorer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(scorer):
    with serving(scorer) as running:
        yield running


def pairs():
    """Short enough for the window; boundaries anywhere, so that some pieces straddle."""
    lines = [line[:30] for line in sample_lines(9)]
    return [(line[:cut], line[cut:]) for line in lines for cut in (0, 3, 8)] + [(lines[0], "好"), (lines[0], "不")]


def test_asking_in_tokens_gives_the_scores_of_the_local_model(server, scorer):
    remote = ServerScorer(server.url, tokenizer=scorer.tokenizer, batch=7)
    assert remote.name == "debug" and remote.window == scorer.window
    for ours, theirs in zip(scorer.loglikelihood(pairs()), remote.loglikelihood(pairs()), strict=True):
        assert theirs.tokens == ours.tokens and theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
        assert theirs.greedy == ours.greedy


def test_asking_in_text_splits_it_where_the_local_model_does(run_folder):
    from pangu_lab.evaluate import open_scorer

    local = open_scorer(run_folder)
    with serving(local) as server:
        remote = ServerScorer(server.url + "/v1/", batch=16)
        for ours, theirs in zip(local.loglikelihood(pairs()), remote.loglikelihood(pairs()), strict=True):
            assert (theirs.tokens, theirs.logprob) == (ours.tokens, pytest.approx(ours.logprob, abs=1e-4))


def test_an_evaluation_gives_the_same_numbers_as_offline(server, scorer, tmp_path):
    data = write_all(tmp_path)
    for task in ("c3", "ocnli", "wplc"):
        local = evaluate(task, scorer, data)
        remote = evaluate(task, ServerScorer(server.url, tokenizer=scorer.tokenizer), data)
        assert remote.n == local.n and remote.value == pytest.approx(local.value, rel=1e-5)  # rounded logarithms travel
    reference = [
        evaluate("c3", one, data, scoring="reference").value
        for one in (scorer, ServerScorer(server.url, tokenizer=scorer.tokenizer))
    ]
    assert reference[0] == reference[1]
    by_text = evaluate("afqmc", server.url, data)
    assert by_text.value == evaluate("afqmc", scorer, data).value


def test_a_text_longer_than_the_window_is_shortened_here_when_asking_in_tokens(server, scorer):
    text = "".join(sample_lines(40))
    remote = ServerScorer(server.url, tokenizer=scorer.tokenizer)
    [theirs] = remote.loglikelihood([(text[:200], text[200:210])])
    assert len(server.asked[0]["prompt"][0]) == scorer.window  # no token more than the server says it can read
    [ours] = scorer.score_tokens([remote.encode(text[:200], text[200:210])])
    assert theirs.cut == ours.cut > 0 and theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)


def test_each_text_is_asked_once_in_a_batch(server):
    ServerScorer(server.url, batch=16).loglikelihood([("问：甲", option) for option in "乙丙丁"])
    assert len(server.asked) == 1 and sorted(server.asked[0]["prompt"]) == sorted(
        ["问：甲乙", "问：甲丙", "问：甲丁", "问：甲"]
    )
    assert server.asked[0]["echo"] is True and server.asked[0]["max_tokens"] == 0


def test_empty_texts_are_not_sent(server):
    [nothing, something] = ServerScorer(server.url).loglikelihood([("", ""), ("", "一二三四")])
    assert (nothing.tokens, nothing.logprob) == (0, 0.0) and something.tokens > 0
    assert server.asked[0]["prompt"] == ["一二三四"]


def test_a_server_that_must_write_a_token_is_asked_for_one_that_is_dropped(server, scorer):
    server.refuse_zero = True
    remote = ServerScorer(server.url)
    [theirs] = remote.loglikelihood([("一二三", "四五六")])
    [ours] = scorer.loglikelihood([("一二三", "四五六")])
    assert theirs.tokens == ours.tokens and theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
    remote.loglikelihood([("一", "二")])
    assert [values["max_tokens"] for values in server.asked] == [0, 1, 1]


def test_a_busy_server_is_asked_again(server, scorer):
    remote = ServerScorer(server.url)
    server.failures = [503, 429]
    assert remote.loglikelihood([("一二三", "四五六")])[0].tokens > 0 and len(server.asked) == 3


def test_answers_are_written_by_the_server(server, tmp_path):
    result = evaluate("cmrc2018", server.url, write_all(tmp_path))
    assert result.n == 2 and result.value == 0.0 and result.model == "debug"
    assert server.asked[0]["stop"] == ["\n"] and server.asked[0]["temperature"] == 0


def test_what_the_server_cannot_do_is_said_in_one_line(server, scorer):
    server.failures = [400]
    with pytest.raises(InputError, match="the server answers 400: too busy") as caught:
        ServerScorer(server.url).loglikelihood([("一", "二三")])
    assert "\n" not in str(caught.value)
    server.with_logprobs = False
    with pytest.raises(InputError, match="answers without logprobs of the prompt"):
        ServerScorer(server.url).loglikelihood([("一", "二三")])
    with pytest.raises(InputError, match="needs the server's tokenizer: give it with --tokenizer"):
        ServerScorer(server.url).score_tokens([TokenPair((1, 2), 1)])
    server.says_window = False
    with pytest.raises(InputError, match="does not report its longest input: give the window"):
        ServerScorer(server.url, tokenizer=scorer.tokenizer)
    assert ServerScorer(server.url, tokenizer=scorer.tokenizer, window=32).window == 32


def test_no_server_is_said_in_one_line(server):
    server.shutdown()
    url = server.url
    server.server_close()
    with pytest.raises(InputError, match="no answer .*is the server running"):
        ServerScorer(url)
    with pytest.raises(InputError, match="begins with http"):
        ServerScorer("localhost:8000")


def test_means_are_finite_for_every_pair(server):
    scores = ServerScorer(server.url).loglikelihood(pairs())
    assert np.isfinite([score.mean for score in scores]).all()
