"""The doctor: finds what is there, names what is missing, and tells how to mend it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import namedtuple
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet

from pangu_lab import doctor, plotting


@pytest.fixture(scope="module")
def found() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks()}


def test_this_machine_can_run_the_main_job_and_says_what_it_has(found):
    assert not [check for check in found.values() if check.state == "bad"]
    for name in (
        "Python",
        *doctor.PACKAGES,
        "MindSpore computes",
        "devices",
        "memory",
        "cores",
        "disk",
        "compiler",
        "Chinese font",
        "chromium",
        "mpirun",
        "port 7860",
        "port 8888",
    ):
        assert found[name].value and "\n" not in found[name].value + found[name].fix
    assert found["mindspore"].value == metadata.version("mindspore")
    assert "CPU" in found["devices"].value


def test_whatever_is_not_ok_comes_with_a_fix_or_needs_none(found):
    for check in found.values():
        assert check.state in ("ok", "warning", "bad")
        assert check.fix or check.state == "ok", check


def test_numpy_2_is_bad_whatever_the_metadata_allows(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.3.1")
    check = doctor._package("numpy", SpecifierSet(">=1.26"))
    assert check.state == "bad" and "numpy>=1.26,<2" in check.fix


def test_a_package_that_is_missing_or_another_version_is_named_with_its_command(monkeypatch):
    missing = doctor._package("no-such-package-here", SpecifierSet(">=1,<2"))
    assert (missing.state, missing.value) == ("bad", "not installed")
    assert missing.fix == "pip install 'no-such-package-here<2,>=1'"
    other = doctor._package("psutil", SpecifierSet("<1"))
    assert other.state == "warning" and "tested with <1" in other.value and other.fix == "pip install 'psutil<1'"


@pytest.mark.parametrize("version, state", [((3, 9), "bad"), ((3, 10), "ok"), ((3, 12), "ok"), ((3, 13), "bad")])
def test_python_3_10_to_3_12_are_good(monkeypatch, version, state):
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor._python().state == state


def broken(stderr: str, stdout: str = "") -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess([], 1, stdout=stdout, stderr=stderr)


def test_a_mindspore_that_dies_is_bad_with_the_line_that_tells_why(monkeypatch):
    monkeypatch.setattr(
        doctor,
        "_run",
        lambda *a, **k: broken(
            'Traceback (most recent call last):\n  File "x"\nImportError: numpy.core.multiarray failed to import\n'
        ),
    )
    (check,) = doctor._mindspore()
    assert check.state == "bad" and check.value == "ImportError: numpy.core.multiarray failed to import"


def test_a_mindspore_that_computes_wrongly_or_hangs_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "_run", lambda *a, **k: broken("", '{"total": 10.0, "devices": {"CPU": 1}}'))
    assert [check.state for check in doctor._mindspore()] == ["bad"]

    def hang(command, seconds):
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(doctor, "_run", hang)
    (check,) = doctor._mindspore()
    assert check.state == "bad" and "120 s" in check.value


def test_an_accelerator_that_mindspore_does_not_see_is_worth_a_word(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name == "nvidia-smi" else None)
    check = doctor._devices({"CPU": 1, "GPU": 0, "Ascend": 0})
    assert check.state == "warning" and "nvidia-smi" in check.value and "CUDA" in check.fix
    assert doctor._devices({"CPU": 1, "GPU": 8, "Ascend": 0}) == doctor.Check("devices", "ok", "CPU, GPU × 8")


def test_little_memory_and_disk_are_warned_of(monkeypatch, tmp_path):
    import psutil

    memory = namedtuple("Memory", "total available")(4 * doctor.GIB, doctor.GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    check = doctor._memory()
    assert check.state == "warning" and check.value == "1.0 GiB free of 4.0 GiB" and check.fix
    usage = namedtuple("Usage", "free")(doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    check = doctor._disk(tmp_path / "not" / "made" / "yet")
    assert check.state == "warning" and str(tmp_path) in check.value


def test_a_program_that_is_missing_or_does_not_run_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._program("x", ("some-tool",), "get it").value == "not found"
    (tmp_path / "some-tool").write_text("no program")
    (tmp_path / "some-tool").chmod(0o755)
    check = doctor._program("x", ("some-tool",), "get it")
    assert (check.state, check.fix) == ("warning", "get it") and "does not run" in check.value


def test_a_taken_port_is_seen(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(doctor, "PORTS", {server.getsockname()[1]: ("somebody", "take another")})
        (check,) = doctor._ports()
    assert check.state == "warning" and "taken" in check.value and check.fix == "take another"


# ------------------------------------------------------------------------------------------------------ fonts


class FontManager:
    """A stand-in for matplotlib's, with the fonts a test wants."""

    def __init__(self, names: list[str], files: dict[str, str], glyphs: set[str] = frozenset()) -> None:
        self.fontManager = self
        entry = namedtuple("Entry", "name fname")
        self.ttflist = [entry(name, f"/fonts/{name}.ttf") for name in names]
        self.files, self.glyphs, self.entry = files, glyphs, entry

    def findSystemFonts(self) -> list[str]:
        return [entry.fname for entry in self.ttflist] + list(self.files)

    def addfont(self, path: str) -> None:
        if not self.files[path]:
            raise RuntimeError("a bitmap font")
        self.ttflist.append(self.entry(self.files[path], path))

    def get_font(self, path: str):
        has = any(path.endswith(f"/{name}.ttf") for name in self.glyphs)
        return type(
            "Font",
            (),
            {"get_char_index": staticmethod(lambda code: 7 if "Last Resort" in path else code if has else 0)},
        )


