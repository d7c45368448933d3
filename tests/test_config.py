"""Settings: YAML and back without loss, and every value that cannot work is refused by its key."""

from __future__ import annotations

import dataclasses
import types
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.config import (
    CHOICES,
    ModelConfig,
    RunConfig,
    all_keys,
    apply_overrides,
    config_from_dict,
    parse_overrides,
)
from pangu_lab.errors import InputError
from pangu_lab.presets import PRESETS, load_yaml, preset

VALUES = {
    **CHOICES,
    "data.column": ("input_ids", "text", "_x9"),
    "sampling.logprobs": (None, 0, 5),
    "sampling.num_beams": (1, 4),
    "sampling.logit_bias": ((), ((3, -1.5), (4, 2.0))),
    "parallel.optimizer": (False, True),
    "train.batch_doublings": ((), (1,), (5, 90)),
}
FIXED = {
    "model.num_heads",
    "model.hidden_size",
    "data.batch_size",
    "train.accumulation",
    "parallel.data",
    "parallel.micro_batches",
    "sampling.min_new_tokens",
    "sampling.num_return_sequences",
    "data.seq_length",
    "model.num_positions",
    "tokenizer.eod",
    "tokenizer.pad",
    "model.num_experts",
    "model.experts_per_token",
    "model.moe_every",
    "model.num_layers",
    "parallel.expert",
    "parallel.all_to_all",
    "parallel.sequence",
    "train.offload",
    "train.offload_folder",
    "train.optimizer",
    "train.param_dtype",
}  # bound to each other: each has tests of its own below


def field_of(key: str):
    section, _, name = key.partition(".")
    kind = type(getattr(RunConfig(), section))
    return typing.get_type_hints(kind)[name]


def values_for(key: str) -> st.SearchStrategy:
    """Values that the key's type and range allow."""
    hint = field_of(key)
    if key in VALUES:
        return st.sampled_from(VALUES[key])
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    plain = {
        int: st.integers(2, 10_000),
        float: st.floats(0.01, 0.9),
        bool: st.booleans(),
        str: st.text(min_size=1, max_size=20),
        type(None): st.none(),
    }
    parts = []
    for option in options:
        if typing.get_origin(option) is tuple:
            parts.append(st.lists(plain[typing.get_args(option)[0]], max_size=3).map(tuple))
        else:
            parts.append(plain[option])
    if key == "train.loss_scale":
        return st.floats(1.0, 2.0**40)
    return st.one_of(parts) if key != "train.adam_eps" else st.sampled_from([1e-8, 1e-6])


FREE_KEYS = [key for key in all_keys() if key not in FIXED]
anything = st.lists(st.sampled_from(FREE_KEYS), unique=True, max_size=8).flatmap(
    lambda keys: st.fixed_dictionaries({key: values_for(key) for key in keys})
)


@given(overrides=anything, name=st.sampled_from(sorted(PRESETS)))
def test_yaml_round_trip_loses_nothing(overrides, name):
    config = apply_overrides(preset(name), overrides)
    again = config_from_dict(yaml.safe_load(config.to_yaml()))
    assert again == config
    for key, value in overrides.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(again, section), field) == value


@pytest.mark.parametrize(
    "text,value",
    [
        ("off", False),
        ("false", False),
        ("states", True),
        ("true", True),
        ("parameters", "parameters"),
        ('"off"', False),
    ],
)
def test_what_optimizer_parallelism_slices_is_a_word_or_yes_or_no(text, value):
    config = config_from_dict(yaml.safe_load(f"parallel: {{optimizer: {text}}}"))
    assert config.parallel.optimizer is value or config.parallel.optimizer == value == "parameters"
    assert config_from_dict(yaml.safe_load(config.to_yaml())) == config
    assert config.parallel.slices_parameters == (value == "parameters")


def test_paths_become_absolute_and_names_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = preset("debug").replace(
        **{"data.path": "data/train", "train.init_from": "../first", "tokenizer.path": "pangu"}
    )
    absolute = config.with_absolute_paths()
    assert absolute.data.path == str(tmp_path / "data" / "train") and absolute.data.eval_path == ""
    assert absolute.train.init_from == str(tmp_path.parent / "first") and absolute.tokenizer.path == "pangu"
    monkeypatch.chdir("/")
    assert absolute.with_absolute_paths() == absolute


def test_offload_refuses_sliced_parameters():
    with pytest.raises(InputError, match="parallel.optimizer=states"):
        preset("debug").replace(**{"parallel.optimizer": "parameters", "train.offload": "optimizer"})


@pytest.mark.parametrize("changes", [{"parallel.sequence": True}, {"parallel.optimizer": "parameters"}])
def test_experts_refuse_what_they_cannot_do(changes):
    with pytest.raises(InputError, match="experts"):
        preset("debug_moe").replace(**changes)


