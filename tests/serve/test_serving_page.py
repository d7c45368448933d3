"""The page's server: what it refuses, what it does not give away, and the controls as settings."""

from __future__ import annotations

import socket

import httpx
import pytest

from pangu_lab.config import SLIDERS, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.serve import Limits, Scheduler, serve
from pangu_lab.serve.page import CONTROL_ORDER
from pangu_lab.serve.templates import TEMPLATES
from pangu_lab.serve.texts import LANGUAGES, language_of
from pangu_lab.serve.writing import MORE, STAGES, Writer, plain, sampling_of
from tests.serve.running import scripted
from tests.serve.test_scheduler import choosing_breaks

ENGLISH, CHINESE = LANGUAGES["en"], LANGUAGES["zh"]
CONTROLS = (64, 0.8, 0.9, 0, 1.05, 0.0, 0.0, "", "")


@pytest.fixture(scope="module")
def page():
    with serve(scripted("abc"), port=0) as served:
        yield served


# ---------------------------------------------------------------------------------------------------- the controls


def test_the_controls_become_settings_and_the_rest_stays_the_bundles():
    defaults = SamplingConfig(
        no_repeat_ngram=4, stop_ids=(3,), num_beams=2, echo=True, min_new_tokens=30, max_new_tokens=40
    )
    made = sampling_of(defaults, 20, 0.5, 0.9, 7, 1.1, 0.2, 0.3, "。\n\n！", " 12 ")
    assert made == SamplingConfig(
        max_new_tokens=20,
        min_new_tokens=20,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        stop=("。", "！"),
        seed=12,
        no_repeat_ngram=4,
        stop_ids=(3,),
    )
    off = sampling_of(SamplingConfig(), 20, 0.5, 1.0, 0, 1.0, 0.0, 0.0, "", "")
    assert off.top_p is None and off.top_k is None and off.seed is None and off.stop == ()


@pytest.mark.parametrize("name", MORE)
def test_every_further_slider_becomes_its_setting_and_has_words_and_an_end_that_is_off(name):
    low, high, step, off = SLIDERS[name]
    for value in (low, high):
        others = [SLIDERS[other][3] for other in MORE]
        others[MORE.index(name)] = value
        made = sampling_of(SamplingConfig(), *CONTROLS, *others)
        assert getattr(made, name) == (None if value == off else value) and name in CONTROL_ORDER
    assert {name, f"{name}_info"} <= ENGLISH.keys() and off in (low, high)


def test_a_seed_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="the seed must be a whole number of at most 19 digits, not 'x'"):
        sampling_of(SamplingConfig(), *CONTROLS[:-1], "x")


def test_both_languages_have_the_same_words():
    assert set(ENGLISH) == set(CHINESE)
    for key in ENGLISH:
        assert ENGLISH[key].count("{") == CHINESE[key].count("{"), key


@pytest.mark.parametrize(
    "accepted, language",
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh;q=0.5", "en"), ("de-DE, zh-TW", "zh"), ("", "en"), ("*", "en")],
)
def test_the_language_is_the_browsers(accepted, language):
    assert language_of(accepted) == language


def test_text_from_outside_cannot_become_markup():
    assert plain("a <b>*x*</b> [y](z) 春") == "a &#60;b&#62;&#42;x&#42;&#60;/b&#62; &#91;y&#93;(z) 春"


# --------------------------------------------------------------------------------------------------------- writing


@pytest.fixture
def writer():
    """Makes writers; their schedulers are closed at the end."""
    schedulers = []

    def make(engine, **limits) -> Writer:
        schedulers.append(Scheduler(engine, Limits(**limits)))
        schedulers[-1].wait_ready()
        return Writer(schedulers[-1])

    yield make
    for scheduler in schedulers:
        scheduler.close(drain=False)


def told(writer: Writer, prompt: str, *controls) -> list[tuple[str, str]]:
    return list(writer.write(ENGLISH, "somebody", prompt, *(controls or CONTROLS)))


def test_writing_ends_with_the_text_the_reason_and_the_seed(writer):
    text, status = told(writer(scripted("abc")), "ab", 64, 0, 1, 0, 1, 0, 0, "", "5")[-1]
    assert text == "abc" and "3 tokens" not in text
    assert status.startswith("4 tokens, ") and status.endswith("end of document · seed 5")


def test_requests_out_of_bounds_are_refused_in_a_sentence(writer):
    short = writer(scripted("abc"), prompt_characters=10)
    assert told(short, "a" * 11) == [("", "The prompt has more than 10 characters: shorten it.")]
    _, status = told(short, "ab", *CONTROLS[:-1], "x")[-1]
    assert status.startswith("Not possible: the seed must be a whole number")


def test_a_generation_ends_at_its_time_limit(writer):
    slow = writer(scripted("abc" * 8, seconds=0.05), seconds=0.3)
    text, status = told(slow, "ab", 64, 0, 1, 0, 1, 0, 0, "", "")[-1]
    assert "abcabcabc".startswith(text[:9]) and text and "time limit reached" in status
    assert slow.engine.runner.pool.free == slow.engine.runner.pool.slots


