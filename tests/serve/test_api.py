"""The API of a real server process, asked by real clients: the texts of offline generation, and the right errors."""

from __future__ import annotations

import json
import re
import threading

import httpx
import openai
import pytest

from pangu_lab import cli
from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.evaluate import ServerScorer, open_scorer
from pangu_lab.export import load_bundle
from pangu_lab.generate import generate
from pangu_lab.generate.batch_invariant import make_batch_invariant
from pangu_lab.serve import serve
from tests.evaluate.letters import sample_lines
from tests.serve.running import running

PROMPT = "春天来了，"


@pytest.fixture(scope="module")
def server(debug_bundle):
    with running(debug_bundle, "--limit", "new_tokens=60", "--limit", "prompt_characters=500") as process:
        yield process


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def offline(debug_bundle):
    engine = load_bundle(debug_bundle)
    make_batch_invariant(engine.runner)
    return engine


# ------------------------------------------------------------------------------------------------ OpenAI's client


def test_a_completion_is_that_of_offline_generation(client, offline):
    for values in (
        {"temperature": 0},
        {"temperature": 0.8, "seed": 7, "top_p": 0.9},
        {"seed": 3, "frequency_penalty": 0.5, "presence_penalty": 0.2, "logit_bias": {"20": 5}},
    ):
        answer = client.completions.create(model="debug", prompt=PROMPT, max_tokens=24, **values)
        bias = tuple((int(key), value) for key, value in values.get("logit_bias", {}).items())
        expected = generate(offline, PROMPT, SamplingConfig(max_new_tokens=24, **{**values, "logit_bias": bias}))
        assert answer.choices[0].text == expected.text and answer.object == "text_completion"
        assert answer.usage.prompt_tokens == len(expected.prompt_ids)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_same_text(client, offline):
    values = {"model": "debug", "prompt": [PROMPT, "他说："], "max_tokens": 20, "seed": 5, "n": 2}
    whole = client.completions.create(**values)
    texts, reasons, usage = {}, {}, None
    for piece in client.completions.create(**values, stream=True, stream_options={"include_usage": True}):
        usage = piece.usage or usage
        for choice in piece.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.text for choice in whole.choices} and len(texts) == 4
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    expected = generate(offline, "他说：", SamplingConfig(max_new_tokens=20, seed=5, num_return_sequences=2))
    assert [choice.text for choice in whole.choices[2:]] == [one.text for one in expected.all]


def test_logprobs_and_echo_are_the_models(client, offline):
    values = {"model": "debug", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 2, "echo": True}
    answer = client.completions.create(**values)
    expected = generate(offline, PROMPT, SamplingConfig(max_new_tokens=4, temperature=0, logprobs=2, echo=True))
    told, choice = answer.choices[0].logprobs, answer.choices[0]
    assert choice.text == expected.text and choice.text.startswith(PROMPT)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs == [one.logprob for one in (*expected.prompt_logprobs, *expected.logprobs)]
    assert len(told.tokens) == len(told.text_offset) == len(told.top_logprobs) and told.text_offset[0] == 0
    streamed = [piece.choices[0].logprobs for piece in client.completions.create(**values, stream=True)]
    parts = [part for part in streamed if part]
    assert [one for part in parts for one in part.token_logprobs] == told.token_logprobs
    assert [one for part in parts for one in part.text_offset] == told.text_offset


def test_a_prompt_alone_is_scored_streamed_or_not(client):
    values = {"model": "debug", "prompt": PROMPT, "max_tokens": 0, "logprobs": 0, "echo": True}
    answer = client.completions.create(**values)
    assert answer.choices[0].text == PROMPT and answer.usage.completion_tokens == 0
    [piece] = list(client.completions.create(**values, stream=True))
    assert piece.choices[0].logprobs.token_logprobs == answer.choices[0].logprobs.token_logprobs
    assert piece.choices[0].finish_reason == "length"