def test_a_file_names_its_preset_and_changes_what_it_says(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: tiny\ntrain:\n  steps: 7\n  start_lr: 1e-4\nsampling:\n  stop: 。\n", encoding="utf-8")
    config = load_yaml(path)
    assert config == preset("tiny").replace(**{"train.steps": 7, "train.start_lr": 1e-4, "sampling.stop": ("。",)})
    assert load_yaml(path, preset("small")).model == preset("small").model


def test_what_is_written_is_complete(tmp_path):
    values = yaml.safe_load(RunConfig().to_yaml())
    written = [f"{section}.{key}" for section, content in values.items() if section != "preset" for key in content]
    assert written == all_keys() and values["preset"] == "self_define"


@pytest.mark.parametrize(
    "content, message",
    [
        ("train: [1, 2", "not readable as YAML"),
        ("just text", "must hold sections"),
        ("", "must hold sections"),
        ("trian:\n  steps: 3", "unknown setting 'trian.steps' (did you mean 'train.steps'?)"),
        ("train: 5", "unknown setting 'train'"),
        ("preset: tinny", "unknown preset 'tinny' (did you mean 'tiny'?)"),
        ("train:\n  steps: many", "train.steps='many' must be a whole number"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_yaml(tmp_path / "run.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none.yaml: no such configuration file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="binary.yaml: not readable as YAML"):
        load_yaml(tmp_path / "binary.yaml")


REFUSED = [
    ("model.vocab_size", 1),
    ("model.num_positions", 0),
    ("model.hidden_size", 0),
    ("model.num_layers", 1),
    ("model.num_heads", 0),
    ("model.num_heads", 7),
    ("model.hidden_size", 2561),
    ("model.hidden_act", "relu"),
    ("model.dropout_rate", 1.0),
    ("model.dropout_rate", -0.1),
    ("model.init_std", -1.0),
    ("model.compute_dtype", "float8"),
    ("model.softmax_dtype", "int8"),
    ("model.num_experts", 0),
    ("model.moe_every", 0),
    ("model.experts_per_token", 2),
    ("model.capacity_factor", 0.0),
    ("model.balance_loss", -1.0),
    ("model.z_loss", -1.0),
    ("parallel.expert", 0),
    ("parallel.expert", 2),
    ("parallel.all_to_all", True),
    ("train.offload", "weights"),
    ("train.offload_folder", "states"),
    ("data.seq_length", 0),
    ("data.seq_length", 1025),
    ("data.batch_size", 0),
    ("data.column", "two words"),
    ("data.column", ""),
    ("data.eod_reset", "perhaps"),
    ("data.shuffle", 1),
    ("train.steps", 0),
    ("train.steps", 2.5),
    ("train.steps", True),
    ("train.steps", None),
    ("train.max_minutes", -1),
    ("train.seed", -1),
    ("train.seed", 2**31),
    ("train.accumulation", 0),
    ("train.accumulation", 3),
    ("train.start_lr", -1e-4),
    ("train.end_lr", "small"),
    ("train.warmup_steps", -1),
    ("train.decay_steps", 0),
    ("train.weight_decay", -0.1),
    ("train.beta1", 1.0),
    ("train.beta2", 1.5),
    ("train.adam_eps", 0.0),
    ("train.clip_norm", 0.0),
    ("train.loss_scale", 0.5),
    ("train.loss_scale_window", 0),
    ("train.loss_scale_floor", 0.0),
    ("train.log_every", 0),
    ("train.eval_every", 0),
    ("train.eval_batches", 0),
    ("train.checkpoint_every", 0),
    ("train.keep_checkpoints", 0),
    ("parallel.data", 0),
    ("parallel.data", 3),
    ("parallel.tensor", 0),
    ("parallel.pipeline", 0),
    ("parallel.micro_batches", 0),
    ("parallel.optimizer", "yes please"),
    ("parallel.recompute", None),
    ("sampling.max_new_tokens", -1),
    ("sampling.min_new_tokens", 65),
    ("sampling.temperature", -0.5),
    ("sampling.top_k", 0),
    ("sampling.top_p", 0.0),
    ("sampling.top_p", 1.1),
    ("sampling.min_p", 2.0),
    ("sampling.frequency_penalty", 11.0),
    ("sampling.presence_penalty", -11.0),
    ("sampling.repetition_penalty", 0.0),
    ("sampling.no_repeat_ngram", 0),
    ("sampling.stop", [3]),
    ("sampling.stop_ids", ["x"]),
    ("sampling.seed", -1),
    ("sampling.stop", [""]),
    ("sampling.bad_words", ["好", ""]),
    ("sampling.logit_bias", [[3]]),
    ("sampling.logit_bias", [[3, 101.0]]),
    ("sampling.num_return_sequences", 0),
    ("sampling.num_beams", 65),
    ("sampling.length_penalty", 11.0),
    ("sampling.logprobs", 101),
    ("sampling.temperature", 1e-320),
    ("sampling.top_p", 1e-40),
    ("sampling.logit_bias", [[3, 1e-45]]),
    ("sampling.logit_bias", {3: 10**400}),
    ("sampling.top_k", 10**400),
    ("sampling.seed", 10**400),
    ("sampling.temperature", 10**400),
    ("sampling.max_new_tokens", 2**31),
    ("train.start_lr", 10**400),
]


@pytest.mark.parametrize("key, value", REFUSED, ids=lambda value: str(value))
def test_a_value_that_cannot_work_is_refused_by_its_key(key, value):
    with pytest.raises(InputError) as caught:
        RunConfig().replace(**{key: value})
    assert key in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("key", [key for key in all_keys() if field_of(key) in (int, float, float | None)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_key(key, value):
    with pytest.raises(InputError) as caught:
        RunConfig().replace(**{key: value})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("model.hiden_size", "model.hidden_size"),
        ("train.step", "train.steps"),
        ("steps", "train.steps"),
        ("trian.warmup_steps", "train.warmup_steps"),
        ("sampling.topk", "sampling.top_k"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(key, nearest):
    with pytest.raises(InputError, match=f"unknown setting '{key}' .did you mean '{nearest}'"):
        RunConfig().replace(**{key: 1})


@pytest.mark.parametrize("item", ["train.steps", "=5", "train.steps=[1", "sampling.seed=" + "1" * 5000], ids=len)
def test_an_unreadable_override_is_shown_back(item):
    with pytest.raises(InputError, match="--set"):
        parse_overrides([item])


def test_overrides_read_numbers_lists_and_chinese():
    items = ["train.start_lr=1e-4", "sampling.stop=[。, '!']", "train.max_minutes=null", "data.shuffle=false"]
    config = apply_overrides(RunConfig(), parse_overrides(items))
    assert config.train.start_lr == 1e-4 and config.sampling.stop == ("。", "!")
    assert config.train.max_minutes is None and config.data.shuffle is False


def test_keys_that_depend_on_each_other_can_change_together_in_any_order():
    values = {"model.hidden_size": 96, "model.num_heads": 12, "model.num_positions": 2048, "data.seq_length": 2048}
    backwards = dict(reversed(values.items()))
    assert RunConfig().replace(**values) == RunConfig().replace(**backwards)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().model.num_layers = 3


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model.num_experts": 4, "model.moe_every": 32},
            "model.moe_every=32 leaves no block with experts: there are 31",
        ),
        (
            {"parallel.data": 2, "parallel.expert": 2},
            "parallel.expert=2 needs a mixture of experts: set model.num_experts",
        ),
        ({"model.num_experts": 4, "parallel.expert": 2}, "parallel.expert=2 must divide parallel.data=1"),
        ({"model.num_experts": 3, "parallel.data": 2, "parallel.expert": 2}, "must divide model.num_experts=3"),
    ],
)
def test_experts_that_cannot_be_placed_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError) as caught:
        RunConfig().replace(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_query_layer_never_has_experts():
    model = ModelConfig(num_layers=6, num_experts=4, moe_every=2)
    assert model.moe_layers == (1, 3) and ModelConfig(num_layers=6, num_experts=4).moe_layers == (0, 1, 2, 3, 4)
    assert ModelConfig().moe_layers == () and ModelConfig().active_parameters == ModelConfig().num_parameters


def test_the_parameter_count_is_that_of_the_parts():
    model = ModelConfig(vocab_size=331, num_positions=48, hidden_size=64, num_layers=4, num_heads=4)
    attention, feed_forward, norms = 4 * (64 * 64 + 64), 2 * 64 * 256 + 256 + 64, 4 * 64
    assert model.num_parameters == (331 + 96) * 64 + 4 * (attention + feed_forward + norms) + 128


@pytest.mark.parametrize("steps", [(2, 2), (9, 5), (0,), tuple(range(1, 18))])
def test_doublings_of_the_batch_are_steps_in_rising_order(steps):
    with pytest.raises(InputError, match="train.batch_doublings"):
        RunConfig().replace(**{"train.batch_doublings": steps})


def test_muon_keeps_no_states_on_the_host():
    with pytest.raises(InputError, match="train.optimizer=muon works on the device: set train.offload=none"):
        RunConfig().replace(**{"train.optimizer": "muon", "train.offload": "optimizer"})


@pytest.mark.parametrize(
    "other, said",
    [
        ({"model.compute_dtype": "float32"}, "model.compute_dtype=float16"),
        ({"model.compute_dtype": "float16", "train.optimizer": "muon"}, "train.optimizer=adamw"),
        ({"model.compute_dtype": "float16", "train.offload": "optimizer"}, "train.offload=none"),
    ],
)
def test_weights_in_fp16_need_products_in_fp16_and_an_optimizer_that_takes_them(other, said):
    with pytest.raises(InputError, match=said):
        RunConfig().replace(**{"train.param_dtype": "float16", **other})
