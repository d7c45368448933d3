"""Conversion: every layout in and out bit for bit, what is wrong named, and logits equal to an independent model's."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest

from pangu_lab.checkpoint import Checkpoint, load_weights, save_checkpoint
from pangu_lab.checkpoint.convert import CKPT_FILE, convert_checkpoint
from pangu_lab.checkpoint.layouts import gpt_name, published_name
from pangu_lab.checkpoint.made_release import write_shards
from pangu_lab.checkpoint.mindspore_ckpt import index_ckpt, read_entry, write_ckpt
from pangu_lab.checkpoint.releases import open_source
from pangu_lab.config import ModelConfig, RunConfig
from pangu_lab.errors import InputError
from pangu_lab.model.parameters import initial_weights, parameter_specs
from pangu_lab.presets import preset

CONFIG = preset("debug")
SETTINGS = {"model.num_heads": 4, "model.hidden_act": "gelu"}
WORD = "backbone.word_embedding.embedding_table"


@pytest.fixture(scope="module")
def weights():
    return initial_weights(CONFIG.model, 3)


def later(name):
    """The second spelling of the embeddings."""
    return name.replace("backbone.", "backbone.embedding.") if name.count("_embedding.") else name


def release(path, weights, spelling=str, dtype=np.float32):
    """A single-file release: parameters under one spelling, optimizer and bookkeeping entries mixed in."""

    def stream():
        yield "global_step", np.zeros((), np.float32)
        for name, value in weights.items():
            yield spelling(name), value.astype(dtype)
            yield f"adam_m.{spelling(name)}", np.zeros_like(value)
            yield f"adam_v.{spelling(name)}", np.ones_like(value)
        yield "scale_sense", np.ones((), np.float32)

    write_ckpt(path, stream())
    return path


def same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype and np.array_equal(got[name], value), name


# ------------------------------------------------------------------------------------------------- .ckpt itself


def test_mindspore_reads_what_is_written_here(tmp_path, weights):
    write_ckpt(tmp_path / "a.ckpt", weights.items())
    same({name: value.asnumpy() for name, value in ms.load_checkpoint(str(tmp_path / "a.ckpt")).items()}, weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_mindspore_writes_is_read_here(tmp_path, dtype):
    values = {"a": np.arange(600).reshape(20, 30).astype(dtype), "b": np.ones(3, dtype)}
    ms.save_checkpoint(
        [{"name": name, "data": ms.Tensor(value)} for name, value in values.items()], str(tmp_path / "a.ckpt")
    )
    index = index_ckpt(tmp_path / "a.ckpt")
    same({name: read_entry(tmp_path / "a.ckpt", name, entry) for name, entry in index.items()}, values)


def test_a_parameter_in_several_pieces_is_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("pangu_lab.checkpoint.mindspore_ckpt._PIECE", 100)
    value = np.random.default_rng(0).standard_normal((7, 11)).astype(np.float32)
    write_ckpt(tmp_path / "a.ckpt", [("a", value)])
    entry = index_ckpt(tmp_path / "a.ckpt")["a"]
    assert len(entry.chunks) == 4 and np.array_equal(read_entry(tmp_path / "a.ckpt", "a", entry), value)
    assert np.array_equal(ms.load_checkpoint(str(tmp_path / "a.ckpt"))["a"].asnumpy(), value)


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_truncated_file_is_refused_by_name(tmp_path, weights, cut):
    path = release(tmp_path / "pangu.ckpt", weights)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match="pangu.ckpt.*(ends in the middle|bytes, its shape)|missing"):
        convert_checkpoint(path, tmp_path / "out", overrides=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x0a" + b"\xff" * 11, b"\x0a"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="x.ckpt"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out")


def test_a_name_held_twice_is_refused(tmp_path, weights):
    write_ckpt(tmp_path / "x.ckpt", [*weights.items(), ("backbone.layernorm.beta", np.zeros(32, np.float32))])
    with pytest.raises(InputError, match="x.ckpt: holds 'backbone.layernorm.beta' twice"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", overrides=SETTINGS)


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("spelling", [str, later])
def test_a_single_file_release_is_imported_bit_for_bit(tmp_path, weights, spelling):
    release(tmp_path / "pangu.ckpt", weights, spelling)
    done = convert_checkpoint(tmp_path, tmp_path / "out", overrides=SETTINGS)
    got, config = load_weights(tmp_path / "out")
    same(got, weights)
    assert config.model.num_heads == 4 and config.model.num_layers == 4 and done.source == "a single-file release"


def test_fp16_goes_in_and_comes_out_bit_for_bit(tmp_path, weights):
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    release(tmp_path / "pangu.ckpt", half, dtype=np.float16)
    convert_checkpoint(tmp_path / "pangu.ckpt", tmp_path / "lab", overrides=SETTINGS)
    same(load_weights(tmp_path / "lab")[0], {name: value.astype(np.float32) for name, value in half.items()})
    convert_checkpoint(tmp_path / "lab", tmp_path / "back", "mindspore-ckpt", dtype="float16")
    path = tmp_path / "back" / CKPT_FILE
    same({name: read_entry(path, name, entry) for name, entry in index_ckpt(path).items()}, half)


@pytest.mark.parametrize("to", ["lab", "gpt_pangu", "mindspore-ckpt"])
def test_every_layout_goes_out_and_comes_back_bit_for_bit(tmp_path, weights, to, monkeypatch):
    monkeypatch.setattr("pangu_lab.checkpoint.convert._GROUP", 40_000)  # several files
    save_checkpoint(tmp_path / "first", weights, {"step": 5}, CONFIG)
    convert_checkpoint(tmp_path / "first", tmp_path / "other", to)
    convert_checkpoint(tmp_path / "other", tmp_path / "back", overrides=SETTINGS)
    same(load_weights(tmp_path / "back")[0], weights)
    assert to == "mindspore-ckpt" or len(list((tmp_path / "other").glob("*.safetensors"))) > 2


def test_the_tokenizer_is_kept_so_that_the_result_can_generate(tmp_path, weights, debug_data):
    from pangu_lab.checkpoint.source import tokenizer_folder

    release(tmp_path / "pangu.ckpt", weights)
    given = str(debug_data / "tokenizer")
    convert_checkpoint(tmp_path / "pangu.ckpt", tmp_path / "out", overrides=SETTINGS, tokenizer=given)
    convert_checkpoint(tmp_path / "out", tmp_path / "again")
    assert tokenizer_folder(tmp_path / "again") == tmp_path / "again" / "tokenizer"
    with pytest.raises(InputError, match="pangu: has 40000 pieces, the model's vocabulary only 512"):
        convert_checkpoint(tmp_path / "pangu.ckpt", tmp_path / "other", overrides=SETTINGS, tokenizer="pangu")


def test_a_published_size_keeps_pangus_vocabulary_without_being_told(tmp_path, weights):
    from pangu_lab.checkpoint.convert import _tokenizer

    source = open_source(release(tmp_path / "pangu.ckpt", weights))
    assert _tokenizer(source, None, preset("2.6B")).vocab_size == 40000
    assert _tokenizer(source, None, CONFIG) is None


def test_torch_files_are_read_as_weights_only(tmp_path, weights):
    torch = pytest.importorskip("torch")
    state = gpt_state(weights)
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "pytorch_model.bin")
    convert_checkpoint(tmp_path, tmp_path / "out", overrides=SETTINGS)
    same(load_weights(tmp_path / "out")[0], weights)


def test_a_torch_file_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin: not a PyTorch file of weights alone"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def gpt_state(weights, layers=4):
    """The port's names and orientation, written out from its description and not by the code under test."""
    parts = {
        "attention.dense1": "attn.q_proj",
        "attention.dense2": "attn.k_proj",
        "attention.dense3": "attn.v_proj",
        "attention.projection": "attn.c_proj",
        "output.mapping": "mlp.c_fc",
        "output.projection": "mlp.c_proj",
    }
    state = {
        f"transformer.{short}.weight": weights[f"backbone.{long}.embedding_table"]
        for short, long in (("wte", "word_embedding"), ("wpe", "position_embedding"), ("wqe", "top_query_embedding"))
    }
    for layer in range(layers):
        prefix = f"backbone.blocks.{layer}" if layer < layers - 1 else "backbone.top_query_layer"
        for number in (1, 2):
            state[f"transformer.h.{layer}.ln_{number}.weight"] = weights[f"{prefix}.layernorm{number}.gamma"]
            state[f"transformer.h.{layer}.ln_{number}.bias"] = weights[f"{prefix}.layernorm{number}.beta"]
        for ours, theirs in parts.items():
            matrix = weights[f"{prefix}.{ours}.weight"]
            state[f"transformer.h.{layer}.{theirs}.weight"] = matrix if "dense" in ours else matrix.T.copy()
            state[f"transformer.h.{layer}.{theirs}.bias"] = weights[f"{prefix}.{ours}.bias"]
    state["transformer.ln_f.weight"] = weights["backbone.layernorm.gamma"]
    state["transformer.ln_f.bias"] = weights["backbone.layernorm.beta"]
    state["lm_head.weight"] = state["transformer.wte.weight"].copy()
    return state


