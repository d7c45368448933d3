"""The lock that holds across processes, containers and hosts: with real processes, and with records of other hosts."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pangu_lab import identity, locking
from pangu_lab.identity import identity_of, lives, own_identity, parse_identity, send_signal
from pangu_lab.locking import Held, Lock, LockLost, holder_lives, is_locked, read_record

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from pangu_lab.locking import Held, Lock
lock = Lock(sys.argv[1], "the thing", "is at work here", "wait")
try:
    lock.acquire()
except Held as error:
    print("held", error, flush=True)
    sys.exit(3)
print("mine", flush=True)
sys.stdin.readline()
lock.release()
"""


def lock_on(path, tell=lambda text: None) -> Lock:
    return Lock(path, "the thing", "is at work here", "wait for it", tell)


def start(path, *within: str, code: str = HOLD) -> subprocess.Popen:
    return subprocess.Popen(
        [*within, sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock ``tmp_path/lock``; killed at the end."""
    process = start(tmp_path / "lock")
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.communicate(timeout=30)


@pytest.fixture
def quick(monkeypatch):
    """Other hosts are watched for a shorter time."""
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locking, "WATCH_SECONDS", 1.0)


def write_record(path, beats=1, **changes) -> None:
    """A record as another process leaves it."""
    process = dataclasses.replace(own_identity(), **changes)
    path.write_text(
        json.dumps({"process": process.to_dict(), "token": "theirs", "beats": beats, "since": 1e9, "firm": True}).ljust(
            locking.SIZE
        )
    )


# ---------------------------------------------------------------------------------------------------- one kernel


def test_a_lock_is_had_by_one_and_leaves_nothing_behind(tmp_path):
    with lock_on(tmp_path / "lock") as lock:
        assert lock.held() and is_locked(lock.path) and holder_lives(lock.path, read_record(lock.path))
        words = rf"the thing: process {os.getpid()} is at work here \(on host .* since .*wait for it"
        with pytest.raises(Held, match=words):
            lock_on(tmp_path / "lock").acquire()
    assert list(tmp_path.iterdir()) == [] and not lock.held() and is_locked(lock.path) is False


def test_of_starts_at_once_exactly_one_wins_in_every_round(tmp_path):
    code = (
        "import sys\nfrom pangu_lab.locking import Held, Lock\n"
        "for line in sys.stdin:\n"
        "    lock = Lock(line.strip(), 'x', 'is here', 'wait')\n"
        "    try:\n        lock.acquire(); print('mine', flush=True)\n"
        "    except Held: print('held', flush=True); continue\n"
        "    sys.stdin.readline(); lock.release()\n"
    )
    rivals = [start(tmp_path, code=code) for _ in range(3)]
    for number in range(100):
        if number % 2:  # a holder was killed before
            write_record(tmp_path / f"lock{number}", ticks=1)
        for rival in rivals:
            rival.stdin.write(f"{tmp_path / f'lock{number}'}\n")
            rival.stdin.flush()
        answers = [rival.stdout.readline().strip() for rival in rivals]
        assert sorted(answers) == ["held", "held", "mine"]
        winner = rivals[answers.index("mine")]
        winner.stdin.write("\n")
        winner.stdin.flush()
    for rival in rivals:
        rival.communicate(timeout=30)


def test_a_killed_holder_is_followed_at_once(tmp_path, holder):
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with lock_on(tmp_path / "lock", tell=pytest.fail) as lock:
        assert time.monotonic() - began < 0.5 and lock.held()


def test_a_stopped_holder_still_holds(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(Held, match=f"process {holder.pid} is at work here"):
        lock_on(tmp_path / "lock").acquire()
    holder.send_signal(signal.SIGCONT)
    assert read_record(tmp_path / "lock").process.pid == holder.pid


def test_a_holder_that_only_just_opened_the_file_is_told_as_starting(tmp_path):
    import fcntl

    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Held, match="another process is just starting here; try again"):
            lock_on(tmp_path / "lock").acquire()


@pytest.mark.parametrize("how", ["subprocess", "fork"])
def test_children_do_not_keep_the_lock_of_a_dead_parent(tmp_path, how):
    child = {
        "subprocess": "import subprocess; c = subprocess.Popen(['sleep', '60']).pid",
        "fork": "import os\nc = os.fork()\nif not c: time.sleep(60); os._exit(0)",
    }[how]
    code = HOLD.replace("sys.stdin.readline()", f"{child}\nprint(c, flush=True)\nsys.stdin.readline()")
    process = start(tmp_path / "lock", code=code)
    assert process.stdout.readline() == "mine\n"
    child = psutil.Process(int(process.stdout.readline()))
    try:
        process.kill()
        process.wait()
        assert child.is_running()
        with lock_on(tmp_path / "lock") as lock:
            assert lock.held()
    finally:
        child.kill()


def test_a_holder_in_another_pid_namespace_holds_and_is_followed_when_killed(tmp_path, another_namespace):
    process = start(tmp_path / "lock", *another_namespace)
    try:
        assert process.stdout.readline() == "mine\n"
        record = read_record(tmp_path / "lock")
        assert record.process.pid < 10 and lives(record.process) is None and holder_lives(tmp_path / "lock", record)
        with pytest.raises(Held, match="in another container"):
            lock_on(tmp_path / "lock").acquire()
    finally:
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while is_locked(tmp_path / "lock") and time.monotonic() < deadline:
        time.sleep(0.02)  # the kernel ends the namespace after its first process
    assert holder_lives(tmp_path / "lock", record) is False
    with lock_on(tmp_path / "lock", tell=pytest.fail) as lock:
        assert lock.held()


def test_from_another_pid_namespace_the_holder_is_seen_too(tmp_path, holder, another_namespace):
    other = start(tmp_path / "lock", *another_namespace)
    out, _ = other.communicate(timeout=30)
    assert other.returncode == 3 and f"process {holder.pid} is at work here" in out


# ---------------------------------------------------------------------------------------------------- other hosts


def test_a_silent_holder_on_another_host_is_watched_and_then_followed(tmp_path, quick):
    write_record(tmp_path / "lock", host="elsewhere", boot="another")
    told = []
    began = time.monotonic()
    with lock_on(tmp_path / "lock", told.append) as lock:
        assert time.monotonic() - began > 1.0 and lock.held()
    assert "on host elsewhere" in told[0] and "waiting up to 1 s" in told[0] and "no sign of life" in told[1]


def test_a_holder_on_another_host_whose_beats_move_is_left_alone(tmp_path, quick):
    write_record(tmp_path / "lock", host="elsewhere", boot="another")
    ended = threading.Event()

    def beat() -> None:
        for beats in range(2, 1000):
            if ended.wait(0.1):
                return
            write_record(tmp_path / "lock", beats, host="elsewhere", boot="another")

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(Held, match="is at work here .on host elsewhere since"):
            lock_on(tmp_path / "lock").acquire()
    finally:
        ended.set()
        other.join()
    assert read_record(tmp_path / "lock").token == "theirs"


def test_a_holder_that_was_suspended_finds_that_it_lost_the_lock(tmp_path, quick):
    lock = lock_on(tmp_path / "lock").acquire()
    lock.check()
    write_record(tmp_path / "lock", host="elsewhere", boot="another")
    with pytest.raises(LockLost, match="on host elsewhere .* has taken over; this process stops and writes no more"):
        lock.check()
    time.sleep(0.3)  # several beats, none of which it may write
    lock.release()
    assert read_record(tmp_path / "lock").token == "theirs"


def test_a_lock_file_that_was_removed_is_a_lock_lost(tmp_path, quick):
    with lock_on(tmp_path / "lock") as lock:
        lock.path.unlink()
        with pytest.raises(LockLost, match="was removed"):
            lock.check()


@pytest.mark.parametrize("firm", [True, False])
def test_of_two_that_see_a_free_lock_at_once_the_last_to_write_has_it(tmp_path, quick, monkeypatch, firm):
    """Where locks do not reach the other host: both take over from the dead one."""
    monkeypatch.setattr(locking, "try_lock", lambda descriptor: firm)
    write_record(tmp_path / "lock", host="elsewhere", boot="another")
    found = {}

    def rival(name: str) -> None:
        try:
            found[name] = lock_on(tmp_path / "lock").acquire()
        except Held as error:
            found[name] = error

    threads = [threading.Thread(target=rival, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    locks = [value for value in found.values() if isinstance(value, Lock)]
    assert len(locks) == 1 and locks[0].held()
    locks[0].release()


def test_a_disk_without_locks_is_guarded_by_the_record(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(locking, "try_lock", lambda descriptor: False)
    with lock_on(tmp_path / "lock") as lock:
        assert not read_record(lock.path).firm
        with pytest.raises(Held):
            lock_on(lock.path).acquire()
    write_record(tmp_path / "lock", ticks=1)  # of a process that is gone
    with lock_on(tmp_path / "lock", tell=pytest.fail):
        pass


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"process": {"pid": "x"}}', "12\n"])
def test_a_record_that_cannot_be_read_is_watched_and_not_trusted(tmp_path, quick, content):
    (tmp_path / "lock").write_text(content)
    told = []
    assert read_record(tmp_path / "lock") is None
    with lock_on(tmp_path / "lock", told.append) as lock:
        assert lock.held() and "cannot be made out" in told[0]


# ------------------------------------------------------------------------------------------------ who a process is


def test_a_clock_that_was_set_changes_nothing(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1e9)  # what a clock that was set does to it
    record = read_record(tmp_path / "lock")
    assert lives(record.process) and identity_of(holder.pid) == record.process
    with pytest.raises(Held):
        lock_on(tmp_path / "lock").acquire()


def test_a_strangers_process_with_a_number_used_again_is_never_signalled(holder):
    stranger = identity_of(holder.pid)
    before = dataclasses.replace(stranger, ticks=stranger.ticks - 100)
    assert lives(before) is False and send_signal(before, signal.SIGKILL) is False
    elsewhere = dataclasses.replace(stranger, boot="another")
    assert lives(elsewhere) is None and send_signal(elsewhere, signal.SIGKILL) is False
    assert holder.poll() is None
    assert send_signal(stranger, signal.SIGKILL) and holder.wait(timeout=30) == -signal.SIGKILL
    assert lives(stranger) is False


def test_an_ended_process_that_nobody_has_taken_note_of_is_dead():
    process = subprocess.Popen(["sleep", "60"])
    who = identity_of(process.pid)
    assert lives(who)
    process.kill()
    deadline = time.monotonic() + 10
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lives(who) is False
    process.wait()


def test_a_process_that_proc_does_not_show_is_not_called_dead(tmp_path, holder, monkeypatch):
    who = identity_of(holder.pid)
    monkeypatch.setattr(identity, "_ticks", lambda name: None)
    monkeypatch.setattr(identity, "_hidden", lambda pid: True)
    assert lives(who) is None


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"pid": 1},
        {**own_identity().to_dict(), "pid": 0},
        {**own_identity().to_dict(), "pid": -1},
        {**own_identity().to_dict(), "ticks": "1"},
    ],
)
def test_what_is_no_identity_is_none(values):
    assert parse_identity(values) is None
    assert parse_identity(own_identity().to_dict()) == own_identity()
