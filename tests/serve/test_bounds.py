"""What a server refuses, what it survives and how it ends: real processes, raw sockets where it matters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import socket
import struct
import threading
import time

import httpx
import pytest

from pangu_lab import cli
from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export import load_bundle
from pangu_lab.generate import generate
from pangu_lab.generate.batch_invariant import make_batch_invariant
from pangu_lab.serve import Limits, serve
from pangu_lab.serve.pid_file import pid_file, read_pid
from pangu_lab.serve.protocol import SETTINGS
from tests.serve.running import ROOT, running, scripted
from tests.serve.test_scheduler import choosing_breaks

LONG = {"prompt": "春天", "max_tokens": 60, "min_tokens": 60, "temperature": 1, "stream": True}


def asking(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers)


@pytest.fixture(scope="module")
def served():
    """In this process, slow enough to watch."""
    limits = Limits(
        body_bytes=2000,
        at_once=2,
        waiting=3,
        waiting_per_session=2,
        seconds=60,
        prompts=2,
        choices=2,
        logprobs=3,
        stop_texts=2,
        new_tokens=30,
        prompt_characters=50,
    )
    with serve(scripted("abc" * 20, seconds=0.02), port=0, limits=limits, token="key", page=False) as server:
        yield server


@pytest.fixture
def client(served):
    with asking(served.url, authorization="Bearer key") as client:
        yield client


def post(client: httpx.Client, **values) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 3, "temperature": 0, **values})


def test_a_key_is_wanted_where_one_is_set(served):
    with asking(served.url) as nobody:
        answer = post(nobody)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert nobody.get("/metrics").status_code == 401 and nobody.get("/healthz").status_code == 200
        assert post(nobody).headers["www-authenticate"] == "Bearer"
        assert nobody.get("/v1/models", auth=("pangu", "key")).status_code == 200
        assert nobody.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert nobody.get("/v1/models", headers={"authorization": "Bearer schlüssel".encode()}).status_code == 401


def test_too_much_is_refused_with_the_reason(client):
    for values, status, words in (
        ({"prompt": "a" * 51}, 413, "51 characters"),
        ({"n": 3}, 422, "n=3"),
        ({"prompt": ["a", "b", "c"]}, 422, "3 prompts"),
        ({"logprobs": 4}, 422, "logprobs=4"),
        ({"stop": ["a", "b", "c"]}, 422, "stop=3"),
        ({"max_tokens": 31}, 422, "max_tokens=31"),
        ({"prompt": "a" * 40}, 400, "maximum context length is 32"),
    ):
        answer = post(client, **values)
        assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text


def test_a_body_that_is_too_large_is_refused_whatever_its_header_says(client):
    assert client.post("/v1/completions", content=b"x" * 2001).status_code == 413
    parts = (b"x" * 500 for _ in range(9))  # sent in chunks, without a length
    assert client.post("/v1/completions", content=parts).status_code == 413


def test_pages_of_other_sites_and_other_names_are_refused(client, served):
    for headers in ({"origin": "https://example.com"}, {"origin": "null"}, {"host": "example.com"}):
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    assert client.get("/v1/models", headers={"origin": served.url.rstrip("/")}).status_code == 200
    assert client.options("/v1/completions", headers={"origin": "https://example.com"}).status_code == 403


NUMBERS = (*SETTINGS, "logit_bias")
HOSTILE = (
    "1e-320",
    "-1e-320",
    "1e-45",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "1" + "0" * 400,
    "-1" + "0" * 400,
    '"1"',
    "true",
    "[1]",
    "{}",
)


def raw(client: httpx.Client, path: str, body: str) -> httpx.Response:
    return client.post(path, content=body.encode(), headers={"content-type": "application/json"})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_means_nothing_is_refused_by_its_name_and_the_next_request_is_as_before(client, served, name):
    before = post(client).json()["choices"]
    for value in HOSTILE:
        written = f'{{"5": {value}}}' if name == "logit_bias" else value
        answer = raw(client, "/v1/completions", f'{{"prompt": "ab", "{name}": {written}}}')
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == name and error["type"] == "invalid_request_error", (
            answer.text
        )
        assert name in error["message"] and "between" in error["message"] and "\n" not in error["message"], answer.text
        assert len(error["message"]) < 250
    assert post(client).json()["choices"] == before and served.scheduler.state == "ready"


def test_the_references_predict_refuses_the_same_numbers(client, served):
    for name in ("frequency_penalty", "presence_penalty", "top_p", "top_k_num", "max_generate_length", "end_token"):
        for value in HOSTILE:
            answer = raw(
                client,
                "/model/pangu/version/0:predict",
                f'{{"instances": [{{"input_sentence": "ab", "{name}": {value}}}]}}',
            )
            assert answer.status_code == 400 and name in answer.json()["error"]["message"], answer.text
    assert post(client).status_code == 200 and served.scheduler.state == "ready"


def test_a_number_of_more_digits_than_python_reads_is_no_error_of_the_server(client):
    assert raw(client, "/v1/completions", '{"seed": %s}' % ("1" * 1500)).status_code == 400
    small = Limits(body_bytes=20_000)
    with serve(scripted("abc"), port=0, limits=small, page=False) as server, asking(server.url) as client:
        assert raw(client, "/v1/completions", '{"seed": %s}' % ("1" * 9000)).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a\\ud83d"}',
        '{"prompt": ["a", "\\udc00b"]}',
        '{"prompt": "a", "stop": "\\ud83d"}',
        '{"prompt": "a", "model": "\\ud83d"}',
        '{"prompt": "a", "\\ud83d": 1}',
        '{"prompt": "a", "user": "\\ud83d\\ud83d"}',
    ],
)
def test_half_a_surrogate_pair_is_refused_where_it_is_read(client, body):
    answer = raw(client, "/v1/completions", body)
    assert answer.status_code == 400 and "half a surrogate pair" in answer.json()["error"]["message"]
    nested = '{"instances": [{"input_sentence": %s}]}' % body
    assert raw(client, "/model/pangu/version/0:predict", nested).status_code == 400
    assert client.post("/v1/completions", content=b'{"prompt": "a\xed\xa0\xbd"}').status_code == 400
    assert (
        raw(client, "/v1/completions", '{"prompt": "a\\ud83d\\ude00", "max_tokens": 1}').status_code == 200
    )  # a whole one


def test_a_request_that_breaks_the_server_gets_an_error_and_the_next_its_text(client, served, monkeypatch):
    before = post(client).json()["choices"]
    choosing_breaks(monkeypatch, KeyError, 1)
    answer = post(client, seed=13)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "request_failed"
    assert answer.json()["error"]["type"] == "server_error" and "others go on" in answer.json()["error"]["message"]
    streamed = post(client, seed=13, stream=True)
    assert streamed.status_code == 200 and '"code": "request_failed"' in streamed.text and "[DONE]" not in streamed.text
    assert post(client).json()["choices"] == before and served.scheduler.state == "ready"
    assert client.get("/readyz").status_code == 200


def test_what_nobody_foresaw_is_answered_in_the_same_form(client, served, monkeypatch):
    def encode(text: str) -> list[int]:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(served.scheduler, "encode", encode)
    answer = post(client)
    assert answer.status_code == 500 and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "nobody foresaw" not in answer.text


def test_a_full_queue_is_said(client):
    answers = []

    def ask(user: str) -> None:
        answers.append(post(client, user=user, max_tokens=30))

    people = [threading.Thread(target=ask, args=(str(number % 4),)) for number in range(12)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(429) >= 5 and codes.count(200) >= 2 and set(codes) == {200, 429}
    busy = next(answer for answer in answers if answer.status_code == 429)
    assert busy.headers["retry-after"] == "1" and busy.json()["error"]["type"] == "rate_limit_error"


def test_a_late_answer_is_said():
    limits = Limits(seconds=0.5)
    with (
        serve(scripted("abc" * 20, seconds=0.1), port=0, page=False, quick=True, limits=limits) as server,
        asking(server.url) as client,
    ):
        late = post(client, max_tokens=25)
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        with client.stream(
            "POST", "/v1/completions", json={"prompt": "ab", "max_tokens": 25, "stream": True}
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_no_route_gives_a_file(client):
    for path in (
        "/file=/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/v1/../../etc/passwd",
        "/docs",
        "/openapi.json",
    ):
        assert client.get(path).status_code in (404, 405), path


def test_a_server_that_is_ending_answers_503():
    with (
        serve(scripted("abc" * 20, seconds=0.02), port=0, page=False, quick=True) as server,
        asking(server.url) as client,
    ):
        assert client.get("/readyz").status_code == 200
        asker = threading.Thread(target=post, args=(client,), kwargs={"max_tokens": 25})
        asker.start()
        time.sleep(0.2)
        ending = threading.Thread(target=server.scheduler.close)
        ending.start()
        time.sleep(0.05)
        answer = post(client)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        ending.join()
        asker.join()


# ---------------------------------------------------------------------------------------------- a process of its own


def hang_up(url: str, number: int) -> None:
    """Start a request and leave it: before an answer, in the middle of one, or rudely."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "seed": number, "stream": number % 2 == 0}).encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
            + str(len(body)).encode()
            + b"\r\n\r\n"
            + body
        )
        if number % 4 == 0:
            connection.recv(200)
        if number % 3 == 0:  # a reset instead of a goodbye, as of a killed process
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def used_slots(client: httpx.Client) -> float:
    return float(re.search(r"^pangu_cache_slots_used (\S+)", client.get("/metrics").text, re.M).group(1))