def test_gpt_pangu_is_written_as_described(tmp_path, weights):
    from safetensors.numpy import load_file

    save_checkpoint(tmp_path / "lab", weights, {"step": 5}, CONFIG)
    convert_checkpoint(tmp_path / "lab", tmp_path / "gpt", "gpt_pangu")
    same(load_file(tmp_path / "gpt" / "model.safetensors"), gpt_state(weights))
    values = json.loads((tmp_path / "gpt" / "config.json").read_text())
    assert values["num_heads"] == 4 and values["activation_function"] == "gelu_new"


def test_a_head_that_is_not_the_word_embedding_is_refused(tmp_path, weights):
    from safetensors.numpy import save_file

    state = gpt_state(weights)
    state["lm_head.weight"][300, 5] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lm_head.weight differs from transformer.wte.weight"):
        convert_checkpoint(tmp_path, tmp_path / "out", overrides=SETTINGS)


# ----------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("to", ["gpt_pangu", "mindspore-ckpt"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_erf", "fast_gelu"])
def test_an_export_tells_heads_and_activation_to_the_import(tmp_path, weights, to, activation):
    save_checkpoint(tmp_path / "lab", weights, {"step": 5}, CONFIG.replace(**{"model.hidden_act": activation}))
    convert_checkpoint(tmp_path / "lab", tmp_path / "other", to)
    model = convert_checkpoint(tmp_path / "other", tmp_path / "back").config.model
    assert (model.num_heads, model.hidden_act) == (4, activation)


