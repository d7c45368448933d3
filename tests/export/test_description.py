"""A bundle's description: nothing in it may lead compiled code outside its arrays, and a signature shows who made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pangu_lab.errors import InputError
from pangu_lab.export import load_bundle, read_key, verify_signature
from pangu_lab.export.description import SIGNATURE, graph_of, sign, with_checksum
from pangu_lab.generate.native import NativeDecoder, inference_shapes

FIXTURE = (
    Path(__file__).resolve().parents[1] / "fixtures" / "v0.1" / "dense" / "bundle"
)  # of before there were checksums


@pytest.fixture
def bundle(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "bundle"))


def edit(bundle: Path, change, checksum: bool = False) -> None:
    told = json.loads((bundle / "bundle.json").read_text())
    change(told)
    (bundle / "bundle.json").write_text(json.dumps(with_checksum(told) if checksum else told))


@pytest.mark.parametrize(
    "sizes",
    [
        {"places": 100_000},
        {"places": 2048},
        {"places": 512},
        {"vocab_size": 100_000},
        {"vocab_size": 256},
        {"hidden_size": 32},
        {"hidden_size": 8},
        {"num_positions": 4096},
        {"num_layers": 4},
        {"num_layers": 2},
        {"num_heads": 4},
        {"num_experts": 2},
    ],
    ids=str,
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(bundle, sizes):
    """With them the graphs and the kernels would write beyond the cache and read beyond the weights."""
    edit(bundle, lambda told: told["model"].update(sizes))
    with pytest.raises(InputError, match="bundle.json: its sizes are not those of the graphs"):
        load_bundle(bundle)


def test_the_kernels_take_no_array_of_another_size_whatever_opened_them(bundle):
    loaded = load_bundle(bundle)
    parameters = {name: value.asnumpy() for name, value in loaded._first.parameters_dict().items()}
    with pytest.raises(InputError, match=r"is float32 \(2048, 8\), the configuration needs float32 \(4096, 8\)"):
        NativeDecoder(None, parameters, loaded.config, slots=2048)


def test_the_table_of_shapes_is_that_of_the_graphs():
    for kind in ("dense", "experts"):
        loaded = load_bundle(FIXTURE.parents[1] / kind / "bundle")
        held = {name: tuple(value.shape) for name, value in loaded._first.parameters_dict().items()}
        assert held == inference_shapes(loaded.config, loaded.description["model"]["places"])


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["model"].update(places=0),
        lambda told: told["model"].update(places="many"),
        lambda told: told["model"].update(places=10**30),
        lambda told: told["model"].update(num_layers=10**9),
        lambda told: told["model"].pop("hidden_size"),
        lambda told: told["model"].update(hidden_act=["gelu"]),
        lambda told: told.update(graphs=[]),
        lambda told: told["graphs"].pop("prefill"),
        lambda told: told["graphs"]["decode"].update(inputs=[["ids", [100_000, 1], "int32"]]),
        lambda told: told["graphs"]["decode"]["inputs"][0].__setitem__(2, "Tensor"),
        lambda told: told["graphs"].update({"../../etc/passwd": told["graphs"]["decode"]}),
        lambda told: told["graphs"].update({"decode_8": told["graphs"]["decode"]}),
        lambda told: told["files"].update({"../outside": "0" * 64}),
        lambda told: told["files"].update({"prefill.mindir": 5}),
        lambda told: told.update(special_ids={"eod": -1, "pad": 0}),
        lambda told: told.update(special_ids={"eod": 9}),
        lambda told: told.update(sampling={"temperature": "hot"}),
        lambda told: told.update(versions=None),
        lambda told: told.update(name=["a", "b"]),
        lambda told: told.update(parallel={"tensor": 10**9}),
    ],
)
def test_a_description_of_another_shape_is_refused_in_one_line(bundle, change):
    edit(bundle, change)
    with pytest.raises(InputError) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_the_graphs_of_old_bundles_are_as_their_names_say():
    told = json.loads((FIXTURE / "bundle.json").read_text())
    assert {name: {key: graph[key] for key in ("inputs", "outputs")} for name, graph in told["graphs"].items()} == {
        name: graph_of(name) for name in told["graphs"]
    }


def test_any_change_of_a_description_with_a_checksum_is_noticed(bundle):
    edit(bundle, lambda told: None, checksum=True)
    load_bundle(bundle, verify=False)
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(text.replace('"eod": 9', '"eod": 8'))
    with pytest.raises(InputError, match="bundle.json: changed since it was exported"):
        load_bundle(bundle)


def test_a_signature_tells_the_key_and_the_content(bundle, tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "other").write_bytes(bytes(range(1, 33)))
    key = read_key(tmp_path / "key")
    with pytest.raises(InputError, match="not signed"):
        verify_signature(bundle, key)
    sign(bundle, key)
    verify_signature(bundle, key)
    np.testing.assert_array_equal(load_bundle(bundle).prefill([1, 2]).shape, (512,))  # a signature is no strange file
    with pytest.raises(InputError, match="not of this key"):
        verify_signature(bundle, read_key(tmp_path / "other"))
    edit(bundle, lambda told: told.update(name="another"), checksum=True)
    with pytest.raises(InputError, match="not of this key and this content"):
        verify_signature(bundle, key)
    (bundle / SIGNATURE).write_bytes(b"\xff")
    with pytest.raises(InputError, match="not of this key"):
        verify_signature(bundle, key)


def test_every_rank_of_a_shared_bundle_is_signed(bundle, tmp_path):
    key, shared = bytes(32), tmp_path / "shared"
    for rank in range(2):
        shutil.copytree(bundle, shared / f"rank_{rank}")
    sign(shared / "rank_0", key)
    with pytest.raises(InputError, match="rank_1: not signed"):
        verify_signature(shared, key)
    sign(shared / "rank_1", key)
    verify_signature(shared, key)


def test_a_key_that_can_be_guessed_or_is_not_there_is_refused(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    with pytest.raises(InputError, match="a key of 7 bytes can be guessed; make one of 32"):
        read_key(tmp_path / "key")
    with pytest.raises(InputError, match="none: the key of signatures is not there"):
        read_key(tmp_path / "none")


def test_what_is_no_bundle_is_not_signed(tmp_path):
    with pytest.raises(InputError, match="only bundles are signed"):
        verify_signature(tmp_path, bytes(32))
