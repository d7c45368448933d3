"""Every file that comes in, damaged in every way: each reader answers with its value or with one line, never otherwise.

The files are real ones, of version 0.1 where it wrote them. A mutation replaces, removes or doubles a value anywhere in
a JSON file, or flips, cuts and repeats bytes of any file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_lab.checkpoint import Checkpoint
from pangu_lab.checkpoint.convert import CKPT_FILE, convert_checkpoint
from pangu_lab.checkpoint.releases import open_source
from pangu_lab.data import open_dataset, prepare
from pangu_lab.errors import InputError
from pangu_lab.export.loading import load_bundle_tokenizer, model_config, rank_need, read_bundle, sampling_of
from pangu_lab.generate.native import inference_shapes
from pangu_lab.identity import own_identity
from pangu_lab.launch.hosts import read_hosts
from pangu_lab.launch.rank_table import create_rank_table, read_hccn_conf, read_rank_table, write_rank_table
from pangu_lab.locking import read_record
from pangu_lab.presets import load_yaml
from pangu_lab.reading import read_json
from pangu_lab.runs import list_runs, read_curves
from pangu_lab.runs.curves import text_curve
from pangu_lab.runs.heartbeat import Heartbeat, read_beat
from pangu_lab.runs.memory import memory_lines
from pangu_lab.runs.pipeline_log import log_file, read_passes
from pangu_lab.runs.status import read_status, refuse_living
from pangu_lab.serve.pid_file import read_pid
from pangu_lab.tokenizer import load_tokenizer
from pangu_lab.tokenizer.gpt2 import byte_stand_ins
from pangu_lab.train.graph_cache import _Record

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "v0.1" / "dense"
EXAMPLES, MANY = 25, 4000  # damages of each kind of file: in `make test`, and in `make test-all`
HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**18,
    10**300,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../x",
    "a\nb",
    "\0",
    "x" * 5000,
    [],
    {},
    [[]],
    [10**18, 10**18],
    {"": 0},
    [0] * 1000,
]
DEEP = "[" * 5000 + "]" * 5000


# ------------------------------------------------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with one good file of every kind."""
    root = tmp_path_factory.mktemp("files")
    shutil.copytree(FIXTURE / "run", root / "runs" / "a")
    shutil.copytree(FIXTURE / "bundle", root / "bundle", ignore=shutil.ignore_patterns("*.mindir", "weights"))
    run = root / "runs" / "a"
    Heartbeat(run, 0).stop()
    (run / "logs").mkdir()
    log_file(run, 0).write_text(
        json.dumps({"step": 2, "stage": 0, "kind": "forward", "micro_batch": 0, "start": 1.0, "end": 2.0}) + "\n"
    )
    write_rank_table(create_rank_table("10.0.0.1", [0, 1], ["10.0.1.1", "10.0.1.2"]), root / "table.json")
    (root / "hccn.conf").write_text("address_0=10.0.0.1\naddress_1=10.0.0.2\n")
    (root / "hosts").write_text("node-a slots=8\nnode-b slots=8\n")
    (root / "serve.pid").write_text("12345\n")
    (root / "lock").write_text(
        json.dumps({"process": own_identity().to_dict(), "token": "t", "beats": 1, "since": 1.0, "firm": True})
    )
    (root / "record.json").write_text(json.dumps({"graphs": [{"name": "training", "sha256": "0" * 64}]}))
    (root / "release").mkdir()
    (root / "release" / "config.json").write_text(json.dumps({"num_heads": 2, "activation_function": "gelu"}))
    _write_gpt_shard(root / "release" / "model.safetensors")
    convert_checkpoint(run, root / "ckpt", to="mindspore-ckpt")
    (root / "gpt2").mkdir()
    pieces = [*byte_stand_ins(), "<|endoftext|>", "ab"]
    (root / "gpt2" / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (root / "gpt2" / "merges.txt").write_text("#version: 0.2\na b\n")
    (root / "text.txt").write_text("\n".join(f"春天来了，{n} 只燕子" for n in range(40)), encoding="utf-8")
    prepare(root / "text.txt", root / "data", load_tokenizer(run / "tokenizer"), record_length=33, workers=1)
    return root


def _write_gpt_shard(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"transformer.wte.weight": np.zeros((8, 4), np.float32)}, path)


def open_checkpoint(path: Path) -> None:
    checkpoint = Checkpoint(path.parent, verify=False)
    assert checkpoint.step >= 0 and checkpoint.config.model.num_layers >= 2
    for name in checkpoint.tensors:
        checkpoint.read(name)


def open_bundle(path: Path) -> None:
    description = read_bundle(path.parent)
    sampling_of(description)
    rank_need(description)
    inference_shapes(model_config(description), description["model"]["places"])
    load_bundle_tokenizer(path.parent, description)


def read_run(path: Path) -> None:
    run = path.parent
    for read in (read_status, refuse_living, memory_lines, text_curve):
        try:
            read(run)
        except InputError as error:
            assert "\n" not in str(error)
    read_curves(run)
    [found] = list_runs(run.parent)  # whatever its files hold, a run is listed
    assert found.name == "a" and isinstance(found.reason, str)


def use_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path if path.suffix == ".model" else path.parent)
    tokenizer.decode(tokenizer.encode("春天 来了"))


def read_ckpt(path: Path) -> None:
    source = open_source(path)
    for name in source.shapes:
        source.read(name)


