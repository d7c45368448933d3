"""A person at JupyterLab: a server on a folder of its own, headless Chromium, and what one does with a notebook."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

from tests.browser.test_page import open_browser

ROOT = Path(__file__).resolve().parents[2]
BUSY = "import pathlib, time\nwhile not pathlib.Path('release').exists():\n    time.sleep(0.1)"  # a cell that runs until then
ERRORS = (
    ".jp-Notebook .jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'], "
    ".jp-Notebook .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
)


@contextlib.contextmanager
def jupyter_server(folder: Path, dark: bool = False) -> Iterator[str]:
    """JupyterLab serving ``folder`` on 127.0.0.1; gives its address. Settings and state are kept in ``folder`` too."""
    port = _free_port()
    own = folder / ".jupyter"
    settings = own / "settings"
    theme = settings / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    theme.parent.mkdir(parents=True, exist_ok=True)
    theme.write_text(json.dumps({"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}))
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True, exist_ok=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))  # cells far from the window are on the page too
    news = theme.with_name("notification.jupyterlab-settings")
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "IPYTHONDIR": str(own / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GLOG_v": "3",
    }
    log = open(own / "server.log", "wb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--allow-root",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.news_url=",
            "--expose-app-in-browser",
        ],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status", process, own / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer within {seconds} s: {log.read_text(errors='replace')[-2000:]}")


def notebook_of(path: Path, *cells: str) -> Path:
    """Write a notebook with these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


class Person:
    """Somebody at JupyterLab with one notebook open."""

    def __init__(self, address: str, width: int = 1280, height: int = 900, language: str = "en-US") -> None:
        self.address = address
        self.driver = open_browser(width, height, language)
        self.driver.set_page_load_timeout(90)

    def open(self, notebook: str) -> None:
        """Open a notebook, named by its path below the server's folder, alone on the page, and wait for its kernel."""
        self.driver.get(f"{self.address}/lab/tree/{notebook}?reset")
        self.wait(lambda: self.all(".jp-Notebook .jp-Cell"), 90)
        self.wait(self.idle, 90)
        self.driver.execute_script("window.jupyterapp.shell.collapseLeft(); window.jupyterapp.shell.collapseRight()")

    def command(self, name: str, **values: Any) -> None:
        """One of JupyterLab's commands."""
        done = self.driver.execute_async_script(
            "const [name, values, done] = arguments; window.jupyterapp.commands.execute(name, values)"
            ".then(() => done('done'), (error) => done(String(error)))",
            name,
            values,
        )
        assert done == "done", done

    def start(self, name: str) -> None:
        """As ``command``, without waiting for its end."""
        self.driver.execute_script("window.jupyterapp.commands.execute(arguments[0])", name)

    def run_all(self, seconds: float = 120.0) -> None:
        self.start("notebook:run-all-cells")
        time.sleep(0.5)
        self.wait(self.finished, seconds)

    def finished(self) -> bool:
        """Whether every code cell has run, folded ones too, and the kernel rests."""
        counts = self.driver.execute_script(
            "return window.jupyterapp.shell.currentWidget.content.widgets.filter((cell) => cell.model.type === 'code')"
            ".map((cell) => cell.model.executionCount)"
        )
        return bool(counts) and all(counts) and self.idle()

    def idle(self) -> bool:
        return bool(
            self.driver.execute_script(
                "const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;"
                "const kernel = panel && panel.sessionContext && panel.sessionContext.session && "
                "panel.sessionContext.session.kernel; return kernel && kernel.status === 'idle'"
            )
        )

    def save(self) -> None:
        self.command("docmanager:save")

    def refresh_busy(self) -> None:
        """Press the browser's reload button and wait for the notebook; a cell may be running."""
        self.driver.refresh()
        with contextlib.suppress(Exception):
            self.driver.switch_to.alert.accept()
        self.wait(lambda: self.all(".jp-Notebook .jp-Cell"), 90)

    def refresh(self) -> None:
        """As ``refresh_busy``, and wait until the kernel rests."""
        self.refresh_busy()
        self.wait(self.idle, 90)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def find(self, selector: str) -> Any:
        found = self.all(selector)
        return found[0] if found else None

    def text(self, selector: str) -> str:
        return self.driver.execute_script(
            "const found = document.querySelector(arguments[0]); return found ? found.textContent : ''", selector
        )

    def click(self, selector: str) -> None:
        node = self.wait(lambda: self.find(selector))
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
        node.click()

    def press(self, selector: str, words: str) -> None:
        """Click the button inside something that has these words on it."""

        def found() -> list[Any]:
            return [node for node in self.all(f"{selector} button") if node.text == words and node.is_enabled()]

        node = self.wait(found)[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
        node.click()

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field in place of what it holds."""
        self.click(selector)
        field = self.find(selector)
        field.send_keys("\ue009", "a")  # Control, which ends with this call
        field.send_keys(text)

    def point_at(self, node: Any) -> None:
        """Put the pointer on the middle of something."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
        from selenium.webdriver import ActionChains  # there where a browser is

        ActionChains(self.driver).move_to_element(node).perform()

    def restart_kernel(self) -> None:
        """As the menu's "Restart Kernel and Clear Outputs", without its question."""
        self.command("notebook:clear-all-cell-outputs")
        self.driver.execute_async_script(
            "const done = arguments[0]; window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(done)"
        )
        self.wait(self.idle, 60)

    def show(self, selector: str) -> None:
        """Scroll the notebook so that something of it can be seen."""
        self.driver.execute_script("document.querySelector(arguments[0]).scrollIntoView({block: 'start'})", selector)

    def errors(self) -> list[str]:
        return [node.text[:500] for node in self.all(ERRORS)]

    def wait(self, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Until the condition holds; one that looked at something which the page has just replaced looks again."""
        from selenium.common.exceptions import StaleElementReferenceException  # there where a browser is

        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StaleElementReferenceException):
                if value := condition():
                    return value
            if time.monotonic() > end:
                self.picture("failed")
                raise AssertionError(f"not within {seconds:g} s; errors on the page: {self.errors()}")
            time.sleep(0.1)

    def picture(self, name: str, selector: str | None = None) -> None:
        """Keep a screenshot where PANGU_LAB_SCREENSHOTS says, of the window or of one element."""
        folder = os.environ.get("PANGU_LAB_SCREENSHOTS")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = str(Path(folder) / f"{name}.png")
        if selector:
            self.find(selector).screenshot(path)
        else:
            self.driver.save_screenshot(path)

    def close(self) -> None:
        self.driver.quit()


def browser_is_here() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def somebody_at(folder: Path) -> Iterator[Person]:
    """A person at a JupyterLab that serves ``folder``."""
    with jupyter_server(folder) as address, contextlib.closing(Person(address)) as person:
        yield person