def test_what_the_files_do_not_hold_is_asked_for_by_name(tmp_path, weights):
    release(tmp_path / "pangu.ckpt", weights)
    with pytest.raises(InputError, match="model.num_heads and model.hidden_act.*--set model.num_heads="):
        convert_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="do not tell model.hidden_act: give --set model.hidden_act=gelu"):
        convert_checkpoint(tmp_path, tmp_path / "out", overrides={"model.num_heads": 4})
    convert_checkpoint(tmp_path, tmp_path / "out", overrides={"preset": "debug"})
    assert load_weights(tmp_path / "out")[1].model == CONFIG.model


def test_a_preset_of_another_size_is_refused(tmp_path, weights):
    release(tmp_path / "pangu.ckpt", weights)
    with pytest.raises(InputError, match="model.vocab_size=512 by the shapes.*preset 2.6B has 40000"):
        convert_checkpoint(tmp_path, tmp_path / "out", overrides={"preset": "2.6B"})


@pytest.mark.parametrize("size", ["350M", "2.6B", "13B"])
def test_published_sizes_are_recognised_by_their_shapes(data_folder, size):
    from pangu_lab.checkpoint.convert import _settings
    from pangu_lab.checkpoint.releases import Source

    source = Source(data_folder)
    published = json.loads((data_folder / "released" / f"released_{size}_params.json").read_text())
    source.shapes = {name: tuple(shape) for name, shape in published.items()}
    assert _settings(source, {}).model == preset(size).model


def test_missing_and_left_over_parameters_are_listed_with_the_nearest_name(tmp_path, weights):
    wrong = dict(weights)
    wrong["backbone.blocks.1.attention.dens1.weight"] = wrong.pop("backbone.blocks.1.attention.dense1.weight")
    release(tmp_path / "pangu.ckpt", wrong)
    with pytest.raises(
        InputError,
        match=r"1 missing: backbone.blocks.1.attention.dense1.weight \(near "
        r"'backbone.blocks.1.attention.dens1.weight'\?\); 1 left over",
    ):
        convert_checkpoint(tmp_path, tmp_path / "out", overrides=SETTINGS)


def test_values_that_are_not_finite_are_refused(tmp_path, weights):
    wrong = dict(weights)
    wrong[WORD] = wrong[WORD].copy()
    wrong[WORD][3, 3] = np.nan
    release(tmp_path / "pangu.ckpt", wrong)
    with pytest.raises(InputError, match=f"{WORD} holds values that are not finite"):
        convert_checkpoint(tmp_path, tmp_path / "out", overrides=SETTINGS)
    assert list(tmp_path.iterdir()) == [tmp_path / "pangu.ckpt"]


def test_bookkeeping_is_told_from_parameters():
    assert all(published_name(name) == name for name in parameter_specs(CONFIG.model))
    assert all(published_name(later(name)) == name for name in parameter_specs(CONFIG.model))
    for name in ("adam_m.backbone.layernorm.gamma", "global_step", "scale_sense", "beta1_power"):
        assert published_name(name) is None
    assert len({gpt_name(name, 4)[0] for name in parameter_specs(CONFIG.model)}) == len(parameter_specs(CONFIG.model))


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["a.ckpt", "b.ckpt"]])
def test_a_folder_without_one_set_of_weights_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="no weights known here|name one of them"):
        open_source(tmp_path)