def test_two_hundred_clients_that_vanish_leave_nothing_behind(debug_bundle):
    with running(debug_bundle) as server, asking(server.url) as client:
        for start in range(0, 200, 20):
            people = [
                threading.Thread(target=hang_up, args=(server.url, number)) for number in range(start, start + 20)
            ]
            for person in people:
                person.start()
            for person in people:
                person.join()
        end = time.monotonic() + 30
        while used_slots(client) and time.monotonic() < end:
            time.sleep(0.1)
        text = client.get("/metrics").text
        assert "pangu_cache_slots_used 0.0" in text and "pangu_queue_length 0.0" in text
        cancelled = float(re.search(r"^pangu_cancelled_requests_total (\S+)", text, re.M).group(1))
        assert cancelled > 50, "they all came to their end: this test says nothing"
        engine = load_bundle(debug_bundle)
        make_batch_invariant(engine.runner)
        answer = client.post("/v1/completions", json={"prompt": "春天", "max_tokens": 20, "seed": 1}).json()
        expected = generate(engine, "春天", SamplingConfig(max_new_tokens=20, seed=1)).text
        assert answer["choices"][0]["text"] == expected


def test_a_signal_ends_it_when_what_runs_is_done_and_prompts_are_not_logged(debug_bundle, tmp_path):
    file = tmp_path / "serve.pid"
    with running(debug_bundle, "--pid-file", str(file)) as server, asking(server.url) as client:
        assert read_pid(file) == server.pid
        with pytest.raises(InputError, match="is alive and serves"), pid_file(file):
            pass
        with client.stream("POST", "/v1/completions", json={**LONG, "prompt": "绝密的开头"}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest and any('"finish_reason": "length"' in line for line in rest)
        code, out, err = server.end()
        assert code == 0 and out.endswith("ended\n") and not file.exists()
        assert "绝密" not in out + err and "Traceback" not in err


def test_more_answers_at_once_than_sessions_are_refused_until_one_ends():
    with serve(scripted("abc" * 20, seconds=0.1), port=0, page=False, quick=True, limits=Limits(sessions=2)) as server:
        with contextlib.ExitStack() as held:
            first, second, third = (held.enter_context(asking(server.url)) for _ in range(3))
            long = {"prompt": "ab", "max_tokens": 28, "stream": True}
            for one in (first, second):
                held.enter_context(one.stream("POST", "/v1/completions", json=long))
            refused = third.get("/v1/models")
            assert refused.status_code == 503 and refused.headers["connection"] == "close"
            assert third.get("/healthz").status_code == 200 and "pangu_running_sequences" in third.get("/metrics").text
            first.close()
            end, answers = time.monotonic() + 30, []
            while 200 not in answers and time.monotonic() < end:
                with asking(server.url) as again:
                    answers.append(again.get("/v1/models").status_code)
            assert answers[-1] == 200


def test_stop_ends_the_server_of_a_pid_file(debug_bundle, tmp_path, capsys):
    file = tmp_path / "serve.pid"
    with running(debug_bundle, "--pid-file", str(file), "--no-page", "--quick") as server:
        with asking(server.url) as client:
            answer = client.post("/v1/completions", json={"prompt": "春天", "max_tokens": 20, "seed": 1}).json()
        expected = generate(load_bundle(debug_bundle), "春天", SamplingConfig(max_new_tokens=20, seed=1)).text
        assert answer["choices"][0]["text"] == expected  # alone, quick decoding is what offline generation does
        reader = threading.Thread(target=server.process.wait)  # somebody must take the exit code of a child
        reader.start()
        assert cli.main(["serve", "--stop", "--pid-file", str(file)]) == 0
        reader.join()
        assert f"process {server.pid} has ended" in capsys.readouterr().out and not file.exists()
    assert cli.main(["serve", "--stop", "--pid-file", str(file)]) == 2
    assert "no server runs with this pid file" in capsys.readouterr().err


def test_wrong_options_are_said_in_one_line(capsys, debug_bundle):
    for arguments, words in (
        (["--limit", "tokens=3"], "unknown limit 'tokens'"),
        ([], "give --bundle DIR"),
        (["--bundle", "nothing"], "no such folder"),
        (["--stop"], "--stop needs --pid-file"),
        (["--bundle", "x", "--host", "0.0.0.0"], "give a password or a token"),
    ):
        assert cli.main(["serve", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["docs/guide.md", "docs/guide.zh-CN.md"])
def test_the_guides_table_of_limits_is_that_of_the_code(name):
    rows = re.findall(
        r"^\| (`[a-z_`,、 ]+`) \| ([\d,、 ]+) \|", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    told = {
        limit: float(value)
        for limits, values in rows
        for limit, value in zip(re.findall(r"\w+", limits), re.findall(r"\d+", values), strict=True)
    }
    assert told == {limit: float(value) for limit, value in dataclasses.asdict(Limits()).items()}
