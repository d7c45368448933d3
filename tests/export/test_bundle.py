"""Bundles: the same tokens as the Python engine, without model code, whole and unchanged or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.export import export_bundle, load_bundle
from pangu_lab.export.description import with_checksum
from pangu_lab.generate import engine_from_weights, generate, generate_many, stream
from pangu_lab.tokenizer import load_tokenizer, train_vocabulary
from tests.generate.fakes import random_weights, small_config

PROMPTS = ("春天来了", "", "问：你好。\n答：")
GREEDY = SamplingConfig(temperature=0, max_new_tokens=16, min_new_tokens=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A real vocabulary, trained on the shipped sample."""
    from pangu_lab.data import sample_files

    folder = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    train_vocabulary(sample_files("train"), folder, 1500)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def engine(tokenizer):
    config = small_config(tokenizer.vocab_size)
    return engine_from_weights(random_weights(config), config, tokenizer, slots=64)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A bundle, written once and never changed by a test."""
    config = small_config(tokenizer.vocab_size)
    out = tmp_path_factory.mktemp("exports") / "small"
    told = []
    export_bundle(
        random_weights(config),
        config,
        tokenizer,
        out,
        SamplingConfig(temperature=0.7, stop=("。",)),
        slots=64,
        progress=lambda *news: told.append(news),
    )
    assert told[-1][0] == told[-1][1] and "compiling prefill" in [text for _, _, text in told]
    return out


@pytest.fixture(scope="module")
def bundle(folder):
    return load_bundle(folder)


@pytest.fixture
def copied(folder, tmp_path):
    """A bundle to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


# ---------------------------------------------------------------------------------------------------- same results


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_bundle_writes_the_tokens_of_the_python_engine(engine, bundle, prompt):
    python, exported = generate(engine, prompt, GREEDY), generate(bundle, prompt, GREEDY)
    assert python.ids == exported.ids and len(exported.ids) == 16
    drawn = SamplingConfig(max_new_tokens=16, seed=4, temperature=0.8, top_p=0.9)
    assert generate(engine, prompt, drawn).ids == generate(bundle, prompt, drawn).ids


def test_prefill_decode_and_batches_share_one_cache(bundle):
    together = [done.ids for done in generate_many(bundle, PROMPTS, GREEDY)]
    assert together == [generate(bundle, prompt, GREEDY).ids for prompt in PROMPTS]
    running = stream(bundle, PROMPTS[0], GREEDY)
    assert "".join(running) == running.completion.text and running.completion.ids == together[0]


def test_prompts_of_any_length_run_without_compiling_again(bundle, monkeypatch):
    monkeypatch.setattr(bundle.runner, "_native", None)  # the graphs alone, as where there are no kernels
    for length in (3, 4, 9, 17, 31):
        bundle.prefill([5] * length)
        bundle.step(5)
    bundle.reset()
    for graph in (bundle.runner._graph, bundle.runner._fixed[1, 1]):
        assert len(graph.compile_cache) == 1
    assert bundle.runner._read_sizes == [32]


def test_a_bundle_without_the_one_token_graph_writes_the_same(tokenizer, engine, tmp_path):
    config = small_config(tokenizer.vocab_size)
    export_bundle(random_weights(config), config, tokenizer, tmp_path / "out", decode_batches=())
    bundle = load_bundle(tmp_path / "out")
    assert not (tmp_path / "out" / "decode.mindir").exists()
    assert generate(bundle, PROMPTS[0], GREEDY).ids == generate(engine, PROMPTS[0], GREEDY).ids
    assert bundle.runner.pool.slots == 1024


def test_graphs_of_fixed_shapes_are_used_and_give_the_same(tokenizer, engine, tmp_path):
    config = small_config(tokenizer.vocab_size)
    out = export_bundle(
        random_weights(config),
        config,
        tokenizer,
        tmp_path / "out",
        slots=128,
        prefill_lengths=(8, 16),
        decode_batches=(1, 4),
        eval_loss=False,
    )
    bundle = load_bundle(out)
    bundle.runner._native = None  # the graphs alone, as where there are no kernels
    assert set(bundle.description["graphs"]) == {"prefill", "prefill_8", "prefill_16", "decode", "decode_4"}
    used = []
    for shape, graph in bundle.runner._fixed.items():
        bundle.runner._fixed[shape] = lambda *inputs, shape=shape, graph=graph: used.append(shape) or graph(*inputs)
    prompts = (*PROMPTS, "春天来了，山上的花都开了，孩子们跑出来。")
    together = [done.ids for done in generate_many(bundle, prompts, GREEDY)]
    assert together == [generate(engine, prompt, GREEDY).ids for prompt in prompts]
    assert set(used) == {(1, 1), (1, 8), (1, 16), (4, 1)}  # the empty prompt is one token
    ids = tokenizer.encode(prompts[-1])
    np.testing.assert_allclose(bundle.prefill(ids), engine.logits(ids)[-1], atol=1e-4)
    bundle.reset()
    with pytest.raises(InputError, match="holds no eval-loss graph"):
        bundle.eval_loss(*np.zeros((4, 1, 2)))


@pytest.mark.parametrize(
    "variants, message",
    [
        ({"prefill_lengths": (1,)}, "a prefill length of 1 must be from 2 to 32"),
        ({"decode_batches": (17,)}, "a decode batch of 17 must be from 1 to 16"),
        ({"tensor_parallel": 3}, "3 tensor-parallel ranks cannot split model.num_heads=4"),
        ({"tensor_parallel": 0}, "tensor_parallel=0 must be at least 1"),
    ],
)
def test_variants_that_cannot_be_are_refused_before_anything_is_compiled(tokenizer, tmp_path, variants, message):
    config = small_config(tokenizer.vocab_size)
    with pytest.raises(InputError, match=message):
        export_bundle({}, config, tokenizer, tmp_path / "out", **variants)
    assert not (tmp_path / "out").exists()


