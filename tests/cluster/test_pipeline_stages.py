"""A model over processes that form pipeline stages: the texts and scores of one process, from weights and from a bundle."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest

from pangu_lab import PanguLM
from pangu_lab.cli import main
from pangu_lab.cluster import SharedModel, find_places
from pangu_lab.errors import InputError
from pangu_lab.export import export_run, load_bundle
from pangu_lab.generate.runner import NetworkLost
from tests.cluster.test_places import PAIRS, PROMPTS
from tests.evaluate.published import write_c3
from tests.serve.running import running

DRAWN = {"max_new_tokens": 12, "temperature": 0.8, "seed": 1}  # the likeliest text of so little training is empty


def steps(model: PanguLM) -> np.ndarray:
    """Logits of what follows a prompt of four tokens and each of four more, fed one by one."""
    ids = list(range(20, 28))
    return np.array([model.engine.prefill(ids[:4]), *(model.engine.step(index) for index in ids[4:])])


@pytest.fixture(scope="module")
def alone(debug_run):
    """One process: the texts of the prompts, the scores of the pairs, and logits step by step."""
    model = PanguLM.load(debug_run)
    texts = [completion.text for completion in model.generate(PROMPTS, **DRAWN)]
    assert all(texts)
    return texts, [model.score(*pair).logprob for pair in PAIRS], steps(model)


@pytest.fixture(scope="module")
def staged(debug_run, tmp_path_factory):
    """A bundle for two stages of two processes each."""
    return export_run(
        debug_run,
        tmp_path_factory.mktemp("exports") / "staged",
        slots=256,
        tensor_parallel=2,
        pipeline=2,
        decode_batches=(1,),
    )


def test_two_by_two_processes_write_and_score_as_one_does(debug_run, alone):
    texts, scores, logits = alone
    model = PanguLM.load(debug_run, processes=4, pipeline=2)
    try:
        assert [completion.text for completion in model.generate(PROMPTS, **DRAWN)] == texts
        assert [model.score(*pair).logprob for pair in PAIRS] == pytest.approx(scores, abs=1e-4)
        np.testing.assert_allclose(steps(model), logits, rtol=0, atol=1e-4)
    finally:
        model.close()


def test_a_lost_stage_is_named_and_another_takes_its_place(debug_run, alone):
    model = PanguLM.load(debug_run, processes=2, pipeline=2)
    try:
        second = next(member for member in model.runner.cluster._gathered if member.rank == 1)
        psutil.Process(second.pid).kill()
        with pytest.raises(NetworkLost, match="rank 1 on .* is lost"):
            model.generate(PROMPTS, max_new_tokens=50, temperature=0, min_new_tokens=50)
        model.runner.recover(lambda: True)
        assert [completion.text for completion in model.generate(PROMPTS, **DRAWN)] == alone[0]
    finally:
        model.close()


def test_stages_keep_half_precision_and_the_cache_that_is_asked_for(debug_run):
    ids = np.arange(12)[None] + 20
    wanted = PanguLM.load(debug_run).logits(ids)
    model = PanguLM.load(debug_run, processes=2, pipeline=2, dtype="float16", slots=96)
    try:
        difference = np.abs(model.logits(ids) - wanted).max() / np.abs(wanted).max()
        assert 0 < difference < 0.01 and model.runner.pool.slots == 96
    finally:
        model.close()


def test_a_task_is_evaluated_over_two_stages_to_the_result_of_one_process(debug_run, tmp_path, capsys):
    write_c3(tmp_path / "c3")
    results = []
    for more in ([], ["--nproc", "2", "--pipeline", "2"]):
        assert (
            main(
                [
                    "evaluate",
                    "c3",
                    "--json",
                    "--from",
                    str(debug_run),
                    "--data",
                    str(tmp_path / "c3"),
                    "--limit",
                    "6",
                    "--out",
                    str(tmp_path / f"outcomes{len(more)}.json"),
                    *more,
                ]
            )
            == 0
        )
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    one, two = ({key: value for key, value in result.items() if key != "seconds"} for result in results)
    assert one == two and one["n"] == 6


def test_a_bundle_of_two_by_two_parts_is_served_with_the_text_of_one_process(staged, alone):
    with (
        running(staged, "--nproc", "4", "--no-page") as server,
        httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http,
    ):

        def written(prompt: str) -> str:
            reply = http.post(
                "/v1/completions", json={"prompt": prompt, "max_tokens": 12, "temperature": 0.8, "seed": 1}
            )
            return reply.json()["choices"][0]["text"]

        with ThreadPoolExecutor(6) as clients:  # the groups of both stages are under way at the same time
            assert list(clients.map(written, PROMPTS * 3)) == alone[0] * 3


def test_each_rank_has_a_part_of_its_stage(staged):
    told = [json.loads((staged / f"rank_{rank}" / "bundle.json").read_text()) for rank in range(4)]
    assert [(one["parallel"]["rank"], one["parallel"]["group"]) for one in told] == [
        (0, "pangu-tensor-0"),
        (1, "pangu-tensor-0"),
        (2, "pangu-tensor-1"),
        (3, "pangu-tensor-1"),
    ]
    first, last = told[0]["graphs"]["prefill"], told[3]["graphs"]["prefill"]
    assert [name for name, *_ in first["inputs"]] == ["ids", "positions", "write", "read"]
    assert [name for name, *_ in last["inputs"]] == ["hidden", "positions", "write", "read", "rows"]
    assert (first["outputs"][0][0], last["outputs"][0][0]) == ("hidden", "logits")
    assert all(set(one["graphs"]) == {"prefill", "decode"} for one in told)
    sizes = [sum(path.stat().st_size for path in (staged / f"rank_{rank}" / "weights").iterdir()) for rank in range(4)]
    assert max(sizes) < 0.5 * 4 * told[0]["model"]["num_parameters"]


def test_hosts_export_their_own_ranks_and_a_mixture_of_layouts_is_refused(debug_run, tmp_path):
    base = ["export", "--from", str(debug_run), "--decode-batches", "0"]
    assert main([*base, "--pipeline", "2", "--ranks", "1", "--out", str(tmp_path / "one")]) == 0
    assert main([*base, "--pipeline", "2", "--rank-start", "1", "--out", str(tmp_path / "two")]) == 0
    assert (
        main([*base, "--tensor-parallel", "2", "--rank-start", "1", "--no-eval-loss", "--out", str(tmp_path / "other")])
        == 0
    )
    assert [(SharedModel.open(tmp_path / host).ranks) for host in ("one", "two")] == [(0,), (1,)]
    shutil.copytree(tmp_path / "other" / "rank_1", tmp_path / "one" / "rank_1")
    with pytest.raises(InputError, match="copy the ranks of one export"):
        SharedModel.open(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "rank_1")
    (tmp_path / "two" / "rank_1").rename(tmp_path / "one" / "rank_1")
    assert SharedModel.open(tmp_path / "one").layout.pipeline == 2


@pytest.mark.parametrize(
    "options, said",
    [
        (["--nproc", "4", "--pipeline", "3"], "--pipeline 3: 4 processes cannot form so many stages"),
        (["--nproc", "4", "--pipeline", "0"], "--pipeline 0"),
        (["--pipeline", "2"], "give --nproc N"),
        (["--nproc", "4", "--pipeline", "4"], "4 pipeline stages are more than model.num_layers=2"),
    ],
)
def test_stages_that_cannot_be_formed_are_refused_in_one_line(debug_run, options, said, capsys):
    assert main(["generate", "--from", str(debug_run), "--prompt", "x", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1


def test_a_bundle_is_opened_for_the_stages_that_it_was_exported_for(staged, debug_run, capsys):
    assert find_places(4).lines(staged) == find_places(4, pipeline=2).lines(staged)
    for pipeline, said in (
        (4, "exported for 4 processes .2 pipeline stages.; export it with --tensor-parallel 1 --pipeline 4"),
        (1, "export it with --tensor-parallel 4 first"),
    ):
        with pytest.raises(InputError, match=said):
            SharedModel.open(staged, 4, pipeline=pipeline)
    with pytest.raises(InputError, match="exported for 4 processes"):
        load_bundle(staged)
    for more in ({"slots": 512}, {"dtype": "float16"}):
        with pytest.raises(InputError, match="leave out"):
            PanguLM.load(staged, processes=4, **more)
    with pytest.raises(InputError, match="dtype bfloat16: .*over several processes, there are float32 and float16"):
        PanguLM.load(debug_run, processes=2, dtype="bfloat16")
    with pytest.raises(InputError, match="pipeline= goes with a number of processes"):
        PanguLM.load(debug_run, processes=find_places(2), pipeline=2)
    assert main(["serve", "--port", "0", "--bundle", str(staged), "--nproc", "4", "--pipeline", "4"]) == 2
    assert "exported for 4 processes" in capsys.readouterr().err


def test_a_dry_run_shows_the_stages_in_every_command(debug_run, tmp_path, capsys):
    (tmp_path / "hosts").write_text("127.0.0.1 slots=2\n127.0.0.2 slots=2\n")
    base = ["generate", "--from", str(debug_run), "--prompt", "x", "--dry-run", "--pipeline", "2"]
    assert main([*base, "--nproc", "4"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("env ")]
    assert len(said) == 4 and all("--world 4 --pipeline 2" in line for line in said)
    assert main([*base, "--hosts", str(tmp_path / "hosts"), "--backend", "mpirun"]) == 0
    assert "--world 4 --pipeline 2" in capsys.readouterr().out
