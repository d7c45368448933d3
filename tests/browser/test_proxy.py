"""The page behind jupyter-server-proxy, through JupyterLab's own port, as a notebook's frame shows it."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request

import pytest

from pangu_lab.launch.hosts import free_port
from pangu_lab.serve import serve
from tests.browser.test_page import Reader, engine_that_writes

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def jupyter(tmp_path):
    """The address of a Jupyter server with the proxy."""
    pytest.importorskip("jupyter_server_proxy", reason="jupyter-server-proxy is not installed")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        f"--port={port}",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api").close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_the_page_writes_through_jupyters_own_port(jupyter):
    port = free_port()
    with serve(engine_that_writes("AB" * 4), port=port, root_path=f"/proxy/{port}"):
        reader = Reader(f"{jupyter}/proxy/{port}/")
        try:
            reader.write("ab")
            reader.wait(lambda: "ABABABAB" in reader.text)
            assert reader.hosts() == {jupyter.removeprefix("http://")}
        finally:
            reader.close()
