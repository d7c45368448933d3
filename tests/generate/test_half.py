"""Weights in 16 or 8 bits: a half or a quarter of the memory, the texts of verse, numbers within stated bounds, and what
cannot be is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pangu_lab import PanguLM
from pangu_lab.cli import main
from pangu_lab.compiling import compiler
from pangu_lab.errors import InputError
from pangu_lab.generate.runner import kernel_runner, network_runner
from pangu_lab.memory import generation_need
from pangu_lab.model.parameters import initial_weights
from pangu_lab.ops.native import decode
from pangu_lab.presets import preset

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")  # with one they must be there
BOUNDS = {"float16": 1e-3, "bfloat16": 2e-2, "int8": 3e-2}  # of the largest logit


@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_are_those_of_fp32_within_the_bound(debug_run, dtype):
    exact, half = PanguLM.load(debug_run), PanguLM.load(debug_run, dtype=dtype)
    ids = np.random.default_rng(1).integers(10, exact.config.vocab_size, (2, 20))
    wanted, found = exact.logits(ids), half.logits(ids)
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUNDS[dtype] * np.abs(wanted).max())


def test_verse_whose_weights_were_fp16_before_writes_the_same_text_from_half_the_memory():
    exact, half = PanguLM.load("verse", dtype="float32"), PanguLM.load("verse")
    assert (exact.dtype, half.dtype) == ("float32", "float16")
    settings = {"temperature": 0.8, "seed": 3, "max_new_tokens": 60}
    assert half.generate("《春夜》\n", **settings).text == exact.generate("《春夜》\n", **settings).text
    held = half.runner._native._arrays
    products = [array for name, array in held.items() if name.endswith((".weight", "word_embedding.embedding_table"))]
    assert all(array.itemsize == 2 for array in products)
    assert sum(array.size for array in products) > 0.95 * half.config.num_parameters
    need = {
        dtype: generation_need(half.config, dtype=dtype).parts["weights"] for dtype in ("float32", "float16", "int8")
    }
    assert need["float32"] == 2 * need["float16"] == 4 * need["int8"]


def test_int8_holds_every_matrix_in_bytes_and_nothing_of_it_in_fp32():
    held = PanguLM.load("verse", dtype="int8").runner._native._arrays
    products = [array for name, array in held.items() if name.endswith((".weight", "word_embedding.embedding_table"))]
    assert products and all(array.dtype == np.int8 for array in products)


def test_without_kernels_weights_that_are_stored_in_fp16_are_read_as_fp32(monkeypatch):
    monkeypatch.setattr(decode, "library", lambda: None)
    assert PanguLM.load("verse").dtype == "float32"


@pytest.mark.parametrize(
    "name, dtype", [("debug", "bfloat16"), ("debug", "int8"), ("debug", "float32"), ("debug_moe", "float32")]
)
def test_other_weights_of_the_same_network_replace_all_of_the_first(name, dtype):
    config, at = preset(name).model, np.arange(10)[None]

    def logits(runner):
        return runner.run(at + 20, at, at, at)

    def runner_of(weights):
        return network_runner(weights, config) if dtype == "float32" else kernel_runner(weights, config, dtype)

    first, second = (initial_weights(config, seed) for seed in (1, 9))
    renewed = runner_of(first)
    before = logits(renewed)
    renewed.renew(second)
    np.testing.assert_allclose(logits(renewed), logits(runner_of(second)), atol=1e-6)
    assert not np.allclose(logits(renewed), before, atol=1e-3)
    untouched = initial_weights(config, 1)
    assert all(np.array_equal(first[name], untouched[name]) for name in first)


def test_the_command_takes_it_and_refuses_what_cannot_be(debug_run, debug_bundle, capsys):
    line = ["generate", "--from", str(debug_run), "--prompt", "春天", "--max-new-tokens", "4", "--temperature", "0"]
    texts = []
    for dtype in ("float32", "float16"):
        assert main([*line, "--dtype", dtype]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main([*line, "--dtype", "bfloat16", "--nproc", "2"]) == 2
    error = capsys.readouterr().err.strip()
    assert "there are float32 and float16" in error and len(error.splitlines()) == 1
    with pytest.raises(SystemExit):
        main([*line, "--dtype", "float16", "--int8"])
    assert "not allowed with" in capsys.readouterr().err
    with pytest.raises(InputError, match="exported with float32 weights"):
        PanguLM.load(debug_bundle, dtype="float16")


def test_without_kernels_and_with_experts_it_is_refused_in_one_line(monkeypatch):
    experts = preset("debug_moe").model
    with pytest.raises(InputError, match="dense models"):
        kernel_runner(initial_weights(experts, 1), experts, "float16")
    with pytest.raises(InputError, match="there are float32, float16, bfloat16, int8"):
        kernel_runner({}, experts, "float8")


def test_a_bundle_in_fp16_has_half_the_weights_and_writes_the_text(tmp_path, capsys):
    lm = PanguLM.load("verse")
    assert main(["export", "--from", "verse", "--dtype", "float16", "--out", str(tmp_path / "half")]) == 0
    assert main(["export", "--from", "verse", "--out", str(tmp_path / "whole")]) == 0  # a CPU has no products in fp16
    half, whole = PanguLM.load(tmp_path / "half"), PanguLM.load(tmp_path / "whole")
    assert (half.dtype, whole.dtype) == ("float16", "float32")
    data = [sum(path.stat().st_size for path in (tmp_path / name / "weights").iterdir()) for name in ("half", "whole")]
    assert data[0] < 0.55 * data[1]
    ids = np.random.default_rng(1).integers(10, lm.config.vocab_size, (2, 20))
    wanted = whole.logits(ids)
    for found in (half.logits(ids), half.logits(ids)):  # the first by the graph too
        np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUNDS["float16"] * np.abs(wanted).max())
    assert half.runner._native.prompts.value is True  # it agreed with the graph's products in fp16
    settings = {"temperature": 0.8, "seed": 3, "max_new_tokens": 60}
    assert half.generate("《春夜》\n", **settings).text == lm.generate("《春夜》\n", **settings).text
    for dtype, said in (("int8", "export it with --dtype float32"), ("bfloat16", "leave out dtype bfloat16")):
        with pytest.raises(InputError, match=said):
            PanguLM.load(tmp_path / "half", dtype=dtype).runner
    capsys.readouterr()
    path = tmp_path / "half" / "bundle.json"
    description = {**json.loads(path.read_text(encoding="utf-8")), "dtype": "float32"}
    path.write_text(json.dumps({key: value for key, value in description.items() if key != "sha256"}), encoding="utf-8")
    with pytest.raises(InputError, match="its sizes are not those of the graphs"):
        PanguLM.load(tmp_path / "half").runner
