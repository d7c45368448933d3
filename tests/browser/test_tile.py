"""The tile in JupyterLab's launcher: a click, and the page of the bundle comes and writes."""

from __future__ import annotations

import pytest

from tests.browser.jupyter import browser_is_here, somebody_at

# slow: it trains, exports and serves
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
]
TILE = ".jp-LauncherCard[title*='PanGu-α']"


@pytest.fixture
def person(debug_run, tmp_path):
    pytest.importorskip("jupyter_server_proxy", reason="jupyter-server-proxy is not installed")
    from pangu_lab.export import export_run

    export_run(debug_run, tmp_path / "lab" / "exports" / "debug", decode_batches=())
    with somebody_at(tmp_path / "lab") as person:
        yield person


def test_a_click_on_the_tile_brings_the_page_which_writes(person):
    person.driver.get(f"{person.address}/lab")
    person.wait(lambda: person.all(TILE), 90)
    person.picture("launcher")
    windows = set(person.driver.window_handles)
    person.click(TILE)
    page = person.wait(lambda: set(person.driver.window_handles) - windows, 30).pop()
    person.driver.switch_to.window(page)
    person.wait(lambda: person.find("#prompt textarea"), 180)
    assert "/pangu-page/" in person.driver.current_url
    person.find("#prompt textarea").send_keys("春天来了，")
    person.wait(lambda: not person.find("#write").get_attribute("disabled"))
    person.click("#write")
    person.wait(lambda: person.find("#continuation textarea").get_attribute("value"), 60)
    person.picture("page-through-the-tile")