RUN = """
import json, sys
from pangu_lab.config import SamplingConfig
from pangu_lab.export import load_bundle
from pangu_lab.generate import generate
bundle = load_bundle(sys.argv[1])
ids = generate(bundle, sys.argv[2], SamplingConfig(temperature=0, max_new_tokens=16, min_new_tokens=16)).ids
code = [name for name in ("pangu_lab.model.pangu", "pangu_lab.generate.network", "pangu_lab.ops.attention", "pangu_lab.train")
        if name in sys.modules]
print(json.dumps({"ids": ids, "code": code}))
"""


def test_a_moved_bundle_runs_in_another_process_without_model_code(engine, copied, tmp_path):
    moved = copied.rename(tmp_path / "elsewhere")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(moved), PROMPTS[0]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=240,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"ids": list(generate(engine, PROMPTS[0], GREEDY).ids), "code": []}, done.stderr


def test_weights_too_large_for_one_file_are_spread_over_several(tokenizer, engine, tmp_path, monkeypatch):
    import mindspore.train.serialization as serialization

    from pangu_lab.export import mindir

    monkeypatch.setattr(serialization, "TOTAL_SAVE", 0)  # as above 1 GiB, where ms.export itself writes data files
    monkeypatch.setattr(mindir, "LARGEST_FILE", 40_000)
    config = small_config(tokenizer.vocab_size)
    export_bundle(random_weights(config), config, tokenizer, tmp_path / "out")
    assert len(list((tmp_path / "out" / "weights").iterdir())) > 2
    assert not list((tmp_path / "out").glob("*_variables")) and not list((tmp_path / "out").glob("*_graph.mindir"))
    bundle = load_bundle(tmp_path / "out")
    assert generate(bundle, PROMPTS[0], GREEDY).ids == generate(engine, PROMPTS[0], GREEDY).ids


# --------------------------------------------------------------------------------------------------- what it holds


def test_the_description_tells_sizes_ids_defaults_and_checksums(folder, tokenizer, bundle):
    told = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert set(told["graphs"]) == {"prefill", "decode", "decode_4", "eval_loss"}
    assert told["special_ids"] == {"eod": tokenizer.eod_id, "pad": tokenizer.pad_id}
    assert told["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert told["model"]["num_positions"] == 32 and told["model"]["places"] == 64
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(told["files"]) == present - {"bundle.json"}
    assert bundle.sampling == SamplingConfig(temperature=0.7, stop=("。",))
    assert bundle.name == "small" and bundle.max_length == 32


def test_no_absolute_path_is_inside(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.parent.name != "weights":
            content = path.read_bytes()
            for place in (str(folder), str(Path(__file__).resolve().parents[2]), sys.prefix, str(Path.home())):
                assert len(place) < 4 or place.encode() not in content, (path, place)


def test_weights_are_kept_once_and_the_empty_cache_takes_next_to_nothing(folder, tokenizer):
    config = small_config(tokenizer.vocab_size)
    weights = sum(path.stat().st_size for path in (folder / "weights").iterdir())
    cache_of_one_layer = 64 * config.hidden_size * 4
    assert weights < 4 * config.num_parameters + cache_of_one_layer + 20_000


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["prefill.mindir", "weights/data_0", "tokenizer/vocab.model"])
def test_a_changed_file_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: changed since it was exported"):
        load_bundle(copied)


def test_a_missing_file_is_refused_by_name(copied):
    (copied / "decode.mindir").unlink()
    with pytest.raises(InputError, match="decode.mindir: missing from this bundle"):
        load_bundle(copied)


def test_a_strange_file_is_refused_by_name(copied):
    (copied / "tokenizer" / "extra.txt").write_text("x")
    with pytest.raises(InputError, match="tokenizer/extra.txt: not part of this bundle"):
        load_bundle(copied)


def test_descriptions_that_cannot_be_read_are_refused(copied, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such bundle"):
        load_bundle(tmp_path / "nowhere")
    path = copied / "bundle.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    unlisted = {key: value for key, value in told.items() if key != "files"}
    for text, message in (
        ("{", "not readable JSON"),
        ("{}", "not a bundle's description"),
        (json.dumps({**told, "version": 9}), "version 9 of the format"),
        (json.dumps(unlisted), "changed since it was exported"),
        (json.dumps(with_checksum(unlisted)), "says nothing of files"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            load_bundle(copied)
    path.unlink()
    with pytest.raises(InputError, match="bundle.json: the bundle's description is not there"):
        load_bundle(copied)


def test_an_existing_folder_is_refused_before_anything_is_compiled(tokenizer, tmp_path):
    config = small_config(tokenizer.vocab_size)
    with pytest.raises(InputError, match="exists already"):
        export_bundle({}, config, tokenizer, tmp_path)


def test_an_export_that_fails_leaves_nothing(tokenizer, tmp_path):
    config = small_config(tokenizer.vocab_size)
    weights = random_weights(config)
    weights.pop("backbone.layernorm.gamma")
    with pytest.raises(InputError, match="the weights lack backbone.layernorm.gamma"):
        export_bundle(weights, config, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="the tokenizer has 1500 pieces and the model 40"):
        export_bundle(random_weights(small_config(40)), small_config(40), tokenizer, tmp_path / "out")
