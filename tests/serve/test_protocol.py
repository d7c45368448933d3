"""Requests as JSON: every field refuses every value that means nothing, and logprobs say where their tokens are."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.generate import Engine
from pangu_lab.generate.sequence import Prompt
from pangu_lab.serve import serve
from pangu_lab.serve.protocol import (
    HARMLESS,
    SETTINGS,
    CompletionBody,
    Offsets,
    Refused,
    parse_json,
    prompt_offsets,
    spelled,
)
from pangu_lab.tokenizer import load_tokenizer, train_vocabulary
from tests.generate.fakes import TableRunner
from tests.serve.running import scripted
from tests.tokenizer.conftest import gpt2_folder  # noqa: F401  (a fixture)

TEXTS = ("model", "suffix", "user")
SWITCHES = ("stream", "echo")
FIELDS = tuple(CompletionBody.model_fields)
# Values as they are written in a request.
HALVES = ('"\\ud83d"', '"a\\udc00b"', '["\\ud800"]', '{"\\ud83d": 1}')
UNREADABLE = ("[" * 5000 + "]" * 5000, '{"a":' * 5000, "9" * 9000)  # refused before there is a field to name
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400, "-1" + "0" * 400, "1e-320", "-1", "0.5", "1")
OTHERS = (
    "{}",
    '{"a": []}',
    "[[[]]]",
    "[null]",
    '[[1], "a"]',
    "[1, true]",
    "[0.5]",
    '["a", 1]',
    "null",
    "true",
    '"x"',
    "[]",
    '""',
)


@pytest.fixture(scope="module")
def http():
    with (
        serve(scripted("abc"), port=0, page=False, quick=True) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        yield client


def raw(http: httpx.Client, body: str, path: str = "/v1/completions") -> httpx.Response:
    return http.post(path, content=body.encode(), headers={"content-type": "application/json"})


def refused(answer: httpx.Response) -> dict:
    """The error of a refusal, which is one readable line."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and 10 < len(error["message"]) < 300, error
    return error


# ------------------------------------------------------------------------------------------------ every field, anything


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_answers_any_value_with_a_text_or_with_one_line_that_names_it(http, name):
    for value in (*HALVES, *UNREADABLE, *NUMBERS, *OTHERS):
        answer = raw(http, f'{{"{name}": {value}}}')
        assert answer.status_code in (200, 400, 404), (value, answer.text)
        if answer.status_code != 200:
            assert refused(answer)["param"] == (None if value in UNREADABLE else name), (value, answer.text)
        if value in HALVES:
            assert f"{name} holds half a surrogate pair" in refused(answer)["message"], answer.text


