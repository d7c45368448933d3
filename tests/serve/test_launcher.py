"""The launcher's tile: which bundle it serves, and that the command line it gives is one that `serve` takes."""

from __future__ import annotations

import os

import pytest

from pangu_lab.cli import main
from pangu_lab.errors import InputError
from pangu_lab.serve.launcher import BUNDLE, command, find_bundle, page


@pytest.fixture(autouse=True)
def no_bundle_named(monkeypatch):
    monkeypatch.delenv(BUNDLE, raising=False)


def test_the_newest_bundle_is_served_unless_another_is_named(tmp_path, monkeypatch):
    for number, name in enumerate(("new", "exports/old")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "bundle.json").write_text("{}")
        os.utime(tmp_path / name / "bundle.json", (1000 - number, 1000 - number))
    assert find_bundle(tmp_path) == tmp_path / "new"
    monkeypatch.setenv(BUNDLE, "elsewhere")
    assert str(find_bundle(tmp_path)) == "elsewhere"
    words = command(4321, "/user/me/")
    assert words[words.index("--root-path") + 1] == "/user/me/pangu-page" and "elsewhere" in words


def test_without_a_bundle_one_line_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no bundle below .*pangu-lab export"):
        find_bundle(tmp_path)


def test_the_command_is_one_that_serve_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(BUNDLE, str(tmp_path / "nothing"))
    assert main(command(4321)[3:]) == 2 and "nothing" in capsys.readouterr().err


def test_jupyter_server_proxy_takes_the_entry():
    config = pytest.importorskip("jupyter_server_proxy.config", reason="the extra proxy is not installed")
    process = config.ServerProcess(name="pangu-page", **page())
    assert process.command is command and process.launcher_entry.title == "PanGu-α" and process.timeout == 120