@pytest.mark.parametrize(
    "manager, font",
    [
        (FontManager(["DejaVu Sans", "SimHei", "Noto Sans CJK SC"], {}), "Noto Sans CJK SC"),
        (FontManager(["DejaVu Sans"], {"/new.ttf": "SimHei", "/old.pcf": ""}), "SimHei"),
        (FontManager(["DejaVu Sans", "霞鹜文楷"], {}, {"霞鹜文楷"}), "霞鹜文楷"),
        (FontManager(["DejaVu Sans"], {}), None),
        (FontManager(["DejaVu Sans", "Last Resort HE"], {}, {"Last Resort HE"}), None),
    ],
    ids=["best known", "installed after the cache", "unknown name with the glyph", "none", "only boxes"],
)
def test_a_chinese_font_is_found_by_name_then_by_glyph(monkeypatch, manager, font):
    import matplotlib

    monkeypatch.setattr(matplotlib, "font_manager", manager, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.font_manager", manager)
    monkeypatch.setattr(plotting, "PACKAGED", ("no_such_package", ""))
    assert plotting.cjk_font() == font


def test_the_font_of_a_package_is_taken_where_the_system_has_none(tmp_path, monkeypatch):
    from matplotlib import font_manager

    name = plotting.cjk_font()
    if name is None:
        pytest.skip("no Chinese font on this machine: apt-get install fonts-noto-cjk")
    (tmp_path / "package_of_fonts").mkdir()
    (tmp_path / "package_of_fonts" / "__init__.py").touch()
    (tmp_path / "package_of_fonts" / "font.otf").symlink_to(font_manager.findfont(name))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plotting, "PACKAGED", ("package_of_fonts", "font.otf"))
    monkeypatch.setattr(plotting, "KNOWN_FONTS", ())
    monkeypatch.setattr(plotting, "_by_glyph", lambda manager: None)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    assert "CJK" in plotting.cjk_font()


def test_the_font_found_here_draws_chinese():
    from matplotlib import font_manager

    name = plotting.cjk_font()
    if name is None:
        pytest.skip("no Chinese font on this machine: apt-get install fonts-noto-cjk")
    path = font_manager.findfont(name, fallback_to_default=False)
    assert font_manager.get_font(path).get_char_index(ord("盘"))


def test_without_a_compiler_libraries_that_were_built_are_enough(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for built, state in ((True, "ok"), (False, "warning")):
        monkeypatch.setattr(doctor.compiling, "all_built", lambda built=built: built)
        assert doctor._compiler().state == state
