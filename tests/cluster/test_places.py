"""Generation and evaluation over several processes: where they run, and the texts and scores of one process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from pangu_lab import PanguLM
from pangu_lab.cli import main
from pangu_lab.cluster import SharedModel, find_places
from pangu_lab.errors import InputError
from pangu_lab.generate.runner import NetworkLost
from pangu_lab.launch.hosts import free_port
from tests.cluster.test_cluster import table_of, wait_for
from tests.evaluate.published import write_c3
from tests.serve.running import ROOT

PROMPTS = ("春天来了，", "老师说：")
PAIRS = (("春天", "来了"), ("老师", "说"))
KEY = "PANGU_LAB_CLUSTER_KEY"


def test_places_are_this_machine_the_hosts_of_a_file_or_the_servers_of_a_rank_table(tmp_path):
    here = find_places(2)
    assert here.world == 2 and here.backend == "local" and here.address == "127.0.0.1" and here.port == 0
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=2\n127.0.0.2\n")
    assert find_places(1, hosts=hosts).world == 3 and find_places(1, hosts=hosts).port == 8119
    assert find_places(2, "mpirun", hosts).port == 0
    table = find_places(rank_table=table_of(tmp_path / "hccl.json", "127.0.0.1", "127.0.0.2"))
    assert (table.backend, table.world, table.devices, table.port) == ("ranktable", 2, (0,), 8119)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"nproc": 0}, "--nproc"),
        ({"backend": "mpi"}, "mpirun"),
        ({"backend": "ranktable"}, "--rank-table"),
        ({"rank_table": "x", "nproc": 2}, "--nproc"),
        ({"hosts": "/nowhere"}, "hosts file"),
        ({"nproc": 10**11}, "--nproc must be from 1 to"),
        ({"nproc": 2, "master_port": 99999}, "--master-port"),
        ({"nproc": 2, "master_port": -1}, "--master-port"),
    ],
)
def test_places_that_make_no_sense_are_refused_in_one_line(given, said):
    with pytest.raises(InputError, match=said):
        find_places(**given)


def test_a_hosts_file_with_more_processes_than_any_model_can_be_shared_by_is_refused(tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 slots=999999\n")
    with pytest.raises(InputError, match="999999 processes"):
        find_places(hosts=tmp_path / "hosts")


def test_a_dry_run_prints_what_runs_on_each_host(debug_run, tmp_path, capsys):
    table = table_of(tmp_path / "hccl.json", "127.0.0.1", "127.0.0.2")
    base = ["generate", "--from", str(debug_run), "--prompt", "x", "--dry-run"]
    assert main([*base, "--rank-table", str(table)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[1].startswith("env DEVICE_ID=0 ") and "pangu_lab.cluster.rank" in said[1] and "127.0.0.1:8119" in said[1]
    )
    assert "serve --agent" in said[3] and said[3].endswith(f"--rank-table {table} --node-rank 1")
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    assert main([*base, "--hosts", str(tmp_path / "hosts"), "--backend", "mpirun", "--env", "A=1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"--hostfile {tmp_path / 'hosts'}" in said[1] and f"-x {KEY}" in said[1] and "-x A" in said[1]
    assert main(["generate", "--from", str(debug_run), "--prompt", "x", "--dry-run"]) == 2


@pytest.mark.parametrize("options, said", [(["--nproc", "3"], "cannot split"), (["--nproc", "2", "--int8"], "dtype")])
def test_what_several_processes_cannot_do_is_refused_in_one_line(debug_run, options, said, capsys):
    assert main(["generate", "--from", str(debug_run), "--prompt", "x", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("processes", [2.5, "2", None])
def test_a_number_of_processes_that_is_none_is_refused(debug_run, processes):
    with pytest.raises(InputError, match="processes=.* must be a whole number"):
        PanguLM.load(debug_run, processes=processes)


def test_agents_need_a_key(debug_run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(KEY, raising=False)
    table = table_of(tmp_path / "hccl.json", "127.0.0.1", "127.0.0.2")
    assert main(["generate", "--from", str(debug_run), "--prompt", "x", "--rank-table", str(table)]) == 2
    assert KEY in capsys.readouterr().err


def test_two_processes_write_and_score_as_one_does(debug_run, tmp_path, capsys):
    alone = PanguLM.load(debug_run)
    wanted = [completion.text for completion in alone.generate(PROMPTS, max_new_tokens=12, temperature=0.8, seed=1)]
    assert all(wanted)  # the likeliest text of so little training is empty
    scores = [alone.score(*pair).logprob for pair in PAIRS]
    both = PanguLM.load(debug_run, processes=2, log_dir=tmp_path / "logs")
    try:
        assert [
            completion.text for completion in both.generate(PROMPTS, max_new_tokens=12, temperature=0.8, seed=1)
        ] == wanted
        assert [both.score(*pair).logprob for pair in PAIRS] == pytest.approx(scores, abs=1e-4)
        with pytest.raises(InputError, match="without processes="):
            both.attention("春天")
    finally:
        both.close()
        both.close()
    with pytest.raises(NetworkLost, match="load it again"):
        both.logits([[1, 2]])
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= {"process_0.log", "process_1.log", "scheduler.log"}


def test_a_task_is_evaluated_over_two_processes_to_the_result_of_one(debug_run, tmp_path, capsys):
    write_c3(tmp_path / "c3")
    base = ["evaluate", "c3", "--json", "--from", str(debug_run), "--data", str(tmp_path / "c3"), "--limit", "6"]
    results = []
    for more in ([], ["--nproc", "2"]):
        assert main([*base, "--out", str(tmp_path / f"outcomes{len(more)}.json"), *more]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    one, two = ({key: value for key, value in result.items() if key != "seconds"} for result in results)
    assert one == two and one["n"] == 6
    assert main(["evaluate", "perplexity", "--from", str(debug_run), "--data", "x", "--nproc", "2"]) == 2


@contextlib.contextmanager
def command(*options: str):
    """A command as a terminal starts it, in a process group of its own, over two processes."""
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pangu_lab.cli",
            "generate",
            "--prompt",
            "春天",
            "--max-new-tokens",
            "400",
            "--nproc",
            "2",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # its processes see that it is gone
        started.wait()


def said_until(process, words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it ended without '{words}'")


@pytest.mark.parametrize(
    "when, done",
    [
        ("join and load", lambda group, ranks: ranks[0].kill()),
        ("every process", lambda group, ranks: ranks[1].kill()),
        ("every process", lambda group, ranks: os.killpg(group, signal.SIGINT)),
        ("every process", lambda group, ranks: os.kill(group, signal.SIGTERM)),
    ],
)
def test_a_lost_process_ctrl_c_or_kill_ends_the_command_and_all_processes_in_one_line(debug_run, when, done):
    with command("--from", str(debug_run)) as process:
        said_until(process, when)
        children = psutil.Process(process.pid).children()
        done(process.pid, [child for child in children if "pangu_lab.cluster.rank" in child.cmdline()])
        rest = process.stderr.read().strip().splitlines()
        assert process.wait(30) in (2, 130)
        assert sum(line.startswith("pangu-lab generate: ") for line in rest) == 1
        assert not any("Traceback" in line for line in rest)
        assert not psutil.wait_procs(children, timeout=20)[1]


def test_a_log_that_cannot_be_written_leaves_no_process_and_no_port(debug_run, tmp_path, monkeypatch):
    (tmp_path / "process_1.log" / "folder").mkdir(parents=True)
    for age in range(1, 5):
        (tmp_path / f"process_1.log.{age}" / "folder").mkdir(parents=True)
    started, Popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **how: started.append(Popen(*words, **how)) or started[-1])
    with pytest.raises(InputError, match="cannot write process_1.log"):
        find_places(2, master_port=(port := free_port())).open(debug_run, log_dir=tmp_path)
    assert len(started) == 1 and started[0].poll() is not None
    wait_for(lambda: all(thread.name != "ranks" for thread in threading.enumerate()), 5)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed: apt-get install openmpi-bin")
def test_mpirun_that_cannot_start_is_not_tried_for_ever(debug_run, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\nno-such-host.invalid slots=1\n")
    places = find_places(backend="mpirun", hosts=tmp_path / "hosts", master_addr="127.0.0.1")
    with pytest.raises(InputError, match="a process ended before all had loaded it; see"):
        places.open(debug_run, log_dir=tmp_path / "logs")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed: apt-get install openmpi-bin")
def test_ctrl_c_while_mpirun_s_processes_load_leaves_none_of_them(debug_run):
    with command("--from", str(debug_run), "--backend", "mpirun") as process:
        said_until(process, "join and load")
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read().strip() == "pangu-lab generate: interrupted" and process.wait(30) == 130
        assert len(children) > 2 and not psutil.wait_procs(children, timeout=20)[1]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed: apt-get install openmpi-bin")
def test_mpirun_starts_the_processes_and_they_write_the_text_of_one(debug_run, capsys):
    base = [
        "generate",
        "--json",
        "--from",
        str(debug_run),
        "--prompt",
        PROMPTS[0],
        "--max-new-tokens",
        "12",
        "--temperature",
        "0.8",
        "--seed",
        "1",
    ]
    texts = []
    for more in ([], ["--nproc", "2", "--backend", "mpirun"]):
        assert main([*base, *more]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[-1])[0]["text"])
    assert texts[0] == texts[1]


def test_hosts_that_export_their_own_ranks_make_parts_of_one_export_and_a_mixture_is_refused(
    debug_run, tmp_path, capsys
):
    base = ["export", "--from", str(debug_run), "--tensor-parallel", "2", "--no-eval-loss", "--decode-batches", "0"]
    for number, host in enumerate(("one", "two")):
        assert main([*base, "--rank-start", str(number), "--ranks", "1", "--out", str(tmp_path / host)]) == 0
        assert [path.name for path in (tmp_path / host).iterdir()] == [f"rank_{number}"]
    one, two = (SharedModel.open(tmp_path / host) for host in ("one", "two"))
    assert one.identity == two.identity and (one.ranks, two.ranks) == ((0,), (1,))
    (tmp_path / "two" / "rank_1").rename(tmp_path / "one" / "rank_1")
    assert SharedModel.open(tmp_path / "one").ranks == (0, 1)
    assert main([*base, "--cache-slots", "128", "--rank-start", "1", "--out", str(tmp_path / "other")]) == 0
    shutil.rmtree(tmp_path / "one" / "rank_1")
    (tmp_path / "other" / "rank_1").rename(tmp_path / "one" / "rank_1")
    with pytest.raises(InputError, match="copy the ranks of one export"):
        SharedModel.open(tmp_path / "one")
    capsys.readouterr()
    assert main([*base, "--rank-start", "2", "--out", str(tmp_path / "none")]) == 2
    assert "not among the 2" in capsys.readouterr().err
