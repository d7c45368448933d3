"""JupyterLab in Chinese, as a person makes it so: by its menu."""

from __future__ import annotations

import importlib.util

import pytest

from tests.browser.jupyter import browser_is_here, notebook_of, somebody_at

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not browser_is_here(), reason="no chromium and chromedriver here"),
    pytest.mark.skipif(
        importlib.util.find_spec("jupyterlab_language_pack_zh_CN") is None,
        reason="the language pack is not installed: pip install 'pangu-lab[lab-zh]'",
    ),
]


@pytest.fixture
def person(tmp_path):
    notebook_of(
        tmp_path / "lab" / "form.ipynb",
        "from widgets import ConfigForm, set_language\nset_language('zh')\nConfigForm('debug')",
    )
    with somebody_at(tmp_path / "lab") as person:
        yield person


def test_menus_are_chinese_once_the_language_was_chosen_in_the_menu_and_stay_so(person):
    def choose(selector: str, words: str) -> None:
        """Point at the entry that has these words on it and click it; one with more behind it opens."""

        def chosen() -> bool:
            for node in person.all(selector):
                if words in node.text:
                    person.point_at(node)
                    node.click()
                    return True
            return False

        person.wait(chosen)

    menus = lambda: [node.text for node in person.all(".lm-MenuBar-itemLabel")]
    person.open("form.ipynb")
    assert menus()[:2] == ["File", "Edit"]
    choose(".lm-MenuBar-item", "Settings")
    choose(".lm-Menu-item", "Language")
    choose(".lm-Menu-item", "中文")
    person.click(".jp-Dialog .jp-mod-accept")  # change, and load the page anew
    person.wait(lambda: menus()[:2] == ["文件", "编辑"], 90)
    person.open("form.ipynb")
    person.run_all(60)
    person.wait(lambda: "词表大小" in person.text(".pgl-form"))
    assert menus()[:2] == ["文件", "编辑"] and person.errors() == []
    choose(".lm-MenuBar-item", "运行")
    person.wait(lambda: any("运行所有单元格" in node.text for node in person.all(".lm-Menu-item")))
    person.picture("chinese")