CHECKPOINT = "runs/a/checkpoints/step-00000006"
READERS: dict[str, Callable[[Path], Any]] = {
    "data/dataset.json": lambda path: open_dataset(path.parent).records(np.arange(2)),
    "runs/a/status.json": read_run,
    "runs/a/events.jsonl": read_run,
    "runs/a/heartbeat/rank_0": lambda path: read_beat(path.parents[1], 0),
    "runs/a/logs/pipeline_rank_0.jsonl": lambda path: read_passes(path.parents[1]),
    "runs/a/config.yaml": load_yaml,
    "runs/a/tokenizer/tokenizer.json": use_tokenizer,
    "runs/a/tokenizer/vocab.model": use_tokenizer,
    f"{CHECKPOINT}/manifest.json": open_checkpoint,
    f"{CHECKPOINT}/state.json": open_checkpoint,
    f"{CHECKPOINT}/config.yaml": open_checkpoint,
    f"{CHECKPOINT}/shard-00000.safetensors": open_checkpoint,
    "bundle/bundle.json": open_bundle,
    "release/config.json": lambda path: open_source(path.parent),
    "release/model.safetensors": lambda path: open_source(path.parent),
    "gpt2/vocab.json": use_tokenizer,
    "gpt2/merges.txt": use_tokenizer,
    f"ckpt/{CKPT_FILE}": read_ckpt,
    "table.json": read_rank_table,
    "hccn.conf": read_hccn_conf,
    "hosts": read_hosts,
    "lock": lambda path: str(read_record(path)),
    "serve.pid": read_pid,
    "record.json": lambda path: read_json(path, "the record", _Record),
}


# ---------------------------------------------------------------------------------------------------- the mutations


def places(value: Any, here: tuple = ()) -> list[tuple]:
    """The path of every value inside ``value``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inner for place in places(item, (*here, key)))]


def changed(value: Any, place: tuple, change: Callable[[Any], Any]) -> Any:
    if not place:
        return change(value)
    copy = value.copy()
    copy[place[0]] = changed(value[place[0]], place[1:], change)
    return copy


@st.composite
def damaged_json(draw, text: str) -> bytes:
    value = json.loads(text)
    place = draw(st.sampled_from(places(value)))
    kind = draw(st.sampled_from(["replace", "replace", "remove", "double", "deep", "digits", "surrogate"]))
    if kind == "remove" and place:
        value = changed(
            value,
            place[:-1],
            lambda parent: type(parent)(
                {key: item for key, item in parent.items() if key != place[-1]}
                if isinstance(parent, dict)
                else [item for number, item in enumerate(parent) if number != place[-1]]
            ),
        )
    elif kind == "replace":
        hostile = draw(st.sampled_from(HOSTILE))
        value = changed(value, place, lambda _: hostile)
    else:
        value = changed(value, place, lambda old: f"@{kind}@")
        raw = {"deep": DEEP, "digits": "9" * 5000, "surrogate": '"\\ud800"', "double": '{"a": 1, "a": 2}'}
        return json.dumps(value).replace(f'"@{kind}@"', raw.get(kind, "0")).encode()
    return json.dumps(value).encode()


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    changed_content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed_content) - 1)))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "repeat", "insert"]))
        if kind == "flip" and changed_content:
            changed_content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed_content[place : place + draw(st.integers(1, 1000))]
        elif kind == "repeat":
            changed_content[place:place] = changed_content[place : place + 100]
        else:
            changed_content[place:place] = draw(
                st.sampled_from([b"\0", b"\xff", b"[" * 5000, b"9" * 5000, b"&a [*a]", b"\n", b"- "])
            )
    return bytes(changed_content)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_damaged_file_gives_its_value_or_one_line(name, examples, files):
    path = files / name
    good = path.read_bytes()
    READERS[name](path)
    damages = damaged_bytes(good)
    if name.endswith((".json", "rank_0", "lock")):
        damages |= damaged_json(good.decode())
    if name.endswith(".jsonl"):
        damages |= damaged_json(good.decode().splitlines()[-1]).map(lambda line: good + line + b"\n")

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damages)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            READERS[name](path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000

    try:
        check()
    finally:
        path.write_bytes(good)


# ---------------------------------------------------------------------------------------------- one run of several


def test_one_damaged_status_does_not_hide_the_other_runs(files, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(files / "runs" / "a", tmp_path / name)
    (tmp_path / "b" / "status.json").write_text('{"state": "training", "step": "x"}')
    (tmp_path / "c" / "status.json").write_text("{")
    found = {run.name: run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {"a": "finished", "b": "damaged", "c": "damaged"}
    assert found["a"].step == 6 and found["b"].reason.endswith(
        "status.json: the run's status: step is 'x'; it should be a valid integer: remove it if the run has ended"
    )


def test_damaged_events_are_skipped_and_counted(files, tmp_path):
    run = Path(shutil.copytree(files / "runs" / "a", tmp_path / "a"))
    with open(run / "events.jsonl", "a") as events:
        events.write('{"v": 1, "time": 1.0, "kind": "step", "step": "x", "loss": 1.0}\n[]\n' + DEEP + "\n")
        events.write('{"v": 1, "time": 1.0, "kind": "step", "step": 7, "loss": 1.0}\n')
    curves = read_curves(run)
    assert curves.damaged == 3 and curves.steps[-1]["step"] == 7
    assert list_runs(tmp_path)[0].damaged_events == 3
