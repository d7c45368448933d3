"""The page to write with, in a real browser: typing, streaming, stopping, both languages, phone and desktop.

Screenshots go to the folder named by PANGU_LAB_SCREENSHOTS, when there is one, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.generate import Engine
from pangu_lab.serve import Limits, serve
from tests.generate.fakes import CharacterTokenizer, TableRunner, script

pytestmark = pytest.mark.browser
MARKUP = "<img src=x id=evil onerror=alert(1)>"
SLOW_SECONDS = 0.05
LONG = SamplingConfig(temperature=0, max_new_tokens=200)


class Letters(CharacterTokenizer):
    """Any character is a token."""

    def __init__(self) -> None:
        super().__init__()
        letters = (letter.encode() for letter in sorted(set(MARKUP + "ABCD")))
        self.pieces += [letter for letter in letters if letter not in self.pieces]
        self.vocab_size = len(self.pieces)


def engine_that_writes(text: str, seconds: float = 0.0, sampling: SamplingConfig = SamplingConfig()) -> Engine:
    """Greedy after the prompt "ab", it writes ``text``, a token in ``seconds``."""
    tokenizer = Letters()
    ids = [tokenizer.id_of(letter) for letter in text]
    written = script(tokenizer.vocab_size, ids, 2)

    def logits_of(sequence):
        time.sleep(seconds)
        return written(sequence)

    return Engine(TableRunner(logits_of, tokenizer.vocab_size, 256), tokenizer, sampling, "scripted <b>model</b>")


def open_browser(width: int, height: int, language: str = "en-US"):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--lang={language}",
        f"--window-size={width},{height}",
        "--disable-background-networking",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    if width < 500:
        options.add_experimental_option(
            "mobileEmulation", {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2.0}}
        )
    return selenium.Chrome(options=options, service=selenium.ChromeService(driver))


class Reader:
    """Somebody at the page."""

    def __init__(self, url: str, width: int = 1280, height: int = 900, language: str = "en-US") -> None:
        self.driver = open_browser(width, height, language)
        self.driver.set_page_load_timeout(60)
        self.driver.get(url)
        self.wait(lambda: self.find("#prompt textarea"))
        time.sleep(0.5)  # the page takes clicks only once its script has run

    def find(self, selector: str):
        found = self.driver.find_elements("css selector", selector)
        return found[0] if found else None

    def wait(self, condition, seconds: float = 30.0):
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {seconds} s; the status says {self.status!r}"
            time.sleep(0.05)
        return value

    def write(self, prompt: str) -> None:
        self.find("#prompt textarea").send_keys(prompt)
        self.find("#write").click()

    @property
    def text(self) -> str:
        return self.find("#continuation textarea").get_attribute("value")

    @property
    def status(self) -> str:
        return self.find("#status").text if self.find("#status") else ""

    def choose(self, style: str) -> None:
        self.find(f"#preset input[value='{style}']").click()
        time.sleep(0.5)

    def picture(self, name: str) -> None:
        if folder := os.environ.get("PANGU_LAB_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def hosts(self) -> set[str]:
        """Every host that the page asked for something."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = (
            entry["params"].get("request", {}).get("url", "")
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        )
        return {url.split("/")[2] for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))}

    def close(self) -> None:
        self.driver.quit()


@pytest.fixture
def served():
    """Serves engines and opens readers; all closed at the end."""
    opened = []

    def open_page(engine: Engine, limits: Limits = Limits(), **window) -> Reader:
        page = serve(engine, port=0, limits=limits)
        opened.append(page)
        reader = Reader(page.url, **window)
        opened.append(reader)
        reader.url, reader.engine = page.url, engine
        return reader

    yield open_page
    for item in reversed(opened):
        item.close()


def test_a_prompt_is_continued_and_shown_as_plain_text_from_this_server_alone(served):
    reader = served(engine_that_writes(MARKUP, sampling=SamplingConfig(temperature=0)))
    reader.write("ab")
    reader.wait(lambda: "end of document" in reader.status)
    assert reader.text == MARKUP
    assert reader.find("#evil") is None and reader.find("#model b") is None
    assert "scripted <b>model</b>" in reader.find("#model").text
    assert reader.hosts() == {reader.url.split("/")[2]}
    reader.picture("page-desktop")
    reader.find("#keep").click()
    reader.wait(lambda: reader.find("#prompt textarea").get_attribute("value") == "ab" + MARKUP)
    assert reader.text == ""


def test_the_text_grows_and_the_stop_button_stops_it(served):
    reader = served(engine_that_writes("ABCD" * 50, SLOW_SECONDS, LONG))
    reader.write("ab")
    first = reader.wait(lambda: len(reader.text) > 3 and reader.text)
    reader.wait(lambda: len(reader.text) > len(first))
    reader.find("#stop").click()
    reader.wait(lambda: "stopped" in reader.status)
    length = len(reader.text)
    time.sleep(10 * SLOW_SECONDS)
    assert 3 < length == len(reader.text) < 200
    assert reader.engine.runner.pool.free == reader.engine.runner.pool.slots