def test_a_stop_text_ends_a_completion_before_itself(client, offline):
    values = {
        "model": "debug",
        "prompt": PROMPT,
        "max_tokens": 24,
        "seed": 3,
        "logit_bias": {str(offline.tokenizer.eod_id): -100},
    }
    free = client.completions.create(**values).choices[0].text
    mark = free[len(free) // 2]
    cut = client.completions.create(**values, stop=[mark]).choices[0]
    assert cut.text == free[: free.index(mark)] and cut.finish_reason == "stop"


def test_prompts_can_be_tokens(client, offline):
    ids = offline.tokenizer.encode(PROMPT)
    by_ids = client.completions.create(model="debug", prompt=ids, max_tokens=12, temperature=0)
    by_text = client.completions.create(model="debug", prompt=PROMPT, max_tokens=12, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_the_models_are_listed(client, offline):
    [card] = client.models.list().data
    assert (card.id, card.owned_by, card.max_model_len) == ("debug", "pangu-lab", offline.max_length)
    assert client.models.retrieve("debug").id == "debug"


def test_errors_are_those_that_the_client_knows(client):
    for values, kind, parameter in (
        ({"model": "gpt"}, openai.NotFoundError, "model"),
        ({"max_tokens": 61}, openai.UnprocessableEntityError, "max_tokens"),
        ({"n": 9}, openai.UnprocessableEntityError, "n"),
        ({"temperature": 300}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"what": 1}}, openai.BadRequestError, "what"),
        ({"prompt": "春" * 501}, openai.APIStatusError, "prompt"),
        ({"prompt": [10] * 400}, openai.BadRequestError, "prompt"),
        ({"prompt": [99999]}, openai.BadRequestError, "prompt"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias"),
        ({"best_of": 3}, openai.BadRequestError, "best_of"),
    ):
        with pytest.raises(kind) as caught:
            client.completions.create(**{"model": "debug", "prompt": PROMPT, **values})
        assert caught.value.body["message"] and caught.value.body["param"] == parameter, values
        assert caught.value.body["type"] == "invalid_request_error"


def test_what_is_no_request_is_refused_in_the_same_form(http):
    for body, status in ((b"{", 400), (b"[]", 400), (b"\xff", 400), (b'{"prompt": {}}', 400)):
        answer = http.post("/v1/completions", content=body)
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for path in ("/v1/completions", "/v1/nothing", "/model/x/version/0:predict"):
        answer = http.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"


# -------------------------------------------------------------------------------------- the reference's own routes


def test_the_references_predict_continues_under_its_own_names(http, offline):
    body = {
        "instances": [
            {
                "input_sentence": PROMPT,
                "top_k_num": 1,
                "max_generate_length": 12,
                "top_p": 1.0,
                "frequency_penalty": 0.0,
                "presence_penalty": 0.0,
                "end_token": 9,
                "use_past": True,
            },
            {"input_sentence": "他说", "prompt": "", "top_k_num": 1, "max_generate_length": 5},
        ]
    }
    answer = http.post("/model/pangu/version/0:predict", json=body)
    expected = [
        generate(offline, text, SamplingConfig(max_new_tokens=count, top_k=1, stop_ids=ends)).text
        for text, count, ends in ((PROMPT, 12, (9,)), ("他说", 5, ()))
    ]
    assert [one["output_sentence"] for one in answer.json()["instances"]] == expected
    single = http.post("/model/pangu/version/0:predict", json={"instances": body["instances"][1]})
    assert single.json()["instances"][0]["output_sentence"] == expected[1]


def test_the_references_scores_rank_what_follows_the_prompt(http, offline):
    body = {"instances": [{"input_sentence": PROMPT + "花开了", "prompt": PROMPT, "return_scores": True}]}
    [answer] = http.post("/model/pangu/version/0:predict", json=body).json()["instances"]
    told = generate(offline, PROMPT + "花开了", SamplingConfig(max_new_tokens=0, echo=True, logprobs=0)).prompt_logprobs
    scored = [one.logprob for one in told[len(told) - len(answer["scores"]) :]]
    assert answer["scores"] == scored and len(scored) < len(told)
    assert answer["output_sentence"] == pytest.approx(-sum(scored) / len(scored))


def test_the_references_query_answers_plain_text(http):
    assert http.get("/query", params={"u": PROMPT}).headers["content-type"].startswith("text/plain")


def test_wrong_instances_are_refused(http):
    for instance, status in (
        ({"input_sentence": 3}, 400),
        ({"top_p": "x"}, 400),
        ({"topp": 1}, 400),
        ({"max_generate_length": 61}, 422),
        ({"input_sentence": "春" * 501}, 413),
        ({"input_sentence": "春", "prompt": "春", "return_scores": True}, 400),
    ):
        assert http.post("/model/pangu/version/0:predict", json={"instances": [instance]}).status_code == status
    assert http.post("/model/pangu/version/0:predict", json={"x": 1}).status_code == 400


# ------------------------------------------------------------------------------------------------------ evaluation


def test_an_evaluation_through_the_server_gives_the_numbers_of_the_bundle(server, offline, capsys):
    pairs = [(PROMPT, "花开了。"), ("他说：", "你好"), ("", "山路很长")]
    remote = ServerScorer(server.url, tokenizer=offline.tokenizer).loglikelihood(pairs)
    by_text = ServerScorer(server.url).loglikelihood(pairs)
    for (context, continuation), one, other in zip(pairs, remote, by_text):
        told = generate(offline, context + continuation, SamplingConfig(max_new_tokens=0, echo=True, logprobs=0))
        expected = sum(entry.logprob for entry in told.prompt_logprobs[len(told.prompt_logprobs) - one.tokens :])
        assert one.logprob == pytest.approx(expected, abs=1e-5)
        assert other.tokens > 0 and (not context or other.logprob == pytest.approx(one.logprob, abs=1e-4))


def test_texts_longer_than_the_window_are_cut_and_scored_as_offline(server, debug_run, offline, http):
    long = "".join(sample_lines(40))[:400]
    pairs = [(long[:cut], long[cut : cut + 6]) for cut in (100, 150, 300)] + [("", long)]
    local = open_scorer(debug_run)
    for cut in ("context", "continuation"):
        ours = local.loglikelihood(pairs, cut)
        theirs = ServerScorer(server.url, tokenizer=offline.tokenizer).loglikelihood(pairs, cut)
        assert [one.cut for one in theirs] == [one.cut for one in ours] and ours[2].cut > 0
        assert [one.logprob for one in theirs] == pytest.approx([one.logprob for one in ours], rel=1e-5)
    with pytest.raises(InputError, match="--tokenizer DIR"):
        ServerScorer(server.url).loglikelihood(pairs)
    ids = offline.tokenizer.encode(long)[: offline.max_length + 1]
    for values, status in (
        ({"echo": True, "max_tokens": 0}, 200),
        ({"echo": True, "max_tokens": 1}, 400),
        ({"max_tokens": 0}, 400),
    ):
        assert http.post("/v1/completions", json={"prompt": ids, **values}).status_code == status


def test_the_verb_evaluates_a_task_through_the_server(server, debug_run, debug_bundle, tmp_path, capsys):
    from tests.evaluate.published import write_all

    data = write_all(tmp_path)
    values = []
    for source in (
        ["--from", str(debug_run)],
        ["--server", server.url, "--tokenizer", str(debug_bundle / "tokenizer")],
    ):
        assert cli.main(["evaluate", "ocnli", *source, "--data", str(data), "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out.splitlines()[-1])["value"])
    assert values[0] == values[1]


# ----------------------------------------------------------------------------------------------- health and metrics


def test_health_and_metrics_tell_how_it_is(http):
    assert http.get("/healthz").text == "ok\n" and http.get("/readyz").text == "ready\n"
    http.post("/v1/completions", json={"prompt": "绝密的开头", "max_tokens": 3})
    text = http.get("/metrics").text
    assert "绝密" not in text and re.search(r'pangu_http_requests_total\{route="/v1/completions",status="200"\}', text)
    for name in (
        "pangu_ready 1.0",
        "pangu_generated_tokens_total",
        "pangu_time_to_first_token_seconds_bucket",
        "pangu_queue_length 0.0",
        "pangu_cache_slots_used 0.0",
    ):
        assert name in text, name


def test_many_clients_at_once_get_each_its_own_text(client, offline):
    expected, got = {}, {}

    def somebody(seed: int) -> None:
        answer = client.completions.create(model="debug", prompt=PROMPT, max_tokens=30, seed=seed)
        got[seed] = answer.choices[0].text

    people = [threading.Thread(target=somebody, args=(seed,)) for seed in range(24)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for seed in range(24):
        expected[seed] = generate(offline, PROMPT, SamplingConfig(max_new_tokens=30, seed=seed)).text
    assert got == expected and len(set(expected.values())) > 20


def test_gradios_own_client_continues_a_prompt(server, offline):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.url, verbose=False)
    text = client.predict(PROMPT, 12, 0.0, 1.0, -1, api_name="/complete")
    assert text == generate(offline, PROMPT, SamplingConfig(max_new_tokens=12, temperature=0)).text
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/complete"]
    with pytest.raises(Exception, match="writes 60 tokens at most"):
        client.predict(PROMPT, 61, 0.0, 1.0, -1, api_name="/complete")


def test_a_run_is_served_as_it_is(debug_run):
    from pangu_lab import PanguLM

    with serve(debug_run, port=0, page=False) as server:
        asked = {"prompt": "春天", "max_tokens": 6, "temperature": 0}
        text = httpx.post(server.url + "v1/completions", json=asked, timeout=60).json()["choices"][0]["text"]
    assert text == PanguLM.load(debug_run).generate("春天", max_new_tokens=6, temperature=0.0).text
