"""Settings: typed, frozen, checked when they are made, and the only place in the project that holds defaults.

A ``RunConfig`` is a handful of sections (``model``, ``tokenizer``, ``data``, ``train``, ``parallel``,
``sampling``). It comes from a preset, a YAML file, or both, with single values overridden by dotted keys
(``train.steps=200``), and goes back to YAML without loss. A value that cannot work is refused here, by its key,
before anything expensive starts. See ``presets.py`` for the named sizes.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from typing import Any

import yaml

from pangu_lab.errors import nearest
from pangu_lab.ranges import check, check_choice, check_range, number, shown
from pangu_lab.reading import parse_yaml
from pangu_lab.setting_types import convert
from pangu_lab.shipped import shipped_names

MOST_LAYERS = 1 << 12  # ten times those of any model; a number typed wrongly must not take minutes to refuse
ACTIVATIONS = ("gelu", "gelu_erf", "fast_gelu")
DTYPES = ("float32", "float16", "bfloat16")
SLICES = ("off", "states", "parameters")  # the first two are also written false and true
CHOICES: dict[str, tuple[str, ...]] = {  # settings that are one of a few words
    "model.hidden_act": ACTIVATIONS,
    "model.compute_dtype": DTYPES,
    "model.softmax_dtype": DTYPES,
    "train.offload": ("none", "optimizer"),
    "train.optimizer": ("adamw", "muon"),
    "train.param_dtype": ("float32", "float16"),
    "train.schedule": ("cosine", "wsd"),
    "parallel.optimizer": SLICES,
}
PATHS = ("tokenizer.path", "data.path", "data.eval_path", "train.init_from", "train.offload_folder")
LARGEST_COUNT = 2**31 - 1  # counts and ids are int32 in every graph


def _check_choices(section: str, config: Any) -> None:
    for key, choices in CHOICES.items():
        if key.startswith(f"{section}."):
            check_choice(key, getattr(config, key.partition(".")[2]), choices)


@dataclass(frozen=True)
class ModelConfig:
    """The network. ``num_layers`` counts the query layer: 32 means 31 blocks and one query layer.

    With ``num_experts`` above 1 every ``moe_every``-th block has that many feed-forward networks (experts) instead of
    one, and a router that sends each token to ``experts_per_token`` of them. The query layer stays dense.
    """

    vocab_size: int = 40000
    num_positions: int = 1024
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    hidden_act: str = "gelu"  # as in the released weights; the reference uses fast_gelu on Ascend
    dropout_rate: float = 0.1
    layernorm_eps: float = 1e-5
    init_std: float = 0.02
    compute_dtype: str = "float32"
    softmax_dtype: str = "float32"
    num_experts: int = 1  # 1: dense
    moe_every: int = 1
    experts_per_token: int = 1  # the reference's per_token_num_experts_chosen
    capacity_factor: float = 1.25  # expert capacity per record, as a multiple of its fair share of the tokens
    balance_loss: float = 0.01  # coefficient of the load-balancing loss
    z_loss: float = 0.001  # coefficient of the router z-loss

    def __post_init__(self) -> None:
        check_range(
            "model",
            self,
            vocab_size=(2, None),
            num_positions=(1, None),
            hidden_size=(1, None),
            num_layers=(2, MOST_LAYERS),
            num_heads=(1, None),
            dropout_rate=(0.0, 0.99),
            init_std=(0.0, None),
            layernorm_eps=(1e-12, 1.0),
            num_experts=(1, None),
            moe_every=(1, None),
            experts_per_token=(1, None),
            capacity_factor=(0.01, None),
            balance_loss=(0.0, None),
            z_loss=(0.0, None),
        )
        check(
            self.hidden_size % self.num_heads == 0,
            f"model.num_heads={self.num_heads} must divide model.hidden_size={self.hidden_size}",
        )
        _check_choices("model", self)
        check(
            self.experts_per_token <= self.num_experts,
            f"model.experts_per_token={self.experts_per_token} is more than model.num_experts={self.num_experts}",
        )
        check(
            self.num_experts == 1 or self.moe_layers,
            f"model.moe_every={self.moe_every} leaves no block with experts: there are {self.num_layers - 1} blocks",
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def ffn_hidden_size(self) -> int:
        return 4 * self.hidden_size

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The blocks with experts; none in a dense model."""
        if self.num_experts == 1:
            return ()
        return tuple(range(self.moe_every - 1, self.num_layers - 1, self.moe_every))

    @property
    def num_parameters(self) -> int:
        """Trainable parameters: embeddings (the output head is tied), layers, the last LayerNorm."""
        return self._parameters(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Active parameters per token: only the experts it is sent to count. In a dense model, all parameters."""
        return self._parameters(self.experts_per_token)

    def _parameters(self, experts: int) -> int:
        hidden = self.hidden_size
        layer = 12 * hidden * hidden + 13 * hidden  # attention 4h²+4h, feed-forward 8h²+5h, two LayerNorms 4h
        expert = 8 * hidden * hidden + 5 * hidden
        embeddings = (self.vocab_size + 2 * self.num_positions) * hidden  # words; positions and queries
        routed = len(self.moe_layers) * ((experts - 1) * expert + hidden * self.num_experts)  # the router's matrix
        return embeddings + self.num_layers * layer + 2 * hidden + routed


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer, and which of its pieces (by name or id) end a document and fill a record.

    Empty fields are taken from the data set, and training writes them into the run's effective configuration; given
    ones must agree with the data set.
    """

    path: str | None = None  # "pangu", or a folder made by `pangu-lab tokenizer train`, or one with GPT-2 files
    eod: str | int | None = None
    pad: str | int | None = None


@dataclass(frozen=True)
class DataConfig:
    """What the model reads. ``batch_size`` counts records over all devices and accumulation steps."""

    path: str = ""
    eval_path: str = ""
    column: str = "input_ids"
    seq_length: int = 1024
    batch_size: int = 16
    eod_reset: bool = True
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_range("data", self, seq_length=(1, None), batch_size=(1, None))
        check(
            self.column.isidentifier(),
            f"data.column={shown(self.column, repr)} must be letters, digits and underscores",
        )


@dataclass(frozen=True)
class TrainConfig:
    """AdamW, warm-up then cosine, clip by global norm, dynamic loss scale; PanGu-α's published settings.

    ``optimizer``: "muon" updates the matrices of the layers by Muon and all else by AdamW. ``schedule``: "wsd" keeps
    the rate after the warm-up, and lowers it linearly to ``end_lr`` over the last ``cooldown`` of the steps.
    """

    steps: int = 1000
    max_minutes: float | None = None  # a time budget: stops cleanly with a checkpoint
    minutes: float | None = None  # the run's whole time: fewer steps are made, so that the rate reaches its end with it
    init_from: str = ""  # start from the weights of this run, checkpoint or converted release
    seed: int = 1
    accumulation: int = 1
    batch_doublings: tuple[int, ...] = ()  # after each of these steps twice as many batches make one step
    optimizer: str = "adamw"
    param_dtype: str = (
        "float32"  # of the layers' matrices; "float16" keeps no fp32 copy of them, as the reference's TYPE
    )
    schedule: str = "cosine"
    cooldown: float = 0.2
    start_lr: float = 1e-4
    end_lr: float = 1e-6
    warmup_steps: int = 2000
    decay_steps: int | None = None  # the step at which end_lr is reached; the last step when not given
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    muon_momentum: float = 0.95
    muon_lr: float = 1.0  # the rate of Muon's matrices, as a multiple of the rate
    clip_norm: float = 1.0
    loss_scale: float = 2.0**32  # only used when model.compute_dtype is float16
    loss_scale_window: int = 1000
    loss_scale_floor: float = 1.0
    log_every: int = 1
    eval_every: int = 100
    eval_batches: int = 16
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    patience: int | None = None  # stop after so many evaluations in a row without a lower held-out loss
    sample_prompts: tuple[str, ...] = ()  # texts that every evaluation continues, to see what the model has learned
    sample_tokens: int = 48
    offload: str = "none"  # "optimizer": Adam's moments and the fp32 weights are kept and updated in host memory
    offload_folder: str | None = None  # keep them in memory-mapped files here, for states larger than memory

    def __post_init__(self) -> None:
        check_range(
            "train",
            self,
            steps=(1, None),
            max_minutes=(0.0, None),
            minutes=(0.0, None),
            accumulation=(1, None),
            start_lr=(0.0, None),
            end_lr=(0.0, None),
            warmup_steps=(0, None),
            decay_steps=(1, None),
            weight_decay=(0.0, None),
            beta1=(0.0, 0.9999999),
            beta2=(0.0, 0.9999999),
            adam_eps=(1e-20, None),
            muon_momentum=(0.0, 0.9999999),
            muon_lr=(0.0, None),
            cooldown=(0.0, 1.0),
            clip_norm=(1e-12, None),
            loss_scale=(1.0, 2.0**40),
            loss_scale_window=(1, None),
            loss_scale_floor=(2.0**-24, None),
            log_every=(1, None),
            eval_every=(1, None),
            eval_batches=(1, None),
            checkpoint_every=(1, None),
            keep_checkpoints=(1, None),
            patience=(1, None),
            sample_tokens=(1, None),
            seed=(0, 2**31 - 1),
        )
        _check_choices("train", self)
        check(all(self.sample_prompts), "train.sample_prompts holds an empty text")
        check(
            self.offload_folder is None or self.offload != "none",
            f"train.offload_folder={self.offload_folder} needs train.offload=optimizer",
        )
        check(
            self.optimizer == "adamw" or self.offload == "none",
            "train.optimizer=muon works on the device: set train.offload=none",
        )
        check(
            self.param_dtype == "float32" or (self.optimizer, self.offload) == ("adamw", "none"),
            "train.param_dtype=float16 goes with train.optimizer=adamw and train.offload=none (which keeps fp32 weights "
            "on the host)",
        )
        doublings = self.batch_doublings
        check(
            all(step >= 1 for step in doublings) and list(doublings) == sorted(set(doublings)) and len(doublings) <= 16,
            f"train.batch_doublings={list(doublings)} must be steps from 1 in rising order, at most 16",
        )


@dataclass(frozen=True)
class ParallelConfig:
    """How many devices share the work, and along which dimensions. All ones: a single process."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batches: int = 1
    # true or "states": slice the optimizer's states over the data dimension; "parameters": weights and gradients too
    optimizer: bool | str = False
    recompute: bool = False  # keep only each layer's input for the backward pass
    sequence: bool = False  # split the work between tensor-parallel products along the rows instead of repeating it
    expert: int = 1  # the reference's expert_parallel_num: the number of data ranks that share the experts
    all_to_all: bool = False  # send each token only to its expert's rank, instead of gathering all on every rank

    def __post_init__(self) -> None:
        check_range(
            "parallel",
            self,
            data=(1, None),
            tensor=(1, None),
            pipeline=(1, None),
            micro_batches=(1, None),
            expert=(1, None),
        )
        check(
            self.data % self.expert == 0,
            f"parallel.expert={self.expert} must divide parallel.data={self.data}: experts are spread over data ranks",
        )
        plain = {"off": False, "states": True}.get(self.optimizer, self.optimizer)
        check(
            plain in (True, False, "parameters"),
            f"parallel.optimizer={self.optimizer!r} must be off (false), states (true) or parameters"
            + nearest(str(self.optimizer), SLICES),
        )
        object.__setattr__(self, "optimizer", plain)

    @property
    def slices_parameters(self) -> bool:
        return self.optimizer == "parameters"

    @property
    def world_size(self) -> int:
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. ``temperature`` 0 is greedy; None switches a sampler off.

    ``logit_bias`` holds (id, number) pairs and may be given as a dictionary. ``num_beams`` above 1 is a search for
    the likeliest text: bans and penalties hold, temperature and the samplers are not used. ``logprobs`` asks for
    the logarithm of each token's probability and of that many alternatives.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()  # besides the end of document, which always stops
    bad_words: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0  # a beam's score is its log-probability / length ** length_penalty
    logprobs: int | None = None
    echo: bool = False  # put the prompt before the completion's text
    seed: int | None = None  # None: a random one each time, reported in the completion

    def __post_init__(self) -> None:
        self._tuples()
        for name, (low, high) in SAMPLING_RANGES.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number(f"sampling.{name}", value, low, high))
        check(
            self.num_beams == 1 or self.num_return_sequences <= self.num_beams,
            f"sampling.num_return_sequences={self.num_return_sequences} is more than "
            f"sampling.num_beams={self.num_beams}: a beam search returns at most its beams",
        )
        for name in ("stop", "bad_words"):
            check(all(isinstance(text, str) for text in getattr(self, name)), f"sampling.{name} must hold texts")
            check(all(getattr(self, name)), f"sampling.{name} holds an empty text, which matches everywhere")
        check(self.top_p is None or self.top_p > 0, "sampling.top_p=0 leaves no token: give a number above 0, up to 1")
        check(
            self.min_new_tokens <= self.max_new_tokens,
            f"sampling.min_new_tokens={self.min_new_tokens} is more than sampling.max_new_tokens={self.max_new_tokens}",
        )

    def _tuples(self) -> None:
        """Convert a single text, a list, or a dictionary to the tuple it stands for."""
        for name in ("stop", "stop_ids", "bad_words"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, (str, int)) else tuple(value))
        ids = tuple(number("sampling.stop_ids", index, *ANY_ID) for index in self.stop_ids)
        object.__setattr__(self, "stop_ids", ids)
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, dict) else self.logit_bias
        check(
            all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs),
            "sampling.logit_bias must hold pairs of a token id and a number",
        )
        object.__setattr__(
            self,
            "logit_bias",
            tuple(
                (
                    number("sampling.logit_bias: token", index, *ANY_ID),
                    number(f"sampling.logit_bias of token {shown(index)}", bias, -100.0, 100.0),
                )
                for index, bias in pairs
            ),
        )


# Inclusive; integers where the bounds are. Generous: a value beyond a bound has the same effect as the bound
# (temperature 100 samples all tokens alike, a penalty of 10 or a bias of 100 outweighs any logit of a trained
# model), and within the bounds every step of the chain stays finite in fp32.
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (0, LARGEST_COUNT),
    "min_new_tokens": (0, LARGEST_COUNT),
    "temperature": (0.0, 100.0),
    "top_k": (1, LARGEST_COUNT),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-10.0, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "repetition_penalty": (0.01, 100.0),
    "no_repeat_ngram": (1, LARGEST_COUNT),
    "num_return_sequences": (1, 128),
    "num_beams": (1, 64),
    "length_penalty": (-10.0, 10.0),
    "logprobs": (0, 100),
    "seed": (0, 2**63 - 1),
}
# What a slider offers of a setting: the lowest, the highest, the step, and the end that stands for None, which is off.
SLIDERS: dict[str, tuple[float, float, float, float | None]] = {
    "temperature": (0, 2, 0.05, None),
    "top_k": (0, 50, 1, 0),
    "top_p": (0.05, 1, 0.01, 1),
    "min_p": (0, 0.5, 0.01, 0),
    "repetition_penalty": (1, 2, 0.05, None),
}
ANY_ID = (-LARGEST_COUNT, LARGEST_COUNT)  # the vocabulary size is known only later (sampling.check_ids)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run, complete: the content of ``runs/NAME/config.yaml``."""

    preset: str = "self_define"
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        check(
            self.data.seq_length <= self.model.num_positions,
            f"data.seq_length={self.data.seq_length} is longer than "
            f"model.num_positions={self.model.num_positions}: shorten the first or raise the second",
        )
        for key in ("eod", "pad"):
            value = getattr(self.tokenizer, key)
            check(
                not isinstance(value, int) or 0 <= value < self.model.vocab_size,
                f"tokenizer.{key}={value} is outside the vocabulary: "
                f"model.vocab_size={self.model.vocab_size} allows 0 to {self.model.vocab_size - 1}",
            )
        self._check_batch()
        self._check_experts()
        check(
            self.train.offload == "none" or not self.parallel.slices_parameters,
            "train.offload does not go together with parallel.optimizer=parameters: take parallel.optimizer=states",
        )
        check(
            self.train.param_dtype in ("float32", self.model.compute_dtype),
            "train.param_dtype=float16 is for products in fp16: set model.compute_dtype=float16",
        )

    def _check_experts(self) -> None:
        experts, parallel = self.model.num_experts, self.parallel
        dense = "needs a mixture of experts: set model.num_experts above 1"
        check(experts > 1 or not parallel.all_to_all, f"parallel.all_to_all {dense}")
        check(experts > 1 or parallel.expert == 1, f"parallel.expert={parallel.expert} {dense}")
        for key, value in (("sequence", parallel.sequence), ("optimizer=parameters", parallel.slices_parameters)):
            check(
                experts == 1 or not value,
                f"parallel.{key} does not go together with experts: leave it out, or set model.num_experts=1",
            )
        check(
            experts % parallel.expert == 0, f"parallel.expert={parallel.expert} must divide model.num_experts={experts}"
        )

    def _check_batch(self) -> None:
        parts = self.train.accumulation * self.parallel.data * self.parallel.micro_batches
        check(
            self.data.batch_size % parts == 0,
            f"data.batch_size={self.data.batch_size} must be a multiple of {parts} = train.accumulation × "
            f"parallel.data × parallel.micro_batches",
        )

    def replace(self, **overrides: Any) -> RunConfig:
        """A copy with dotted keys changed: ``config.replace(**{"train.steps": 10})``."""
        return apply_overrides(self, overrides)

    def with_absolute_paths(self) -> RunConfig:
        """A copy whose paths mean the same from every folder: a run keeps this one, so that it resumes from anywhere.

        Absolute, and not relative to the run: data sets and runs are rarely moved together.
        """
        given = {key: _value(self, key) for key in PATHS}
        names = ("pangu", *shipped_names())  # of what comes with the lab
        return self.replace(
            **{
                key: os.path.abspath(path)
                for key, path in given.items()
                if path and (path not in names or os.path.exists(path))
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, in the order of the fields."""
        return _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        return yaml.dump(self.to_dict(), Dumper=_Dumper, allow_unicode=True, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Escapes the rare line breaks that YAML would otherwise read back as spaces."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if any(letter in text for letter in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# ---------------------------------------------------------------------------------- from plain values and text


def config_from_dict(values: dict[str, Any], base: RunConfig | None = None) -> RunConfig:
    """A ``RunConfig`` from nested plain values; missing keys keep the value of ``base`` (or the default).

    Raises:
        InputError: a key is unknown, a value has the wrong type, or a combination cannot work.
    """
    flat: dict[str, Any] = {}
    for section, content in values.items():
        check(isinstance(section, str), f"unknown setting '{shown(section)}'")
        if isinstance(content, dict):
            flat.update({f"{section}.{key}": value for key, value in content.items()})
        else:
            flat[section] = content
    return apply_overrides(base or RunConfig(), flat)


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """``["train.steps=10"]`` → ``{"train.steps": 10}``; values are read as YAML."""
    result = {}
    for item in items:
        key, equals, text = item.partition("=")
        check(bool(equals) and bool(key.strip()), f"--set {item}: write it as section.key=value")
        result[key.strip()] = parse_yaml(text, f"--set {key.strip()}={shown(text)}")
    return result


def apply_overrides(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """Apply dotted keys to ``config``; all of them at once, so the order of the keys does not matter."""
    changed: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    sections = {item.name for item in dataclasses.fields(config)} - {"preset"}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if key == "preset":
            top["preset"] = str(value)
            continue
        check(section in sections and bool(name), _unknown_key(config, key))
        current = getattr(config, section)
        hints = typing.get_type_hints(type(current))
        check(name in hints, _unknown_key(config, key))
        changed.setdefault(section, {})[name] = convert(key, value, hints[name])
    for section, values in changed.items():
        top[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **top)


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def all_keys(config: RunConfig | None = None) -> list[str]:
    """All dotted keys, in order."""
    config = config or RunConfig()
    return [
        f"{section.name}.{item.name}"
        for section in dataclasses.fields(config)
        if section.name != "preset"
        for item in dataclasses.fields(getattr(config, section.name))
    ]


def _unknown_key(config: RunConfig, key: str) -> str:
    known = all_keys(config)
    by_last_part = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f" (did you mean '{by_last_part[0]}'?)" if by_last_part else nearest(key, known)
    return f"unknown setting '{shown(key)}'{hint}"
