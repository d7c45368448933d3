"""Every widget in a real JupyterLab, with a model too small to compile: drawn, readable in both themes, and it answers."""

from __future__ import annotations

import time

import pytest

from tests.browser.jupyter import Person, browser_is_here, jupyter_server, notebook_of
from tests.widgets.conftest import WrittenRun

pytestmark = [pytest.mark.browser, pytest.mark.timeout(200),
              pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here")]

CELLS = ("from widgets import *\nfrom pangu_lab.config import SamplingConfig\nfrom tests.generate.fakes import small_lm\nlm = small_lm()",
         "LaunchPanel(ConfigForm('debug'), 'first')", "ConfigForm('tiny')", "TokenView('白日依山尽 <b>')", "NextToken(lm.engine, 'ab')",
         "AttentionView(lm, '春天好。ab!')", "GenerationPad(lm, prompt='ab', sampling=SamplingConfig(seed=2))", "LayoutPicker('2.6B', devices=8)")
KINDS = ("launch", "monitor", "form", "tokens", "next", "attention", "pad", "layout")
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


@pytest.fixture
def person(tmp_path):
    run = WrittenRun(tmp_path / "lab" / "runs" / "first")
    for step in range(1, 21):
        run.step(step, loss=6 - step / 20)
    run.status("finished", 20)
    notebook_of(tmp_path / "lab" / "all.ipynb", *CELLS)
    with jupyter_server(tmp_path / "lab") as address:
        person = Person(address)
        try:
            person.open("all.ipynb")
            yield person
        finally:
            person.close()


def test_every_widget_is_drawn_fits_is_readable_and_answers(person):
    person.run_all(100)
    for kind in KINDS:
        person.wait(lambda: person.all(f".pgl-{kind} > *"))
    person.wait(lambda: person.find(".pgl-monitor canvas[data-points='20']"))
    for theme, width in (("Light", 1280), ("Light", 800), ("Dark", 800)):
        person.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        person.driver.set_window_size(width, 900)
        person.wait(lambda: not person.driver.execute_script(WIDER))
        time.sleep(0.5)  # colours change gradually
        assert person.driver.execute_script(PALE) == []
        person.picture(f"widgets-{theme}-{width}")
    person.click(".pgl-attention .pgl-choice button:first-child")
    person.click(".pgl-attention .pgl-head:nth-child(2)")
    person.click(".pgl-attention .pgl-chip:nth-child(1)")
    person.wait(lambda: person.text(".pgl-attention .pgl-chip:nth-child(1) small") == "100 %")
    assert "“春” looks at" in person.text(".pgl-attention") and person.find(".pgl-attention canvas[data-cells='28']")
    person.find(".pgl-next input[type=text]").send_keys("ba")
    person.wait(lambda: person.text(".pgl-next .pgl-sought").count("number") == 2 and " = " in person.text(".pgl-next .pgl-sought"))
    person.driver.execute_script("document.querySelector('.pgl-form label[data-key=\"model.num_heads\"]')"
                                 ".dispatchEvent(new MouseEvent('mouseenter'))")
    person.wait(lambda: "model.num_heads Into how many parts" in person.text(".pgl-form .pgl-help"))
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
    person.wait(lambda: len(person.all(".pgl-tokens .pgl-column")) == 2 and not person.all(".pgl-tokens .pgl-error:not([hidden])"))
    assert person.driver.execute_script(WIDER) == []
    assert person.driver.execute_script(PALE) == []
    person.picture("widgets-compared", ".pgl-tokens")
    person.picture("widgets-pieces", ".pgl-pad")
    person.click(".pgl-form .pgl-language")
    person.wait(lambda: "词表大小" in person.text(".pgl-form"))
    person.click(".pgl-layout .pgl-language")
    person.wait(lambda: "放得下的" in person.text(".pgl-layout .pgl-why"))
    assert person.errors() == []
