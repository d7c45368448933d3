"""Named configurations: small ones that run on a laptop, and the published sizes of PanGu-α.

Each preset is a function that returns a complete ``RunConfig``; what it changes is its reason for being there.
Sizes are named by their true parameter count, but for one: the reference ships a configuration called "1.3B" that holds
0.245 billion parameters; here that is ``0.26B``, the name it goes by, and ``reference-1.3B`` is its alias.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_lab.config import DataConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig, all_keys, config_from_dict
from pangu_lab.errors import InputError, nearest
from pangu_lab.ranges import shown
from pangu_lab.reading import read_yaml


def debug() -> RunConfig:
    """Compiles in seconds; what the tests use."""
    return RunConfig(
        preset="debug",
        model=ModelConfig(
            vocab_size=512, num_positions=64, hidden_size=32, num_layers=4, num_heads=4, dropout_rate=0.0
        ),
        data=DataConfig(seq_length=64, batch_size=4),
        train=TrainConfig(
            steps=20, start_lr=3e-3, end_lr=3e-4, warmup_steps=4, eval_every=10, eval_batches=2, checkpoint_every=10
        ),
    )


def tiny() -> RunConfig:
    """Learns the shipped sample in about three minutes on two cores."""
    return RunConfig(
        preset="tiny",
        model=ModelConfig(
            vocab_size=2560,
            num_positions=128,
            hidden_size=192,
            num_layers=4,
            num_heads=6,
            hidden_act="fast_gelu",
            dropout_rate=0.1,
        ),
        data=DataConfig(seq_length=128, batch_size=16),
        # at first all tokens share one vector, which holds the frequencies of the pieces; with 2e-3 after 30 steps of
        # warm-up it grew so fast that it broke down at step 25 in one step (loss 8.13, gradient norm 119)
        train=TrainConfig(
            steps=300,
            start_lr=1e-3,
            end_lr=1e-4,
            warmup_steps=100,
            eval_every=50,
            eval_batches=8,
            checkpoint_every=100,
            log_every=1,
        ),
    )


def small() -> RunConfig:
    """An evening on a laptop with a few megabytes of text; the yardstick of the benchmarks."""
    return RunConfig(
        preset="small",
        model=ModelConfig(
            vocab_size=8000,
            num_positions=256,
            hidden_size=384,
            num_layers=6,
            num_heads=6,
            hidden_act="fast_gelu",
            dropout_rate=0.0,
        ),
        data=DataConfig(seq_length=256, batch_size=12),
        train=TrainConfig(steps=4000, start_lr=6e-4, end_lr=6e-5, warmup_steps=200, eval_every=200),
    )


def verse() -> RunConfig:
    """Writes regulated verse that rhymes after an hour on two cores; the model that comes with the lab (``make verse``).

    One token is one character. Muon reaches the loss of AdamW's 300th step (rate 3e-3) at step 110; the rate stays until
    the last fifth of the steps, so that a run can be made longer or shorter while it goes on. Form and tones are there
    after 1,400 steps, when 3.5 % of the poems rhyme; after 3,000 steps 79 % do.
    """
    return RunConfig(
        preset="verse",
        model=ModelConfig(
            vocab_size=6000,
            num_positions=128,
            hidden_size=256,
            num_layers=4,
            num_heads=4,
            hidden_act="fast_gelu",
            dropout_rate=0.0,
        ),
        data=DataConfig(seq_length=128, batch_size=32),
        train=TrainConfig(
            steps=3000,
            optimizer="muon",
            schedule="wsd",
            start_lr=1e-2,
            end_lr=0.0,
            warmup_steps=50,
            eval_every=200,
            eval_batches=20,
            checkpoint_every=200,
            log_every=10,
        ),
    )


def debug_moe() -> RunConfig:
    """The debug preset with two experts of four for every token of its second block."""
    return debug().replace(
        **{"preset": "debug_moe", "model.num_experts": 4, "model.moe_every": 2, "model.experts_per_token": 2}
    )


def tiny_moe() -> RunConfig:
    """The tiny preset with eight experts in each block: a token costs what it costs there, the model knows more."""
    return tiny().replace(**{"preset": "tiny_moe", "model.num_experts": 8})


def _published(
    name: str,
    hidden: int,
    layers: int,
    heads: int,
    lr: float = 1e-4,
    parallel: ParallelConfig = ParallelConfig(),
    batch: int = 16,
) -> RunConfig:
    """Vocabulary 40000, sequence 1024, fp16 with a dynamic loss scale, as all published sizes were trained."""
    return RunConfig(
        preset=name,
        model=ModelConfig(hidden_size=hidden, num_layers=layers, num_heads=heads, compute_dtype="float16"),
        data=DataConfig(batch_size=batch),
        train=TrainConfig(steps=100_000, start_lr=lr, end_lr=lr / 100, checkpoint_every=1000),
        parallel=parallel,
    )


def size_350m() -> RunConfig:
    """The smallest release."""
    return _published("350M", 1024, 24, 16)


def size_026b() -> RunConfig:
    """What the reference calls "1.3B"."""
    return _published("0.26B", 1024, 16, 32)


def size_13b_true() -> RunConfig:
    """A configuration that does hold 1.3 billion parameters."""
    return _published("1.3B", 2048, 24, 16)


def size_26b() -> RunConfig:
    """The 2.6B release."""
    return _published("2.6B", 2560, 32, 32)


def size_26b_moe36() -> RunConfig:
    """60 billion parameters from the 2.6B configuration: 36 experts in every block, 8 devices, states on the host."""
    base = _published("2.6B_moe36", 2560, 32, 32, parallel=ParallelConfig(tensor=8), batch=2)
    return base.replace(
        **{
            "model.num_experts": 36,
            "model.capacity_factor": 1.1,
            "model.balance_loss": 0.05,
            "train.offload": "optimizer",
        }
    )


def size_13b() -> RunConfig:
    """The 13B release; needs at least 16 devices of 32 GB to train."""
    return _published("13B", 5120, 40, 40, lr=5e-5, parallel=ParallelConfig(data=2, tensor=8, optimizer=True))


def size_200b() -> RunConfig:
    """The largest size of the paper: 16 pipeline stages × 8 tensor × 16 data on 2048 devices."""
    return _published(
        "200B",
        16384,
        64,
        128,
        lr=2e-5,
        batch=1024,
        parallel=ParallelConfig(data=16, tensor=8, pipeline=16, micro_batches=64, optimizer=True),
    )


def self_define() -> RunConfig:
    """The plain defaults, for configurations that name every size themselves."""
    return RunConfig()


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "debug": debug,
    "tiny": tiny,
    "small": small,
    "verse": verse,
    "debug_moe": debug_moe,
    "tiny_moe": tiny_moe,
    "350M": size_350m,
    "0.26B": size_026b,
    "1.3B": size_13b_true,
    "2.6B": size_26b,
    "2.6B_moe36": size_26b_moe36,
    "13B": size_13b,
    "200B": size_200b,
    "self_define": self_define,
}

ALIASES = {"reference-1.3B": "0.26B"}


def preset(name: str) -> RunConfig:
    """The preset called ``name`` (or an alias of it).

    Raises:
        InputError: there is none of that name.
    """
    known = ALIASES.get(name, name)
    if known not in PRESETS:
        raise InputError(f"unknown preset '{shown(name)}'{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[known]()


def describe(name: str) -> str:
    """One line: sizes and the true parameter count, and what an alias really stands for."""
    config = preset(name)
    model = config.model
    line = (
        f"{config.preset}: {model.num_layers} layers × {model.hidden_size}, {model.num_heads} heads, "
        f"vocabulary {model.vocab_size}, {model.num_parameters:,} parameters"
    )
    if model.moe_layers:
        line += (
            f" ({model.num_experts} experts in {len(model.moe_layers)} of {model.num_layers - 1} blocks, "
            f"{model.active_parameters:,} active for a token)"
        )
    if name in ALIASES:
        line += " (the reference calls this configuration '1.3B')"
    return line


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted keys in which ``config`` differs from the preset it names, with their values."""
    base = preset(config.preset) if config.preset in PRESETS else RunConfig()
    ours, theirs = config.to_dict(), base.to_dict()
    pairs = (key.split(".") for key in all_keys(config))
    return {
        f"{section}.{name}": ours[section][name]
        for section, name in pairs
        if ours[section][name] != theirs[section][name]
    }


def load_yaml(path: Path | str, base: RunConfig | None = None) -> RunConfig:
    """Read a configuration file. Its ``preset`` key, when there, chooses what the other keys are laid over."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such configuration file")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold sections such as 'model:' and 'train:'")
    if base is None and "preset" in values:
        base = preset(str(values["preset"]))
    return config_from_dict(values, base)
