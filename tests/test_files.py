"""Files are whole or not there: after an exception, after SIGKILL, and while somebody reads."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pangu_lab.errors import InputError
from pangu_lab.files import check_destination, sha256_file, whole_folder, write_json_atomic, write_text_atomic
from pangu_lab.reading import read_json


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_text_is_written_as_utf8_and_readable_by_others(tmp_path):
    path = tmp_path / "status.json"
    write_text_atomic(path, "春眠不觉晓\n")
    assert path.read_bytes() == "春眠不觉晓\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(tmp_path) == ["status.json"]


def test_text_that_cannot_be_encoded_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "half a pair: \ud800")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_json_comes_back_equal(tmp_path):
    value = {"标题": "盘古", "steps": [1, 2.5, None, True]}
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "the thing") == value


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json_atomic(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json", "it") == {"a": 1} and names(tmp_path) == ["a.json"]


def test_sha256_is_that_of_the_whole_content(tmp_path):
    content = os.urandom((1 << 20) + 17)  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "deep" / "data"
    with whole_folder(target) as folder:
        (folder / "one").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "two").write_text("2")
        assert not target.exists()
    assert names(target) == ["one", "sub"] and names(target.parent) == ["data"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_inside_whole_folder_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "data") as folder:
        (folder / "half").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("old")
    with pytest.raises(InputError, match="data exists already: choose another"), whole_folder(tmp_path / "data"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "data") == ["old"]


def test_replacing_swaps_the_whole_folder(tmp_path):
    for content in ("old", "new"):
        with whole_folder(tmp_path / "data", replace=True) as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["new"]


def test_a_crash_while_replacing_keeps_the_old_folder(tmp_path):
    with whole_folder(tmp_path / "data") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(OSError), whole_folder(tmp_path / "data", replace=True) as folder:
        (folder / "new").write_text("new")
        raise OSError("disk full")
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["old"]


def kill_while(code: str, *arguments) -> None:
    """Run Python code that prints a line when it is in the middle of its work; SIGKILL it there."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
        process.stdout.close()


def test_sigkill_during_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.json"
    write_json_atomic(path, {"step": 1})
    kill_while(
        """
import os, sys, time
from pangu_lab import files
def stop_here(*args):
    print("now", flush=True)
    time.sleep(60)
files.os.replace = stop_here  # the moment in which the new content is on the disk but not yet in place
files.write_json_atomic(sys.argv[1], {"step": 2})
""",
        path,
    )
    assert json.loads(path.read_text()) == {"step": 1}


def test_sigkill_inside_whole_folder_leaves_no_folder_of_that_name(tmp_path):
    target = tmp_path / "step-00000100"
    kill_while(
        """
import sys, time
from pangu_lab.files import whole_folder
with whole_folder(sys.argv[1]) as folder:
    (folder / "weights").write_text("half")
    print("now", flush=True)
    time.sleep(60)
""",
        target,
    )
    assert not target.exists()
    left = names(tmp_path)
    assert len(left) == 1 and left[0].startswith(".step-00000100.partial-"), "nothing that a reader would look at"


