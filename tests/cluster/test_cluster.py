"""A model over two processes: the texts of one process, and what happens when one of them is lost."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from pangu_lab.cli import main
from pangu_lab.cluster import front as clustering
from pangu_lab.cluster import wire
from pangu_lab.cluster.front import HANDSHAKES, Cluster
from pangu_lab.cluster.places import PORT as MASTER_PORT
from pangu_lab.cluster.rank import Keeper, process_log
from pangu_lab.cluster.shared import SharedModel
from pangu_lab.cluster.wire import Gone, authenticated, connected, unpacked
from pangu_lab.config import ParallelConfig, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export import export_run, load_bundle
from pangu_lab.generate import generate
from pangu_lab.generate.runner import NetworkLost
from pangu_lab.launch.hosts import free_port
from pangu_lab.launch.rank_table import create_rank_table, merge_rank_tables, write_rank_table
from pangu_lab.presets import preset
from pangu_lab.serve.scheduler import Scheduler, Unavailable
from tests.serve.running import ROOT, running, scripted

KEY = "PANGU_LAB_CLUSTER_KEY"
PROMPTS = ("春天来了，", "老师说：", "他打开窗户，")


@pytest.fixture(scope="module")
def shared(debug_run, tmp_path_factory):
    """A bundle for each of two processes."""
    return export_run(
        debug_run,
        tmp_path_factory.mktemp("exports") / "shared",
        slots=256,
        tensor_parallel=2,
        decode_batches=(),
        eval_loss=False,
    )


@contextlib.contextmanager
def agent(bundle, port: int, *more: str, within=()) -> Iterator[subprocess.Popen]:
    """An agent as another host would run it."""
    command = [
        *within,
        sys.executable,
        "-m",
        "pangu_lab.cli",
        "serve",
        "--agent",
        "--bundle",
        str(bundle),
        "--master-port",
        str(port),
        *more,
    ]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), KEY: "secret"})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def ask(http, prompt: str, **settings) -> httpx.Response:
    return http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 16, **settings})


def wait_for(what, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.2)


@pytest.fixture
def rank_table(tmp_path):
    """Two hosts with a device each."""
    return table_of(tmp_path / "hccl.json", "127.0.0.1", "127.0.0.2")


def table_of(path, *addresses: str):
    """The rank table of hosts with a device each."""
    write_rank_table(
        merge_rank_tables(
            [create_rank_table(address, [0], [f"10.0.0.{number}"]) for number, address in enumerate(addresses, 1)]
        ),
        path,
    )
    return path


@pytest.mark.slow
def test_a_rank_table_says_where_the_server_is_and_how_many_processes_each_host_has(shared, debug_bundle, rank_table):
    port = free_port()
    expected = generate(load_bundle(debug_bundle), PROMPTS[0], SamplingConfig(max_new_tokens=16, temperature=0)).text
    with agent(shared, port, "--rank-table", str(rank_table), "--node-rank", "1") as there:
        with (
            running(
                shared, "--rank-table", str(rank_table), "--master-port", str(port), "--no-page", **{KEY: "secret"}
            ) as server,
            httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http,
        ):
            assert ask(http, PROMPTS[0], temperature=0).json()["choices"][0]["text"] == expected
            assert len(psutil.Process(there.pid).children()) == 1


ASK = """
import sys, urllib.error, urllib.request
url, body = sys.argv[1], sys.argv[2].encode() or None
try:
    reply = urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=150)
except urllib.error.HTTPError as error:
    reply = error