@pytest.mark.parametrize(
    "place, name",
    [
        (0, "max_new_tokens"),
        (1, "temperature"),
        (2, "top_p"),
        (3, "top_k"),
        (4, "repetition_penalty"),
        (5, "frequency_penalty"),
        (6, "presence_penalty"),
    ],
)
@pytest.mark.parametrize("value", [1e-320, float("nan"), float("inf"), 10**400, "x", [1]])
def test_a_control_that_means_nothing_is_refused_in_a_sentence(place, name, value):
    controls = (*CONTROLS[:place], value, *CONTROLS[place + 1 :])
    with pytest.raises(InputError, match=rf"^sampling\.{name}=.*between"):
        sampling_of(SamplingConfig(), *controls)


def test_a_text_that_breaks_the_server_is_said_on_the_page(writer, monkeypatch):
    one = writer(scripted("abc"))
    choosing_breaks(monkeypatch, KeyError, 1)
    assert told(one, "ab", 64, 0, 1, 0, 1, 0, 0, "", "13")[-1][1].startswith(
        "Not possible: this request failed inside the server"
    )
    assert told(one, "ab", 64, 0, 1, 0, 1, 0, 0, "", "5")[-1][0] == "abc"


def test_a_prompt_that_was_cut_is_said(writer):
    assert "its oldest" in told(writer(scripted("abc")), "ab" * 40)[-1][1]


def test_whoever_waits_sees_the_place_in_the_queue(writer):
    slow = writer(scripted("abc" * 8, seconds=0.03), at_once=1)
    first = slow.write(ENGLISH, "first", "ab", *CONTROLS)
    assert [next(first) for _ in range(3)]
    second = [status for _, status in slow.write(ENGLISH, "second", "ab", *CONTROLS)]
    assert "Waiting: number 1 in the queue" in second


def test_the_tokens_of_a_prompt_are_counted(writer):
    short = writer(scripted("abc"), prompt_characters=10)
    assert short.count(ENGLISH, "abc") == "3 of 32 tokens" and short.count(CHINESE, "") == "0 / 32 个词元"
    assert "more than 10" in short.count(ENGLISH, "a" * 11)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_ends_with_the_place_for_the_answer(name):
    template = TEMPLATES[name]
    prompt = template.prompt("甲\n乙{passage}", "丙\n丁")
    assert prompt.startswith(template.examples) and prompt.endswith("：") and "甲 乙" in prompt
    assert ("丙 丁" in prompt) == bool(template.passage)
    assert all(stop not in template.question for stop in template.stop)


def test_a_templates_answer_ends_with_its_line(writer):
    asked = writer(scripted("abc"))
    seen = []
    asked.engine.tokenizer.encode, before = (
        lambda text: seen.append(text) or before("ab" if "丙" in text else text),
        asked.engine.tokenizer.encode,
    )
    answers = list(asked.answer(ENGLISH, "me", "couplet", "上联：甲\n下联：乙\n", "", "丙", 64, 0, *CONTROLS[2:]))
    assert answers[-1][0] == "abc" and "上联：甲\n下联：乙\n上联：丙\n下联：" in seen


def test_the_next_tokens_are_shown_before_and_after_each_sampler(writer):
    looked = writer(scripted("abc"))
    rows, texts, status = looked.candidates(ENGLISH, "me", "ab", 5, 1.0, 1.0, 1, 1.0, 0, 0, "", "")
    assert rows[0][0] == texts[0] == "a" and len(rows[0]) == 1 + len(STAGES)
    assert float(rows[0][1]) > 99 and rows[0][-1] == "100.00" and rows[1][-1] == "0.00"
    assert rows[1][1] != "0.00" or float(rows[1][1]) < 1
    greedy, _, _ = looked.candidates(ENGLISH, "me", "ab", 5, 0, 1.0, 0, 1.0, 0, 0, "", "")
    assert greedy[0][-1] == "100.00"
    assert "Not possible" in looked.candidates(ENGLISH, "me", "ab", *CONTROLS[:-1], "x")[2]


# --------------------------------------------------------------------------------------------------------- serving


def test_only_this_machine_is_served_without_a_password():
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.com"):
        with pytest.raises(InputError, match="lets others reach this server: give a password"):
            serve(scripted("abc"), host=host)


def test_a_taken_port_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=f"cannot serve on 127.0.0.1:{taken.getsockname()[1]}"):
            serve(scripted("abc"), port=taken.getsockname()[1])


def test_a_missing_bundle_is_said(tmp_path):
    with pytest.raises(InputError, match="nothing: no such folder"):
        serve(tmp_path / "nothing", port=0)


def test_the_page_has_one_function_for_programs(page):
    with httpx.Client(base_url=page.url, timeout=30, trust_env=False) as client:
        assert "PanGu-α" in client.get("/").text
        info = client.get("gradio_api/info")
        assert list(info.json()["named_endpoints"]) == ["/complete"]
        config = client.get("config").json()
        assert all(
            item["api_visibility"] == "private"
            for item in config["dependencies"]
            if item["api_name"] != "complete" and item["targets"] and item["targets"][0][1] != "unload"
        )


def test_nothing_on_the_page_comes_from_elsewhere(page):
    html = httpx.get(page.url, trust_env=False).text
    for host in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert host not in html


def test_a_password_is_asked_for():
    with serve(scripted("abc"), port=0, password="secret") as served:
        with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
            assert client.get("config").status_code == 401
            assert client.post("login", data={"username": "pangu", "password": "wrong"}).status_code == 400
            assert client.post("login", data={"username": "pangu", "password": "secret"}).status_code == 200
            assert client.get("config").status_code == 200