def test_a_reader_never_meets_half_a_file(tmp_path):
    path = tmp_path / "status.json"
    write_json_atomic(path, {"text": "0" * 50_000})
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 300:
            number += 1
            write_json_atomic(path, {"text": str(number % 10) * 50_000})

    writer = threading.Thread(target=write)
    writer.start()
    end = time.monotonic() + 0.5
    reads = 0
    while time.monotonic() < end:
        text = read_json(path, "it")["text"]
        assert len(text) == 50_000 and len(set(text)) == 1
        reads += 1
    stop.set()
    writer.join()
    assert reads > 10


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one_there(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "data") as folder:
        (folder / "old").write_text("old")
    rename = os.rename

    def refuse(source, target):
        if ".partial-" in str(source):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="disk full"), whole_folder(tmp_path / "data", replace=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["old"]


def test_a_user_without_a_home_has_a_cache_of_her_own_and_the_prebuilt_libraries():
    code = (
        "import os, pwd\ndel os.environ['HOME']\n"
        "def unknown(uid):\n    raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"  # as in a container that runs under a number without a name
        "from pangu_lab import cache, compiling\nprint(cache.cache_folder())\n"
        "print(compiling.all_built() == (compiling.compiled('kernels').parent.name == 'built'))"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PANGU_LAB_CACHE", "XDG_CACHE_HOME")
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [os.path.join(tempfile.gettempdir(), f"pangu-lab-{os.getuid()}"), "True"], done.stderr


# --------------------------------------------------------------------------------- what killed writers leave behind

WRITE = """
import sys, time
from pangu_lab import files
with files.whole_folder(sys.argv[1], replace=True) as folder:
    (folder / "weights").write_text("half")
    if sys.argv[2] == "partial":
        print("now", flush=True)
        time.sleep(60)
    files.fsync_path(folder)
    rename = files.os.rename
    def stop_between(source, target):
        if ".partial-" in str(source):
            print("now", flush=True)
            time.sleep(60)
        rename(source, target)
    files.os.rename = stop_between
"""
WRITE_FILE = """
import sys, time
from pangu_lab import files
def stop_here(*args):
    print("now", flush=True)
    time.sleep(60)
files.os.replace = stop_here
files.write_text_atomic(sys.argv[1], "new")
"""


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    kill_while(WRITE, tmp_path / "data", "partial")
    assert len(names(tmp_path)) == 1
    with whole_folder(tmp_path / "data") as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["whole"]


def test_checking_the_destination_is_enough_to_clear_up_and_leaves_nothing(tmp_path):
    kill_while(WRITE, tmp_path / "data", "partial")
    check_destination(tmp_path / "data")
    assert names(tmp_path) == []


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path):
    with whole_folder(tmp_path / "data") as folder:
        (folder / "old").write_text("old")
    kill_while(WRITE, tmp_path / "data", "between")
    assert "data" not in names(tmp_path)
    with pytest.raises(InputError, match="data exists already"):
        check_destination(tmp_path / "data")
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == ["old"]


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left(tmp_path):
    kill_while(WRITE_FILE, tmp_path / "a.txt")
    assert len(names(tmp_path)) == 1
    write_text_atomic(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("code,arguments", [(WRITE, ["partial"]), (WRITE, ["between"]), (WRITE_FILE, [])])
def test_what_a_living_writer_works_on_stays(tmp_path, code, arguments):
    path = tmp_path / "data"
    if arguments == ["between"]:
        with whole_folder(path) as folder:
            (folder / "old").write_text("old")
    command = [sys.executable, "-c", code, str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "now\n"
            before = names(tmp_path)
            if code == WRITE:
                check_destination(path)
                assert names(tmp_path) == before
            else:
                write_text_atomic(path, "mine")
                assert names(tmp_path) == [*before, "data"]
        finally:
            process.kill()


def test_names_that_are_not_exactly_ours_stay(tmp_path):
    others = [
        ".data.partial-",
        ".data.partial-ABCDEFGH",
        ".data.partial-abcdefgh1",
        ".data2.partial-abcdefgh",
        "data.partial-abcdefgh",
        ".data.old-abcdefg",
        ".dataX.old-abcdefgh",
        ".data.abcdefgh",
        ".data.settings",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".data.partial-linked_1").symlink_to(tmp_path / "elsewhere")
    with whole_folder(tmp_path / "data"):
        pass
    assert names(tmp_path) == sorted([*others, ".data.partial-linked_1", "elsewhere", "data"])


def test_a_destination_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, message in (
        (tmp_path / "link", "is a link to .*nowhere, which is not there"),
        (tmp_path / "file" / "data", "cannot be made .*Not a directory"),
        (tmp_path / "link" / "data", "cannot be made"),
        (tmp_path / ("x" * 250), "cannot be made .*File name too long"),
        (Path("/proc/data"), "cannot be made"),
    ):
        for refuse in (check_destination, lambda path: whole_folder(path, replace=True).__enter__()):
            with pytest.raises(InputError, match=message):
                refuse(path)
    assert names(tmp_path) == ["file", "link"]