print(reply.status, reply.read().decode())
"""


def asked_within(host, url: str, **body) -> tuple[int, str]:
    """Status and text of an answer to somebody on that host."""
    said = subprocess.run(
        [*host.within, sys.executable, "-c", ASK, url, json.dumps(body) if body else ""],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    ).stdout
    return int(said[:3]), said[4:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_serve_together_lose_each_other_when_the_cable_is_pulled_and_come_back(
    shared, debug_bundle, two_hosts, tmp_path
):
    here, there = two_hosts
    table = ("--rank-table", str(table_of(tmp_path / "hccl.json", here.address, there.address)))
    expected = [
        generate(load_bundle(debug_bundle), prompt, SamplingConfig(max_new_tokens=16, temperature=0)).text
        for prompt in PROMPTS
    ]
    with (
        agent(shared, MASTER_PORT, *table, "--node-rank", "1", within=there.within),
        running(shared, *table, "--no-page", within=here.within, **{KEY: "secret"}) as server,
    ):

        def completion(prompt: str) -> tuple[int, str]:
            return asked_within(here, f"{server.url}/v1/completions", prompt=prompt, max_tokens=16, temperature=0)

        def same() -> bool:
            return [json.loads(completion(prompt)[1])["choices"][0]["text"] for prompt in PROMPTS] == expected

        def ready() -> int:
            return asked_within(here, f"{server.url}/readyz")[0]

        assert ready() == 200 and same()
        there.cable_is("down")  # no connection ends: the silence must be noticed
        wait_for(lambda: ready() == 503, 150)
        assert completion(PROMPTS[0])[0] == 503
        there.cable_is("up")
        wait_for(lambda: ready() == 200, 150)
        assert same()


def test_a_rank_table_that_does_not_fit_is_refused_in_one_line(shared, debug_bundle, rank_table, capsys):
    table = ["--rank-table", str(rank_table)]
    for line, words in (
        (["--bundle", str(debug_bundle), *table], "--tensor-parallel 2"),
        (["--bundle", str(shared), *table, "--nproc", "1"], "give one of them"),
        (["--bundle", str(shared), *table, "--node-rank", "2"], "from 0 to 1"),
        (["--bundle", str(shared), *table, "--node-rank", "1"], "give --agent here"),
        (["--bundle", str(shared), *table, "--agent"], "give --node-rank"),
        (["--bundle", str(shared), "--node-rank", "1"], "needs --rank-table"),
    ):
        assert main(["serve", *line]) == 2
        said = capsys.readouterr().err.strip()
        assert words in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_come_back_when_one_is_lost(shared, debug_bundle):
    offline, port = load_bundle(debug_bundle), free_port()
    expected = {
        (prompt, seed): generate(
            offline, prompt, SamplingConfig(max_new_tokens=16, temperature=0.8 if seed else 0, seed=seed)
        ).text
        for prompt in PROMPTS
        for seed in (0, 1)
    }

    def same(http) -> bool:
        return all(
            ask(http, prompt, seed=seed, temperature=0.8 if seed else 0).json()["choices"][0]["text"] == text
            for (prompt, seed), text in expected.items()
        )

    arguments = ("--nproc", "1", "--master-port", str(port), "--no-page")
    with contextlib.ExitStack() as first:
        lost = first.enter_context(agent(shared, port))
        with (
            running(shared, *arguments, **{KEY: "secret"}) as server,
            httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http,
        ):
            assert http.get("/readyz").status_code == 200 and same(http)
            _, *ranks = psutil.Process(lost.pid), *psutil.Process(lost.pid).children()
            lost.kill()
            with httpx.stream(
                "POST",
                server.url + "/v1/completions",
                timeout=60,
                json={"prompt": PROMPTS[0], "max_tokens": 100, "stream": True},
            ) as stream:
                told = "".join(stream.iter_text())
            assert stream.status_code == 503 or '"error"' in told
            wait_for(lambda: http.get("/readyz").status_code == 503, 20)
            assert "rank 1" in http.get("/readyz").text and ask(http, PROMPTS[0]).status_code == 503
            assert http.get("/healthz").status_code == 200
            psutil.wait_procs(ranks, timeout=20)
            assert not any(rank.is_running() for rank in ranks)  # nothing of a dead agent goes on
            with agent(shared, port):
                wait_for(lambda: http.get("/readyz").status_code == 200)
                assert same(http)
            server.signal()
            assert server.end()[0] == 0


def test_the_processes_of_a_rank_table_have_its_devices_and_their_prints_go_to_files(tmp_path, monkeypatch):
    started, Popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **how: started.append(how["env"]) or Popen(*words, **how))
    for _ in range(2):
        keeper = Keeper(
            tmp_path / "nothing", 2, ("127.0.0.1", 1), b"key", local=True, devices=(6, 4), log_dir=tmp_path / "logs"
        )
        assert [environment["DEVICE_ID"] for environment in started[-2:]] == ["6", "4"]
        assert keeper.refused.wait(60)
        keeper.close()
    logs = tmp_path / "logs"
    assert {path.name for path in logs.iterdir()} == {f"process_{n}.log{age}" for n in (0, 1) for age in ("", ".1")}
    wait_for(lambda: "nothing" in (logs / "process_0.log.1").read_text() + (logs / "process_1.log.1").read_text())


def test_the_last_five_logs_of_a_process_are_kept(tmp_path):
    for number in range(8):
        with process_log(tmp_path, "scheduler") as log:
            log.write(b"%d" % number)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "scheduler.log": "7",
        **{f"scheduler.log.{age}": str(7 - age) for age in range(1, 5)},
    }
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--log-dir"), process_log(tmp_path / "file", "x"):
        pass


# ------------------------------------------------------------------------------------------- without real processes


class Losing:
    """A scripted network whose processes can be lost and found."""

    def __init__(self) -> None:
        self.engine = scripted(seconds=0.005)
        runner = self.engine.runner
        self.there, self.gathered, whole = threading.Event(), 0, runner.run
        self.there.set()

        def run(*arrays, **more):
            self.check()
            return whole(*arrays, **more)

        runner.run, runner.check, runner.recover = run, self.check, self.recover

    def check(self) -> None:
        if not self.there.is_set():
            raise NetworkLost("rank 1 on elsewhere is lost")

    def recover(self, go_on) -> None:
        while go_on() and not self.there.wait(0.01):
            pass
        self.gathered += 1


def test_a_lost_network_ends_requests_refuses_new_ones_and_comes_back():
    network = Losing()
    scheduler = Scheduler(network.engine, batch_invariant=False)
    scheduler.wait_ready()
    from pangu_lab.serve.scheduler import prompt_of_ids

    prompt = prompt_of_ids(network.engine, network.engine.tokenizer.encode("ab"))
    config = SamplingConfig(temperature=0, max_new_tokens=16)
    [alone] = scheduler.submit([prompt], config)
    expected = alone.result().text
    [running_one], [waiting] = scheduler.submit([prompt], config), scheduler.submit([prompt], config)
    network.there.clear()
    for one in (running_one, waiting):
        with pytest.raises(Unavailable, match="rank 1 on elsewhere is lost"):
            one.result()
    wait_for(lambda: not scheduler.ready.is_set(), 5)
    assert scheduler.state == "rank 1 on elsewhere is lost"
    with pytest.raises(Unavailable):
        scheduler.submit([prompt], config)
    assert network.engine.runner.pool.free == network.engine.runner.pool.slots
    network.there.set()
    wait_for(scheduler.ready.is_set, 5)
    assert scheduler.submit([prompt], config)[0].result().text == expected and scheduler.state == "ready"
    network.there.clear()
    wait_for(lambda: not scheduler.ready.is_set(), 5)
    started = time.monotonic()
    scheduler.close()
    assert time.monotonic() - started < 5  # a server can be ended while it waits


@pytest.fixture
def listening():
    """A listener that shakes hands with one caller; its link, or what went wrong, comes in the list."""
    listener, came = Listener(("127.0.0.1", 0)), []

    def welcome() -> None:
        try:
            came.append(authenticated(listener.accept(), b"right"))
        except Gone as error:
            came.append(error)

    thread = threading.Thread(target=welcome)
    thread.start()
    yield listener.address, came, thread
    listener.close()


def test_messages_carry_facts_and_arrays_and_the_end_of_a_link_is_seen(listening):
    address, came, thread = listening
    mine = connected(address, b"right")
    thread.join()
    arrays = [np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((1, 2), np.float32), np.zeros((0, 3), np.int32)]
    mine.send("call", *arrays, rank=1)
    head, got = came[0].receive()
    assert head == {"kind": "call", "rank": 1}
    assert all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(got, arrays, strict=True))
    mine.close()
    with pytest.raises(Gone):
        came[0].receive()
    with pytest.raises(Gone):
        for _ in range(3):
            came[0].send("late")


def test_another_key_is_refused_on_both_sides(listening):
    address, came, thread = listening
    with pytest.raises(InputError, match="has another key"):
        connected(address, b"wrong")
    thread.join()
    assert isinstance(came[0], Gone)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]\n",
        b'{"kind": "x", "arrays": [["int32", [2]]]}\nabc',
        b'{"kind": "x", "arrays": [["object", [1]]]}\nabcdefgh',
        b'{"kind": "x", "arrays": []}\nmore',
        b'{"kind": 3, "arrays": []}\n',
        b'{"kind": "x", "arrays": [["int32", [1e400]]]}\n',
        b'{"arrays": []}\n',
        b'{"kind": "x", "arrays": [["int32", [9223372036854775807, 2]]]}\nabcd',
        b'{"kind": "x", "arrays": [["int32", [-1]]]}\nabcd',
        b"[" * 100_000,
        b"\xff\n",
        b'{"kind": "x", "arrays": [[[], [1]]]}\n',
        b'{"kind": "x", "arrays": 3}\n',
        b'{"kind": "x", "arrays": [["int32", [%s]]]}\n' % (b"9" * 5000),
    ],
)
def test_messages_that_are_none_are_refused_in_one_line(content, listening):
    with pytest.raises(ValueError, match="^it sent something that is no message$"):
        unpacked(content)
    address, came, thread = listening
    mine = connected(address, b"right")
    thread.join()
    mine._connection.send_bytes(content)
    with pytest.raises(Gone, match="no message$"):
        came[0].receive()


class NoKeeper:
    """Stands for the processes of this host, of which there are none."""

    def __init__(self, *values, **named) -> None:
        pass

    def end(self, pids) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def front(monkeypatch):
    """A front that waits for two ranks and has no process of its own."""
    monkeypatch.setattr(clustering, "Keeper", NoKeeper)
    debug = preset("debug").model
    model = SharedModel(
        Path("nothing"),
        ParallelConfig(tensor=2),
        "this",
        debug,
        64,
        None,
        SamplingConfig(),
        "debug",
        "debug",
        ranks=(0, 1),
    )
    cluster = Cluster(model, 1, "127.0.0.1", 0, b"right")
    yield cluster
    cluster.close()


def offer(cluster, **changed):
    link = connected(("127.0.0.1", cluster.port), b"right")
    said = {"kind": "offer", "ranks": [0, 1], "local": True, "host": "here", "pid": 1, "export_id": "this"}
    link.send(**{**said, **changed})
    return link


def test_connections_that_say_nothing_keep_no_rank_out_and_leave_no_thread_behind(front, monkeypatch):
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 1.0)
    before = threading.active_count()
    with contextlib.ExitStack() as held:
        for number in range(200):
            silent = held.enter_context(socket.create_connection(("127.0.0.1", front.port), timeout=30))
            with contextlib.suppress(OSError):
                silent.sendall(b"\0\0\0\x40abc"[: number % 8])
        assert threading.active_count() <= before + 2 * (HANDSHAKES + 1)
        mine = offer(front)
        wait_for(lambda: len(front._members) == 1, 10)
        wait_for(lambda: threading.active_count() <= before + 3, 30)  # of the member, and of ``mine``
        mine.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"ranks": 3},
        {"ranks": ["0"]},
        {"ranks": [[0]]},
        {"ranks": None},
        {"export_id": "another"},
        {"export_id": None},
        {"kind": "ready"},
    ],
)
def test_an_offer_that_is_none_is_refused_in_one_line_and_the_next_is_taken(front, changed, caplog):
    refused = offer(front, **changed)
    with pytest.raises(Gone):
        refused.receive()
    offer(front)
    wait_for(lambda: len(front._members) == 1, 10)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("a process that offered itself as a rank is refused: ") and "\n" not in line


def test_both_sides_show_by_sha256_that_they_know_the_key(front):
    for digest, good in (("sha256", True), ("md5", False)):
        with Client(("127.0.0.1", front.port)) as connection:
            theirs, mine = connection.recv_bytes(), b"m" * 32
            connection.send_bytes(mine + hmac.digest(b"right", b"rank" + mine + theirs, digest))
            answer = connection.recv_bytes()
        assert answer == (hmac.digest(b"right", b"front" + theirs + mine, "sha256") if good else b"")


def test_what_one_side_said_does_not_serve_the_other(front):
    """Nobody who lacks the key gets in by repeating what a front says to it."""
    with Client(("127.0.0.1", front.port)) as one, Client(("127.0.0.1", front.port)) as other:
        other.send_bytes(one.recv_bytes() + other.recv_bytes())
        assert other.recv_bytes() == b""


def test_numbers_and_folders_that_do_not_fit_are_said_in_one_line(shared, debug_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(KEY, raising=False)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "rank_1").symlink_to(shared / "rank_1")
    for arguments, message in (
        (["--bundle", str(debug_bundle), "--nproc", "2"], "exported for one process"),
        (["--bundle", str(shared), "--nproc", "1"], "put one into the environment variable PANGU_LAB_CLUSTER_KEY"),
        (["--bundle", str(shared), "--nproc", "3"], "--nproc 3 must be from 1 to 2"),
        (["--bundle", str(shared), "--agent"], "set PANGU_LAB_CLUSTER_KEY to the server's"),
    ):
        assert main(["serve", "--port", "0", *arguments]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv(KEY, "secret")
    assert main(["serve", "--port", "0", "--nproc", "1", "--bundle", str(tmp_path / "second")]) == 2
    assert "holds the ranks 1; 1 on this host, rank 0 among them, need a folder each" in capsys.readouterr().err
    assert main(["serve", "--agent", "--nproc", "2", "--bundle", str(tmp_path / "second")]) == 2
    with pytest.raises(InputError, match="exported for 2 processes, which share the model"):
        load_bundle(shared)


def test_each_rank_holds_its_part_and_its_own_checksums(shared):
    told = [json.loads((shared / f"rank_{rank}" / "bundle.json").read_text()) for rank in (0, 1)]
    assert [one["parallel"]["rank"] for one in told] == [0, 1]
    assert told[0]["parallel"]["export_id"] == told[1]["parallel"]["export_id"]
    sizes = [sum(path.stat().st_size for path in (shared / f"rank_{rank}" / "weights").iterdir()) for rank in (0, 1)]
    assert sizes[0] == sizes[1] < 0.7 * 4 * told[0]["model"]["num_parameters"]