@pytest.mark.parametrize(
    "name, values",
    [
        *((name, ("1", "true", "[]", "{}", "1e400")) for name in TEXTS),
        *((name, ("1", '"true"', "[]", "{}")) for name in SWITCHES),
        *((name, ('"1"', "true", "[1]", "{}", "NaN")) for name in (*SETTINGS, "best_of")),
        ("prompt", ("1", "true", "{}", "[[[1]]]", '[1, "a"]', "[null]", "[true]", "[0.5]", "[1e400]")),
        ("stop", ("1", "true", "{}", "[1]", '["a", null]', '[["a"]]')),
        ("stream_options", ("1", '"a"', "[]", '{"include_usage": 1}')),
        (
            "logit_bias",
            (
                "1",
                '"a"',
                "[]",
                '{"a": 1}',
                '{"-1": 1}',
                '{"1.5": 1}',
                '{"01": 1}',
                '{" 1": 1}',
                '{"%s": 1}' % ("9" * 400),
                '{"5": "1"}',
                '{"5": null}',
                '{"5": 101}',
            ),
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_under_its_fields_name(http, name, values):
    for value in values:
        answer = raw(http, f'{{"{name}": {value}}}')
        assert answer.status_code == 400 and name in refused(answer)["message"], (value, answer.text)
        assert refused(answer)["param"] == name, value


@pytest.mark.parametrize(
    "name",
    [
        "input_sentence",
        "prompt",
        "return_scores",
        "frequency_penalty",
        "presence_penalty",
        "max_generate_length",
        "top_k_num",
        "top_p",
        "end_token",
        "use_past",
    ],
)
def test_so_does_every_name_of_the_references_predict(http, name):
    for value in (*HALVES, *UNREADABLE, *NUMBERS, *OTHERS):
        answer = raw(http, f'{{"instances": [{{"{name}": {value}}}]}}', "/model/pangu/version/0:predict")
        assert answer.status_code in (200, 400), (value, answer.text)
        assert answer.status_code == 200 or refused(answer)


@pytest.mark.parametrize(
    "body, words",
    [
        ('{"prompt": "a", "prompt": "b"}', "'prompt' twice"),
        ('{"logit_bias": {"5": 1, "5": 2}}', "'5' twice"),
        (UNREADABLE[0], "more than 32 deep"),
        ('{"a": ' * 40 + "1" + "}" * 40, "more than 32 deep"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("NaN", "must be an object"),
        ("[]", "must be an object"),
        ('{"prompt": [-1]}', "token -1 is outside"),
        ('{"prompt": [1%s]}' % ("0" * 400), "is outside the vocabulary"),
        ('{"prompt": "a"} x', "not JSON"),
        ('"a"', "must be an object"),
        ('{"seed": %s}' % ("1" * 9000), "thousands of digits"),
        ('{"\\ud83d": 1}', "half a surrogate pair"),
        ('{"\\ud83d": 1, "\\ud83d": 2}', "twice"),
        ('{"tools": [1]}', "unrecognised request argument: tools"),
        ('{"": 1}', "unrecognised request argument"),
        ('{"promt": "a"}', "unrecognised request argument: promt (did you mean 'prompt'?)"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_one_line(http, body, words):
    answer = raw(http, body)
    assert answer.status_code == 400 and words in refused(answer)["message"], answer.text


def test_fields_that_change_no_text_are_ignored_and_named(http):
    asked = {"prompt": "ab", "max_tokens": 3, "temperature": 0}
    plain = http.post("/v1/completions", json={**asked, "tools": None})
    assert "x-ignored-fields" not in plain.headers
    for name in HARMLESS:
        answer = http.post("/v1/completions", json={**asked, name: {"a": [1]}})
        assert answer.headers["x-ignored-fields"] == name and answer.json()["choices"] == plain.json()["choices"]
    many = {"prompt": "ab", "metadata": {}, "store": True, "user": "me", "seed": 1, "stream": True}
    assert http.post("/v1/completions", json=many).headers["x-ignored-fields"] == "metadata, store"


def test_half_a_surrogate_pair_is_found_wherever_it_is():
    for value in ("\ud83d", ["a", ["\udc00"]], {"a": {"\ud800": 1}}):
        with pytest.raises(Refused, match="^here holds half a surrogate pair") as caught:
            parse_json(json.dumps({"there": "a", "here": value}).encode())
        assert caught.value.parameter == "here"
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


# --------------------------------------------------------------------------------------------------- where tokens are

STORY = "春天来了😀！龘靐龗 abc\n鑫淼焱é．…①"


@pytest.fixture(scope="module")
def with_bytes(tmp_path_factory):
    """A vocabulary with few characters, whose other characters are written in bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "text.txt").write_text("春天来了，花开了。\n" * 40, encoding="utf-8")
    return train_vocabulary(folder / "text.txt", folder / "vocabulary", 280, byte_fallback=True)


@pytest.fixture(scope="module", params=["bytes", "gpt2"])
def tokenizer(request):
    if request.param == "bytes":
        return request.getfixturevalue("with_bytes")
    return load_tokenizer(request.getfixturevalue("gpt2_folder"))


def expected_places(tokenizer, ids) -> list[int]:
    """Where the characters begin that the tokens' first bytes belong to, counted over the whole text."""
    whole = b"".join(tokenizer.text_bytes(index) for index in ids)
    starts = [number for number, byte in enumerate(whole) if byte & 0xC0 != 0x80]
    places, at = [], 0
    for index in ids:
        piece = tokenizer.text_bytes(index)
        places.append(sum(start <= at for start in starts) - 1 if piece else sum(start < at for start in starts))
        at += len(piece)
    return places


def test_a_token_is_where_its_character_is_and_parts_of_a_character_are_at_one_place(tokenizer):
    ids = tokenizer.encode(STORY)
    offsets = Offsets(tokenizer)
    places = [offsets.of(index) for index in ids]
    assert places == expected_places(tokenizer, ids) and len(set(places)) < len(places)
    text = tokenizer.decode(ids)
    for index, place in zip(ids, places):
        piece = tokenizer.text_bytes(index)
        if not spelled(piece).startswith("bytes:"):
            assert text[place:].startswith(piece.decode())


def test_broken_characters_take_the_places_that_they_have_in_the_text(with_bytes):
    pieces = [bytes([byte]) for byte in b"\xe6\x98\xe6a\xff\xe6\x98\xa5b\xf0\x9f"]
    ids_of = {with_bytes.text_bytes(index): index for index in range(with_bytes.vocab_size)}
    ids = [ids_of[piece] for piece in pieces]
    offsets = Offsets(with_bytes)
    assert [offsets.of(index) for index in ids] == [0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 6]
    assert with_bytes.decode(ids) == "\ufffd\ufffda\ufffd春b\ufffd"


def test_a_prompts_tokens_are_where_they_are_in_the_text_as_it_was_given():
    pangu = load_tokenizer("pangu")
    text = "春天……了，花①开龘龘，了"
    ids = tuple(pangu.encode(text))
    assert pangu.decode(ids) == "春天......了,花1开⁇⁇,了"  # NFKC, and unknown characters
    words = pangu.words(text)
    places = prompt_offsets(Prompt(text, ids, 1), pangu, lambda text: list(zip(words, pangu.encode_words(words))))
    assert len(places) == len(ids) and places == sorted(places) and places[-1] == len(text) - 1
    for index, place in zip(ids, places):
        piece = pangu.decode([index])
        if piece and piece[0] in "春天了花开":
            assert text[place:].startswith(piece)


@pytest.mark.parametrize("echo", [False, True])
def test_the_api_tells_places_and_bytes_of_tokens_and_of_alternatives(tokenizer, echo):
    prompt, written = "春天", tokenizer.encode("来😀了鑫")
    runner = TableRunner(writing(tokenizer, prompt, written), tokenizer.vocab_size, 64)
    engine = Engine(runner, tokenizer, SamplingConfig(), "scripted")
    asked = {"prompt": prompt, "max_tokens": 30, "temperature": 0, "logprobs": 20, "echo": echo}
    with serve(engine, port=0, page=False, quick=True) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        choice = http.post("/v1/completions", json=asked).json()["choices"][0]
        streamed = http.post("/v1/completions", json={**asked, "stream": True}).text
    told, ids = choice["logprobs"], [*(tokenizer.encode(prompt) if echo else ()), *written]
    assert choice["text"] == prompt * echo + "来😀了鑫"
    assert told["text_offset"] == expected_places(tokenizer, ids)
    assert b"".join(map(bytes, told["bytes"])).decode() == choice["text"]
    for index, token, piece in zip(ids, told["tokens"], told["bytes"], strict=True):
        assert bytes(piece) == tokenizer.text_bytes(index) and token == spelled(bytes(piece))
    assert any(token.startswith("bytes:\\x") for token in told["tokens"])
    assert {"bytes:\\xe6", "bytes:\\xff"} <= told["top_logprobs"][-1].keys()  # and not both as one
    pieces = [json.loads(line[6:])["choices"] for line in streamed.splitlines() if line.startswith("data: {")]
    parts = [part["logprobs"] for [part] in pieces if part["logprobs"]]
    for name in ("text_offset", "tokens", "bytes"):
        assert [one for part in parts for one in part[name]] == told[name]


def writing(tokenizer, prompt: str, written: list[int]):
    """Logits that write these tokens after the prompt; two bytes are the likeliest alternatives."""
    start, bytes_ = (
        len(tokenizer.encode(prompt)),
        [index for index in range(tokenizer.vocab_size) if tokenizer.text_bytes(index) in (b"\xe6", b"\xff")],
    )

    def logits_of(text: tuple[int, ...]) -> np.ndarray:
        logits = np.zeros(tokenizer.vocab_size)
        logits[bytes_] = 5.0
        logits[[*written, tokenizer.eod_id][len(text) - start]] = 10.0
        return logits

    return logits_of
