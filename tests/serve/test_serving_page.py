"""The page's server: what it refuses, what it does not give away, and the controls as settings."""

from __future__ import annotations

import socket

import httpx
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate import Engine
from pangu_lab.serve import serve_page
from pangu_lab.serve.page import Limits, _Writer, plain, sampling_of
from pangu_lab.serve.texts import CHINESE, ENGLISH, language_of

from tests.generate.fakes import CharacterTokenizer, TableRunner, script

CONTROLS = (64, 0.8, 0.9, 0, 1.05, 0.0, 0.0, "", "")


def scripted(text: str, **settings) -> Engine:
    tokenizer = CharacterTokenizer()
    written = script(tokenizer.vocab_size, [tokenizer.id_of(letter) for letter in text], 2)
    return Engine(TableRunner(written, tokenizer.vocab_size), tokenizer, SamplingConfig(**settings), "scripted")


@pytest.fixture(scope="module")
def page():
    with serve_page(scripted("abc"), port=0) as served:
        yield served


# ---------------------------------------------------------------------------------------------------- the controls


def test_the_controls_become_settings_and_the_rest_stays_the_bundles():
    defaults = SamplingConfig(no_repeat_ngram=4, stop_ids=(3,), num_beams=2, echo=True, min_new_tokens=30,
                              max_new_tokens=40)
    made = sampling_of(defaults, 20, 0.5, 0.9, 7, 1.1, 0.2, 0.3, "。\n\n！", " 12 ")
    assert made == SamplingConfig(max_new_tokens=20, min_new_tokens=20, temperature=0.5, top_p=0.9, top_k=7,
                                  repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.3,
                                  stop=("。", "！"), seed=12, no_repeat_ngram=4, stop_ids=(3,))
    off = sampling_of(SamplingConfig(), 20, 0.5, 1.0, 0, 1.0, 0.0, 0.0, "", "")
    assert off.top_p is None and off.top_k is None and off.seed is None and off.stop == ()


def test_a_seed_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="the seed must be a whole number, not 'x'"):
        sampling_of(SamplingConfig(), *CONTROLS[:-1], "x")


def test_both_languages_have_the_same_words():
    assert set(ENGLISH) == set(CHINESE)
    for key in ENGLISH:
        assert ENGLISH[key].count("{") == CHINESE[key].count("{"), key


@pytest.mark.parametrize("accepted, language", [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh;q=0.5", "en"),
                                                ("de-DE, zh-TW", "zh"), ("", "en"), ("*", "en")])
def test_the_language_is_the_browsers(accepted, language):
    assert language_of(accepted) == language


def test_text_from_outside_cannot_become_markup():
    assert plain("a <b>*x*</b> [y](z) 春") == "a &#60;b&#62;&#42;x&#42;&#60;/b&#62; &#91;y&#93;(z) 春"


# --------------------------------------------------------------------------------------------------------- writing


def told(writer: _Writer, prompt: str, *controls) -> list[tuple[str, str]]:
    return list(writer.write(ENGLISH, "somebody", prompt, *(controls or CONTROLS)))


def test_writing_ends_with_the_text_the_reason_and_the_seed():
    text, status = told(_Writer(scripted("abc"), Limits()), "ab", 64, 0, 1, 0, 1, 0, 0, "", "5")[-1]
    assert text == "abc" and "3 tokens" not in text
    assert status.startswith("4 tokens, ") and status.endswith("the text came to its end · seed 5")


def test_requests_out_of_bounds_are_refused_in_a_sentence():
    writer = _Writer(scripted("abc"), Limits(prompt_characters=10))
    assert told(writer, "a" * 11) == [("", "The prompt has more than 10 characters: shorten it.")]
    _, status = told(writer, "ab", *CONTROLS[:-1], "x")[-1]
    assert status.startswith("Not possible: the seed must be a whole number")


def test_a_generation_ends_at_its_time_limit():
    writer = _Writer(scripted("abc" * 8), Limits(seconds=-1.0))
    text, status = told(writer, "ab", 64, 0, 1, 0, 1, 0, 0, "", "")[-1]
    assert text == "a" and "stopped" in status
    assert writer.engine.runner.pool.free == writer.engine.runner.pool.places


def test_a_prompt_that_was_cut_is_said():
    assert "its oldest" in told(_Writer(scripted("abc"), Limits()), "ab" * 40)[-1][1]


# --------------------------------------------------------------------------------------------------------- serving


def test_only_this_machine_is_served_without_a_password():
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.com"):
        with pytest.raises(InputError, match="lets others reach this page: give a password"):
            serve_page(scripted("abc"), host=host)


def test_a_taken_port_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=f"cannot serve on 127.0.0.1:{taken.getsockname()[1]}"):
            serve_page(scripted("abc"), port=taken.getsockname()[1])


def test_a_missing_bundle_is_said(tmp_path):
    with pytest.raises(InputError, match="no such bundle"):
        serve_page(tmp_path / "nothing", port=0)


def test_the_page_has_no_api_and_gives_no_files(page, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with httpx.Client(base_url=page.url, timeout=30, trust_env=False) as client:
        assert "PanGu-α" in client.get("/").text
        info = client.get("gradio_api/info")
        assert info.status_code != 200 or info.json()["named_endpoints"] == {}
        for path in (secret, "/etc/passwd", "pyproject.toml"):
            assert client.get(f"gradio_api/file={path}").status_code in (403, 404)
        upload = client.post("gradio_api/upload", files={"files": ("x.txt", b"x" * 5000)})
        assert upload.status_code == 413
        config = client.get("config").json()
        assert all(item["api_visibility"] == "private" for item in config["dependencies"]
                   if item["targets"] and item["targets"][0][1] != "unload")


def test_nothing_on_the_page_comes_from_elsewhere(page):
    html = httpx.get(page.url, trust_env=False).text
    for host in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert host not in html


def test_a_password_is_asked_for():
    with serve_page(scripted("abc"), port=0, password="secret") as served:
        with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
            assert client.get("config").status_code == 401
            assert client.post("login", data={"username": "pangu", "password": "wrong"}).status_code == 400
            assert client.post("login", data={"username": "pangu", "password": "secret"}).status_code == 200
            assert client.get("config").status_code == 200
