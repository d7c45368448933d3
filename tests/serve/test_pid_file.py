"""Pid files: whose number it is is proved, and no process is signalled on a guess."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pangu_lab import locking
from pangu_lab.errors import InputError
from pangu_lab.identity import identity_of
from pangu_lab.serve.pid_file import pid_file, read_pid, stop_server

ROOT = Path(__file__).resolve().parents[2]
SERVE = """
import signal, sys
from pangu_lab.serve.pid_file import pid_file
with pid_file(sys.argv[1]):
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(0))
    print("ready", flush=True)
    sys.stdin.read()
"""


def start(file, *within: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [*within, sys.executable, "-c", SERVE, str(file)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def file(tmp_path):
    return tmp_path / "serve.pid"


@pytest.fixture
def server(file):
    process = start(file)
    yield process
    process.kill()
    process.communicate(timeout=30)


@pytest.fixture
def stranger():
    """A process that is no server but could be taken for one by its words."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "serve"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate(timeout=30)


def write_lock(file, process, **changes):
    """The lock file that a server with this identity left."""
    values = {
        "process": dataclasses.replace(process, **changes).to_dict(),
        "token": "theirs",
        "beats": 3,
        "since": 1e9,
        "firm": True,
    }
    file.with_name("serve.pid.lock").write_text(json.dumps(values).ljust(locking.SIZE))
    file.write_text(f"{process.pid}\n")


def test_the_file_has_the_number_while_the_server_lives_and_goes_with_it(file, tmp_path):
    with pid_file(file):
        assert file.read_text() == f"{os.getpid()}\n" and read_pid(file) == os.getpid()
        words = f"process {os.getpid()} is alive and serves .*--stop --pid-file"
        with pytest.raises(InputError, match=words), pid_file(file):
            pass
    assert list(tmp_path.iterdir()) == [] and read_pid(file) is None


def test_stop_ends_the_server_and_waits(file, server, tmp_path):
    assert stop_server(file) == server.pid
    assert server.wait(timeout=30) == 0 and list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no server runs with this pid file"):
        stop_server(file)


def test_a_clock_that_was_set_changes_nothing(file, server, monkeypatch):
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1e9)
    with pytest.raises(InputError, match="is alive and serves"), pid_file(file):
        pass
    assert stop_server(file) == server.pid


def test_a_killed_servers_file_is_taken_at_once(file, server):
    server.kill()
    server.wait()
    assert file.exists() and read_pid(file) is None
    with pid_file(file):
        assert read_pid(file) == os.getpid()


def test_a_stranger_that_got_the_number_is_not_signalled(file, stranger):
    write_lock(file, identity_of(stranger.pid), ticks=1)
    with pytest.raises(InputError, match="no server runs with this pid file"):
        stop_server(file)
    assert read_pid(file) is None and stranger.poll() is None


def test_a_process_that_does_not_hold_the_lock_is_not_signalled(file, stranger):
    write_lock(file, identity_of(stranger.pid))
    with pytest.raises(InputError, match=f"{stranger.pid} does not hold .*serve.pid.lock any more, so it was not"):
        stop_server(file)
    assert stranger.poll() is None


def test_a_number_without_a_lock_is_not_signalled(file, stranger):
    file.write_text(f"{stranger.pid}\n")
    with pytest.raises(InputError, match=f"nothing proves that process {stranger.pid} is the server"):
        stop_server(file)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    with pytest.raises(InputError, match="no server runs with this pid file"):
        stop_server(file)


def test_a_server_on_another_host_is_named_and_not_signalled(file, stranger):
    write_lock(file, identity_of(stranger.pid), host="elsewhere", boot="another")
    with pytest.raises(
        InputError, match=f"{stranger.pid} .on host elsewhere since .* reached from here: stop it there"
    ):
        stop_server(file)
    assert stranger.poll() is None


def test_a_server_in_another_pid_namespace_is_named_and_not_signalled(file, another_namespace):
    server = start(file, *another_namespace)
    try:
        assert int(file.read_text()) < 10, "such a number is another process here"
        with pytest.raises(InputError, match="in another container, .*cannot be reached from here"):
            stop_server(file)
        with pytest.raises(InputError, match="is alive and serves"), pid_file(file):
            pass
        assert server.poll() is None
    finally:
        server.send_signal(signal.SIGKILL)
        server.communicate(timeout=30)


@pytest.mark.parametrize("content", ["notes of mine\n", "\n", "12 13\n"])
def test_a_file_that_is_no_pid_file_is_left_alone(file, content):
    file.write_text(content)
    for use in (read_pid, stop_server, lambda path: pid_file(path).__enter__()):
        with pytest.raises(InputError, match="serve.pid: not a pid file"):
            use(file)
    assert file.read_text() == content