# --------------------------------------------------------------------------------------------------------- parity


def parity_logits(folder, ids):
    from mindspore import Tensor

    from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts, Weights

    ms.set_context(mode=ms.GRAPH_MODE)
    arrays, config = load_weights(folder)
    model = ModelConfig(**{**config.model.__dict__, "dropout_rate": 0.0})
    positions = np.tile(np.arange(48, dtype=np.int32), (2, 1))
    return PanguLogits(PanguStage(Parts(model, Weights(arrays))))(Tensor(ids), Tensor(positions)).asnumpy()


def sharded(folder, weights):
    """The sharded release for 8 ranks, in one folder."""
    write_shards(folder, weights, tensor=2, optimizer=4)
    (folder / "strategy.ckpt").rename(folder / "pangu_strategy.ckpt")


def test_a_sharded_release_of_eight_ranks_is_merged_bit_for_bit(tmp_path, weights):
    source = tmp_path / "source"
    source.mkdir()
    sharded(source, weights)
    convert_checkpoint(source, tmp_path / "out", overrides=SETTINGS)
    same(load_weights(tmp_path / "out")[0], weights)


@pytest.mark.parametrize(
    "damage,message",
    [
        ("missing", "1 of 8 shards missing: filerted_5.ckpt"),
        ("truncated", "filerted_5.ckpt: .*ends in the middle"),
        ("copied", "filerted_5.ckpt holds the same weights as filerted_3.ckpt"),
        ("empty", "filerted_5.ckpt: is empty"),
        ("surplus", "filerted_8.ckpt: the strategy knows shards 0 to 7"),
        ("twice", "filerted_05.ckpt and filerted_5.ckpt are both shard 5"),
        ("table", "position_embedding.npy is missing"),
        ("strategy", "needs its strategy file"),
    ],
)
def test_damage_to_a_sharded_release_is_named(tmp_path, weights, damage, message):
    source = tmp_path / "source"
    source.mkdir()
    sharded(source, weights)
    fifth = source / "filerted_5.ckpt"
    content = fifth.read_bytes()
    {
        "missing": fifth.unlink,
        "truncated": lambda: fifth.write_bytes(content[:-9]),
        "copied": lambda: fifth.write_bytes((source / "filerted_3.ckpt").read_bytes()),
        "empty": lambda: fifth.write_bytes(b""),
        "table": (source / "position_embedding.npy").unlink,
        "surplus": lambda: (source / "filerted_8.ckpt").write_bytes(content),
        "twice": lambda: (source / "filerted_05.ckpt").write_bytes(content),
        "strategy": (source / "pangu_strategy.ckpt").unlink,
    }[damage]()
    with pytest.raises(InputError, match=message):
        convert_checkpoint(source, tmp_path / "out", overrides=SETTINGS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["sharded", "mindspore-ckpt", "gpt_pangu", "lab"])
@pytest.mark.parametrize("file,activation", [("parity_small.npz", "gelu"), ("parity_small_quick.npz", "fast_gelu")])
def test_imported_weights_give_the_independent_logits(tmp_path, data_folder, layout, file, activation):
    from safetensors.numpy import save_file

    stored = np.load(data_folder / "parity" / "parity_small.npz")
    reference = np.load(data_folder / "parity" / file)
    weights = {name[2:]: stored[name] for name in stored.files if name.startswith("w/")}
    settings = {"model.num_heads": 4, "model.hidden_act": activation}
    source = tmp_path / "source"
    source.mkdir()
    if layout == "sharded":
        sharded(source, weights)
    elif layout == "mindspore-ckpt":
        release(source / "pangu.ckpt", weights, later)
    elif layout == "gpt_pangu":
        save_file(gpt_state(weights), source / "model.safetensors")
    else:
        model = ModelConfig(vocab_size=331, num_positions=48, hidden_size=64, num_layers=4, num_heads=4)
        config = RunConfig(model=model, data=CONFIG.data.__class__(seq_length=48))
        save_checkpoint(tmp_path / "source2", weights, {"step": 1}, config)
        source = tmp_path / "source2"
    convert_checkpoint(source, tmp_path / "out", overrides=settings)
    assert Checkpoint(tmp_path / "out").step == 0
    assert np.abs(parity_logits(tmp_path / "out", reference["ids"]) - reference["logits"]).max() < 2e-5
