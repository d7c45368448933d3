"""C libraries: built with the package or at their first use, never stale, never needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pangu_lab import compiling
from pangu_lab.compiling import BUILT, LIBRARIES, PACKAGE, PRIVATE, Library
from pangu_lab.ops.native import decode, train

with_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C compiler")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package with one library, and a cache folder beside it."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "answer.c").write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    (folder / "answer.h").write_text("#ifndef ANSWER\n#define ANSWER 41\n#endif\n")
    library = Library("answer", ("answer.c",), ("-shared", "-fPIC"))
    monkeypatch.setattr(compiling, "PACKAGE", folder)
    monkeypatch.setattr(compiling, "LIBRARIES", {"answer": library})
    monkeypatch.setenv("PANGU_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PANGU_LAB_CFLAGS", raising=False)
    return folder


def answer(path: Path) -> int:
    return ctypes.CDLL(str(path)).answer()


def build_with_package(package: Path) -> Path:
    return compiling.build(compiling.LIBRARIES["answer"], package / BUILT)


def cache_of(package: Path) -> Path:
    """The folder that libraries are compiled into at first use."""
    return package.parent / "cache" / PRIVATE


@with_compiler
def test_what_was_built_with_the_package_is_taken_and_needs_no_compiler(package, monkeypatch):
    built = build_with_package(package)
    monkeypatch.setenv("PATH", "")
    assert compiling.compiled("answer") == built and answer(built) == 41
    assert not (package.parent / "cache").exists()


@with_compiler
@pytest.mark.parametrize("changed", ["answer.c", "answer.h", "options"])
def test_a_library_of_other_sources_or_options_is_not_taken(package, monkeypatch, changed):
    built = build_with_package(package)
    if changed == "options":
        monkeypatch.setenv("PANGU_LAB_CFLAGS", "-DANSWER=42")
    else:
        path = package / changed
        path.write_text(path.read_text().replace("41", "42").replace("return ANSWER", "return 42"))
    found = compiling.compiled("answer")
    assert found.parent == cache_of(package) and found.name != built.name and answer(found) == 42
    modified = found.stat().st_mtime_ns
    assert compiling.compiled("answer") == found and found.stat().st_mtime_ns == modified  # once
    monkeypatch.setenv("PATH", "")
    (package / "answer.c").write_text("int answer(void) { return 43; }\n")
    assert compiling.compiled("answer") is None


@with_compiler
@pytest.mark.parametrize("what", ["the file", "the folder"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o757], ids=oct)
def test_a_library_that_others_may_write_is_never_loaded(package, caplog, what, mode):
    found = compiling.compiled("answer")
    path = found if what == "the file" else found.parent
    path.chmod(mode)
    assert compiling.compiled("answer") is None
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"{path}: another user owns it or may write it") and "PANGU_LAB_CACHE" in line
    path.chmod(0o700)
    assert compiling.compiled("answer") == found


@with_compiler
def test_a_library_of_another_user_is_never_loaded(package, monkeypatch, caplog):
    found = compiling.compiled("answer")
    monkeypatch.setattr(os, "getuid", lambda: found.stat().st_uid + 1)
    assert compiling.compiled("answer") is None and "another user owns it" in caplog.text


@with_compiler
def test_what_is_compiled_is_its_users_alone_whatever_the_umask_and_the_cache(package):
    cache_of(package).parent.mkdir(mode=0o775)
    before = os.umask(0o002)
    try:
        found = compiling.compiled("answer")
    finally:
        os.umask(before)
    cache_of(package).parent.chmod(0o775)  # shared with a group, as other cached files may be
    assert compiling.is_private(found) and compiling.is_private(found.parent)
    modified = found.stat().st_mtime_ns
    assert compiling.compiled("answer") == found and found.stat().st_mtime_ns == modified


@with_compiler
def test_a_source_that_does_not_compile_leaves_nothing_behind(package, caplog):
    (package / "answer.c").write_text("no C")
    with caplog.at_level("INFO"):
        assert compiling.compiled("answer") is None
    assert "answer does not compile" in caplog.text and not list(cache_of(package).iterdir())


def test_a_compiler_that_does_not_run_is_none(package, monkeypatch, tmp_path, caplog):
    (tmp_path / "cc").write_bytes(b"not a program")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level("INFO"):
        assert compiling.compiled("answer") is None
    assert "answer does not compile" in caplog.text


def test_every_c_file_of_the_package_belongs_to_a_library():
    units = {PACKAGE / unit for library in LIBRARIES.values() for unit in library.units}
    assert units == set(PACKAGE.rglob("*.c"))


def test_the_build_can_import_it_where_nothing_is_installed():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pangu_lab.compiling"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)


def built_wheel(tmp_path: Path, **environment: str) -> tuple[str, list[str]]:
    """Name and files of a wheel of this project, made in a copy of it; compiled quickly, not well."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", BUILT)
    for name in ("pangu_lab", "widgets"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, "PANGU_LAB_CFLAGS": "-O0", **environment},
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, archive.namelist()


@with_compiler
def test_a_wheel_brings_the_libraries_the_program_will_ask_for(tmp_path, monkeypatch):
    name, files = built_wheel(tmp_path)
    monkeypatch.setenv("PANGU_LAB_CFLAGS", "-O0")
    assert "-py3-none-" in name and not name.endswith("-any.whl")
    assert {file for file in files if file.endswith(".so")} == {
        f"pangu_lab/{BUILT}/{library.file_name()}" for library in LIBRARIES.values()
    }
    assert {f"pangu_lab/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.[ch]")} <= set(files)


def test_without_a_compiler_there_is_a_wheel_all_the_same(tmp_path):
    name, files = built_wheel(tmp_path, PATH=str(tmp_path))
    assert name.endswith("-py3-none-any.whl") and not [file for file in files if file.endswith(".so")]


@pytest.mark.parametrize("ask, words", [(train.library, "training uses"), (decode.library, "generate the same tokens")])
def test_what_goes_on_without_a_compiler_is_said_unless_the_user_asked_for_it(ask, words, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "compiled", lambda *_: None)
    monkeypatch.setattr(compiling, "compiler", lambda: None)
    assert ask.__wrapped__() is None
    assert words in caplog.text and "apt-get install gcc" in caplog.text
    caplog.clear()
    monkeypatch.setenv("PANGU_LAB_NATIVE", "0")
    assert ask.__wrapped__() is None and not caplog.text
