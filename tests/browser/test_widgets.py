"""Every widget in a real JupyterLab, with a model too small to compile: drawn, readable in both themes, and it answers."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from pangu_lab import PanguLM
from pangu_lab.presets import load_yaml, preset
from tests.browser.jupyter import BUSY, Person, browser_is_here, notebook_of, somebody_at
from tests.widgets.conftest import WrittenRun

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
]

CELLS = (
    "from widgets import *\nfrom pangu_lab.config import SamplingConfig\nfrom tests.generate.fakes import small_lm\nlm = small_lm()",
    "LaunchPanel(ConfigForm('debug'), 'first')",
    "ConfigForm('tiny')",
    "TokenView('白日依山尽 <b>')",
    "NextToken(lm.engine, 'ab')",
    "AttentionView(lm, '春天好。ab!')",
    "GenerationPad(lm, prompt='ab', sampling=SamplingConfig(seed=2))",
    "LayoutPicker('2.6B', devices=8)",
    "StartForm('novel.txt')",
)
KINDS = ("target", "launch", "monitor", "form", "tokens", "next", "attention", "pad", "layout", "starter")
# Texts whose contrast with the colour behind them is below 4. Colours are painted to be read as numbers.
PALE = """
const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
const seen = (layers) => { pen.clearRect(0, 0, 1, 1); for (const color of layers) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3); };
const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const pale = [];
for (const node of document.querySelectorAll('.pgl *')) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.offsetParent || node.closest(':disabled, option')) continue;
  const behind = [];
  for (let up = node; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
  const [back, fore] = [light(seen(behind)), light(seen([...behind, getComputedStyle(node).color]))];
  const ratio = (Math.max(back, fore) + 0.05) / (Math.min(back, fore) + 0.05);
  if (ratio < 4) pale.push(`${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}, ${ratio.toFixed(2)}`);
}
return pale;"""
WIDER = "return [...document.querySelectorAll('.pgl')].filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.className)"


# What the page gives to be saved is kept on the page. Widgets are loaded by such addresses too, so these go on working.
SAVED = """window.saved = []; const made = URL.createObjectURL;
URL.createObjectURL = (blob) => { window.saved.push(blob); return made.call(URL, blob); };
HTMLAnchorElement.prototype.click = function () {};"""


def saved(person: Person) -> list[list]:
    """[type, size, beginning] of every file that the page has given since ``SAVED``."""
    return person.driver.execute_async_script(
        "const done = arguments[0]; Promise.all(window.saved.map((one) => one.slice(0, 200).text()"
        ".then((text) => [one.type, one.size, text]))).then(done)"
    )


def slide(person: Person, selector: str, value: float) -> None:
    person.driver.execute_script(
        "const node = document.querySelector(arguments[0]); node.value = arguments[1];"
        "node.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        value,
    )


def looks_right(person: Person, name: str) -> None:
    """In both themes, on a wide and a narrow page: nothing is cut off, nothing too pale; a picture of each is kept."""
    for theme, width in (("Light", 1280), ("Light", 800), ("Dark", 1280), ("Dark", 800)):
        person.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        person.driver.set_window_size(width, 900)
        person.wait(lambda: not person.driver.execute_script(WIDER))
        time.sleep(0.5)  # colours change gradually
        assert person.driver.execute_script(PALE) == []
        person.picture(f"{name}-{theme}-{width}")


def value_of(person: Person, selector: str) -> str:
    return person.driver.execute_script("return document.querySelector(arguments[0]).value", selector)


@pytest.fixture
def at_notebook(tmp_path):
    """Cells → somebody at JupyterLab with a notebook of them, beside two finished runs."""
    for number, name in enumerate(("first", "second")):
        run = WrittenRun(tmp_path / "lab" / "runs" / name)
        (run.folder / "logs" / "rank_0.log").write_text(f"the log of {name}\n")
        for step in range(1, 21):
            run.step(
                step, loss=6 - number - step / 20, **({"expert_load": [0.5, 0.25, 0.125, 0.125]} if number == 0 else {})
            )
        run.status("finished", 20)

    @contextlib.contextmanager
    def sit_down(*cells: str):
        notebook_of(tmp_path / "lab" / "all.ipynb", *cells)
        with somebody_at(tmp_path / "lab") as person:
            person.open("all.ipynb")
            yield person

    return sit_down


@pytest.fixture
def person(at_notebook):
    with at_notebook(*CELLS) as person:
        yield person


def test_every_widget_is_drawn_fits_is_readable_and_answers(person):
    person.run_all(100)
    for kind in KINDS:
        person.wait(lambda: person.all(f".pgl-{kind} > *"))
    person.wait(lambda: person.find(".pgl-monitor canvas[data-points='20']"))
    looks_right(person, "widgets")
    person.click(".pgl-attention .pgl-choice button:first-child")
    person.click(".pgl-attention .pgl-head:nth-child(2)")
    person.click(".pgl-attention .pgl-chip:nth-child(1)")
    person.wait(lambda: person.text(".pgl-attention .pgl-chip:nth-child(1) small") == "100 %")
    assert "“春” attends to" in person.text(".pgl-attention") and person.find(".pgl-attention canvas[data-cells='28']")
    person.find(".pgl-next input[type=text]").send_keys("ba")
    person.wait(
        lambda: (
            person.text(".pgl-next .pgl-sought").count("rank") == 2 and " = " in person.text(".pgl-next .pgl-sought")
        )
    )
    slide(person, ".pgl-next input[data-name='top_k']", 2)
    person.wait(lambda: len(person.all(".pgl-next .pgl-token[data-gone]")) > 0)
    person.click(".pgl-next .pgl-stage:nth-child(2)")  # a step that changes nothing: before and after are one
    person.wait(lambda: "before “" in person.text(".pgl-next"))
    assert (
        not person.all(".pgl-next .pgl-token[data-gone]")
        and len(person.all(".pgl-next .pgl-stage[aria-pressed='true']")) == 1
    )
    person.click(".pgl-next .pgl-stage[aria-pressed='true']")
    person.wait(lambda: person.all(".pgl-next .pgl-token[data-gone]"))
    person.click(".pgl-next .pgl-token")
    person.wait(lambda: len(value_of(person, ".pgl-next textarea")) > 2)
    person.driver.execute_script(
        "document.querySelector('.pgl-form label[data-key=\"model.num_heads\"]')"
        ".dispatchEvent(new MouseEvent('mouseenter'))"
    )
    person.wait(lambda: "model.num_heads Number of attention heads" in person.text(".pgl-form .pgl-help"))
    person.picture("widgets-answering", ".pgl-next")
    person.click(".pgl-pad .pgl-primary")
    person.wait(lambda: "tokens/s" in person.text(".pgl-pad .pgl-column"))
    assert not person.all(".pgl-made")
    person.click(".pgl-pad .pgl-cuts input")
    person.wait(lambda: person.all(".pgl-made"))
    field = person.find(".pgl-tokens input[type=text]")
    field.send_keys("nowhere\n")
    person.wait(lambda: "no such tokenizer" in person.text(".pgl-tokens .pgl-error"))
    field.clear()
    field.send_keys("pangu\n")
    person.wait(
        lambda: (
            len(person.all(".pgl-tokens .pgl-column")) == 2 and not person.all(".pgl-tokens .pgl-error:not([hidden])")
        )
    )
    assert person.driver.execute_script(WIDER) == []
    assert person.driver.execute_script(PALE) == []
    person.picture("widgets-compared", ".pgl-tokens")
    person.picture("widgets-pieces", ".pgl-pad")
    person.click(".pgl-form .pgl-language")
    person.wait(lambda: "词表大小" in person.text(".pgl-form"))
    person.click(".pgl-layout .pgl-language")
    person.wait(lambda: "放得下的" in person.text(".pgl-layout .pgl-why"))
    assert person.errors() == []


def test_a_text_is_seen_to_grow_is_stopped_in_its_middle_while_a_cell_runs_and_comes_back_from_the_history(
    at_notebook, tmp_path
):
    whole = "ABCD" * 40  # eight seconds of writing
    cells = (
        "from tests.browser.test_page import LONG, engine_that_writes\nfrom widgets import GenerationPad\n"
        f"GenerationPad(engine_that_writes('{whole}', 0.05, LONG), prompt='ab')",
        BUSY,
    )
    with at_notebook(*cells) as person:
        person.start("notebook:run-all-cells")  # the last cell runs until it is released
        text, box = (lambda: person.text(".pgl-pad .pgl-written")), ".pgl-pad textarea"
        state = lambda: person.find(".pgl-pad .pgl-written").get_attribute("data-state")
        person.press(".pgl-pad", "Write")
        seen = set()
        person.wait(lambda: seen.add(text()) or len(seen) > 4)
        assert state() == "writing" and all(("ab" + whole).startswith(one) for one in seen)
        person.press(".pgl-pad", "Stop")
        person.wait(lambda: state() == "done", 3)
        stopped = text()
        assert max(map(len, seen)) <= len(stopped) < 100 and ("ab" + whole).startswith(stopped)
        assert "stopped" in person.text(".pgl-pad .pgl-column")
        slide(person, ".pgl-pad input[data-name='max_new_tokens']", 4)
        person.type(box, "ba")
        person.press(".pgl-pad", "Write")
        person.wait(lambda: state() == "done" and text() == "baABCD")
        person.click(".pgl-pad > details summary")
        person.type(box, "something else")
        assert len(person.all(".pgl-past")) == 2
        for _ in range(2):  # the second time nothing changes but the box
            person.click(".pgl-past:nth-child(2)")
            person.wait(lambda: text() == stopped and value_of(person, box) == "ab")
            assert value_of(person, ".pgl-pad input[data-name='max_new_tokens']") == "200"
            person.type(box, "something else")
        for _ in range(2):  # pressed twice, the text is there once
            person.press(".pgl-pad", "Continue from here")
            assert value_of(person, box) == stopped
        person.picture("pad-history", ".pgl-pad")
        assert not person.finished() and person.errors() == []
        (tmp_path / "lab" / "release").touch()


def test_two_checkpoints_and_two_settings_write_side_by_side_each_its_own_text(at_notebook, debug_run):
    early, late = sorted(debug_run.glob("checkpoints/step-*"))
    settings = dict(max_new_tokens=20, temperature=0.8, seed=3)
    wanted = ["春天" + PanguLM.load(path).generate("春天", **settings).text for path in (early, late)]
    hotter = "春天" + PanguLM.load(early).generate("春天", **{**settings, "temperature": 2.0}).text
    assert len({*wanted, hotter}) == 3
    cells = (
        "from pangu_lab import PanguLM\nfrom pangu_lab.config import SamplingConfig\nfrom widgets import GenerationPad",
        f"early, late = PanguLM.load({str(early)!r}), PanguLM.load({str(late)!r})",
        f"GenerationPad(early, late, prompt='春天', sampling=SamplingConfig(**{settings}))",
    )
    with at_notebook(*cells) as person:
        person.run_all(100)
        texts = lambda: [
            node.get_property("textContent") for node in person.all(".pgl-pad .pgl-written[data-state='done']")
        ]
        person.press(".pgl-pad", "Write")
        person.wait(lambda: texts() == wanted)
        assert [node.text for node in person.all(".pgl-pad option:checked")] == [early.name, late.name]
        looks_right(person, "pad-two-checkpoints")
        second = ".pgl-pad .pgl-column:nth-child(2)"
        person.click(f"{second} option:nth-child(1)")
        slide(person, f"{second} input[data-name='temperature']", 2)
        person.press(".pgl-pad", "Write")
        person.wait(lambda: texts() == [wanted[0], hotter])
        person.press(".pgl-pad", "Side by side")
        person.wait(lambda: texts() == wanted[:1])
        person.press(".pgl-pad", "Side by side")
        person.wait(lambda: [node.text for node in person.all(".pgl-pad option:checked")] == [early.name, late.name])
        person.press(".pgl-pad", "Write")
        person.wait(lambda: texts() == wanted)
        assert person.errors() == []


def test_settings_are_saved_with_what_was_typed_last_and_loaded_and_what_is_refused_is_said(at_notebook, tmp_path):
    def saved_to(name: str) -> Path:
        person.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / name)}
        )
        person.press(".pgl-form", "Save YAML")
        person.wait((tmp_path / name / "debug.yaml").exists)
        return tmp_path / name / "debug.yaml"

    (tmp_path / "broken.yaml").write_text("model: [1, 2")
    with at_notebook("from widgets import ConfigForm", "ConfigForm('debug')") as person:
        person.run_all(60)
        person.type(".pgl-form input[data-key='model.hidden_size']", "64")
        first = saved_to("first")
        person.click(".pgl-form .pgl-tabs [data-section='train']")
        person.type(".pgl-form input[data-key='train.steps']", "7")
        wanted = preset("debug").replace(**{"model.hidden_size": 64})
        assert load_yaml(saved_to("second")) == wanted.replace(**{"train.steps": 7}) and load_yaml(first) == wanted
        person.driver.execute_script(
            "document.querySelector('.pgl-form input[type=file]').addEventListener('click', (event) => {"
            "window.asked = true; event.preventDefault(); })"
        )  # headless, no dialog opens
        person.press(".pgl-form", "Load YAML")
        assert person.driver.execute_script("return window.asked")
        file = person.find(".pgl-form input[type=file]")
        file.send_keys(str(tmp_path / "broken.yaml"))
        person.wait(lambda: "not readable as YAML" in person.text(".pgl-form .pgl-error:not([hidden])"))
        assert value_of(person, ".pgl-form input[data-key='train.steps']") == "7"
        file.send_keys(str(first))
        person.wait(lambda: value_of(person, ".pgl-form input[data-key='train.steps']") == "20")
        assert value_of(person, ".pgl-form input[data-key='model.hidden_size']") == "64"
        person.wait(lambda: "model.hidden_size=64" in person.text(".pgl-form .pgl-command"))
        assert "train.steps" not in person.text(".pgl-form .pgl-command") and not person.all(
            ".pgl-form .pgl-error:not([hidden])"
        )
        looks_right(person, "form-loaded")
        assert person.errors() == []


def test_the_command_shown_is_what_copy_puts_into_the_clipboard_and_where_that_fails_it_is_said(at_notebook):
    with at_notebook("from widgets import *", "LaunchPanel(form := ConfigForm('debug'), 'first')", "form") as person:
        person.run_all(60)
        person.driver.execute_cdp_cmd(
            "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        )
        person.driver.execute_script("window.board = navigator.clipboard")
        copied = "const done = arguments[0]; window.board.readText().then(done, (error) => done(String(error)))"
        for panel, size in ((".pgl-form", 48), (".pgl-launch", 64)):
            person.type(".pgl-form input[data-key='model.hidden_size']", str(size))
            person.wait(lambda: f"model.hidden_size={size}" in person.text(f"{panel} .pgl-command"))
            person.press(panel, "Copy")
            person.press(panel, "Copied")  # in haste
            assert person.driver.execute_async_script(copied) == person.text(f"{panel} .pgl-command")
            person.press(panel, "Copy")
        person.driver.execute_script(
            "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
        )  # as over plain http
        person.type(".pgl-form input[data-key='model.hidden_size']", "96")
        person.wait(lambda: "model.hidden_size=96" in person.text(".pgl-form .pgl-command"))
        person.press(".pgl-form", "Copy")
        assert person.driver.execute_async_script(copied) == person.text(".pgl-form .pgl-command")
        person.driver.execute_script("document.execCommand = () => false")
        person.press(".pgl-form", "Copy")
        person.press(".pgl-form", "Not copied")
        assert person.errors() == []


def test_curves_are_turned_read_compared_and_saved_and_come_back_after_the_kernel_was_restarted(at_notebook):
    with at_notebook("from widgets import RunMonitor", "RunMonitor('runs/first')") as person:
        person.run_all(60)
        canvas = ".pgl-monitor canvas[data-points='20']"
        person.wait(lambda: person.find(canvas))
        picture = "return document.querySelector('.pgl-monitor canvas[data-points]').toDataURL()"
        before = person.driver.execute_script(picture)
        for turn in (
            lambda: person.click(".pgl-monitor input[type=checkbox]"),
            lambda: person.click(".pgl-monitor .pgl-choice button:nth-child(3)"),
            lambda: slide(person, ".pgl-monitor input[type=range]", 0),
        ):  # log, tokens, no smoothing
            turn()
            person.wait(lambda: person.driver.execute_script(picture) != before)
            before = person.driver.execute_script(picture)
        charts = person.all(".pgl-monitor canvas")
        person.point_at(charts[0])
        tip = person.wait(lambda: person.text(".pgl-monitor .pgl-tip"))
        for words in (
            "step",
            "loss",
            "learning rate",
            "gradient norm",
            "tokens/s",
            "memory",
            "expert load 50% 25% 13% 13%",
        ):
            assert words in tip, tip
        person.picture("monitor-hover", ".pgl-monitor")
        person.point_at(charts[-1])  # the experts' loads
        person.wait(lambda: person.text(".pgl-monitor .pgl-tip") and person.find(".pgl-monitor .pgl-tip:not([hidden])"))
        person.driver.execute_script(SAVED)
        buttons = {button.text: button for button in person.all(".pgl-monitor .pgl-push button")}
        buttons["CSV"].click()
        person.wait(lambda: len(saved(person)) == 1)
        buttons["PNG"].click()
        person.wait(lambda: len(saved(person)) == 2)
        (_, size, text), (kind, large, _) = saved(person)
        assert "step" in text.splitlines()[0] and "loss" in text.splitlines()[0] and size > 500
        assert kind == "image/png" and large > 5000
        person.click(".pgl-monitor .pgl-menu button")
        person.click(".pgl-monitor .pgl-menu label input")
        person.wait(lambda: person.find(".pgl-monitor canvas[data-points='20,20']"))
        person.click(".pgl-monitor details:not([data-name]) summary")
        person.wait(lambda: "the log of first" in person.text(".pgl-monitor details:not([data-name]) pre"))
        person.picture("monitor-compared", ".pgl-monitor")
        person.restart_kernel()
        person.run_all(60)
        person.wait(lambda: person.find(canvas))
        person.refresh()
        assert person.errors() == []