def test_closing_the_tab_ends_the_generation(served):
    reader = served(engine_that_writes("ABCD" * 50, SLOW_SECONDS, LONG))
    reader.write("ab")
    reader.wait(lambda: len(reader.text) > 3)
    calls = reader.engine.runner.calls
    reader.driver.get("about:blank")
    end = time.monotonic() + 8
    while reader.engine.runner.pool.free < reader.engine.runner.pool.slots and time.monotonic() < end:
        time.sleep(0.05)
    assert reader.engine.runner.pool.free == reader.engine.runner.pool.slots and len(calls) < 190


def test_a_phone_with_a_chinese_browser_sees_chinese_and_nothing_sticks_out(served):
    reader = served(
        engine_that_writes("春天好", sampling=SamplingConfig(temperature=0)), width=390, height=844, language="zh-CN"
    )
    assert reader.find("#write").text == "续写" and "温度" in reader.find("#temperature").text
    reader.write("ab")
    reader.wait(lambda: "全文已写完" in reader.status)
    assert reader.text == "春天好"
    assert reader.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    reader.picture("page-phone")


def test_the_exact_style_is_greedy(served):
    reader = served(engine_that_writes("ABCD", sampling=SamplingConfig(temperature=2.0)))
    reader.choose("exact")
    reader.write("ab")
    reader.wait(lambda: "end of document" in reader.status)
    assert reader.text == "ABCD"


def test_what_cannot_be_done_is_said_on_the_page(served):
    engine = engine_that_writes("ABCD", sampling=SamplingConfig(temperature=0, stop_ids=(9999,)))
    reader = served(engine)
    reader.write("ab")
    reader.wait(lambda: "Not possible: sampling.stop_ids names token 9999" in reader.status)


def open_tab(reader: Reader, number: int) -> None:
    """By its place: on a narrow screen Gradio moves tabs that do not fit into a menu."""
    buttons = [one for one in reader.driver.find_elements("css selector", "button[role='tab']") if one.is_displayed()]
    buttons[number].click()
    time.sleep(0.5)


def filled(reader: Reader, selector: str) -> str:
    return reader.find(selector).get_attribute("value")


@pytest.mark.parametrize("width, height, language", [(1280, 900, "en-US"), (390, 844, "zh-CN")])
def test_a_template_is_answered_to_the_end_of_its_line(served, width, height, language):
    engine = engine_that_writes("ABCD", sampling=SamplingConfig(temperature=0))
    engine.tokenizer.encode = lambda text: [engine.tokenizer.id_of(letter) for letter in "ab"]
    reader = served(engine, width=width, height=height, language=language)
    open_tab(reader, 1)
    reader.find("#template input[value='reading']").click()
    reader.wait(lambda: reader.find("#passage textarea") and "奶奶" in filled(reader, "#question textarea"))
    reader.find("#ask").click()
    reader.wait(lambda: filled(reader, "#answer textarea") == "ABCD")
    assert reader.driver.execute_script("return document.documentElement.scrollWidth") <= width
    reader.picture(f"templates-{width}")


@pytest.mark.parametrize("width, height, language", [(1280, 900, "en-US"), (390, 844, "zh-CN")])
def test_a_click_on_a_candidate_adds_it_and_looks_again(served, width, height, language):
    reader = served(
        engine_that_writes("AB<b>", sampling=SamplingConfig(temperature=0)),
        width=width,
        height=height,
        language=language,
    )
    open_tab(reader, 2)
    reader.find("#next_prompt textarea").send_keys("ab")
    reader.find("#look").click()

    def first() -> str:
        cells = [
            one
            for one in reader.driver.find_elements("css selector", "#candidates [role=gridcell]")
            if one.is_displayed() and one.text.strip()
        ]
        return cells[0].text.strip() if cells else ""

    reader.wait(lambda: first() == "A")
    assert ("Token" if language == "en-US" else "词元") in reader.find("#candidates").text
    assert "i18n" not in reader.find("#candidates").text
    reader.picture(f"next-{width}")
    next(
        one
        for one in reader.driver.find_elements("css selector", "#candidates [role=gridcell]")
        if one.is_displayed() and one.text.strip() == "A"
    ).click()
    reader.wait(lambda: filled(reader, "#next_prompt textarea") == "abA" and first() == "B")
    assert reader.driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_tokens_are_counted_and_whoever_waits_sees_the_queue(served):
    reader = served(engine_that_writes("ABCD" * 50, SLOW_SECONDS, LONG), limits=Limits(at_once=1))
    other = Reader(reader.url)
    try:
        reader.write("ab")
        reader.wait(lambda: "2 of 256 tokens" in reader.find("#count").text)
        reader.wait(lambda: len(reader.text) > 3 and "a second" in reader.status)
        other.write("ab")
        other.wait(lambda: "Waiting: number 1 in the queue" in other.status)
        reader.find("#stop").click()
        other.wait(lambda: len(other.text) > 3)
    finally:
        other.close()
