"""Translates launches of the reference implementation into this project's commands, argument by argument.

The reference trains, predicts, evaluates and exports with shell scripts that take positional arguments. ``LAUNCHES`` names their arguments in
order, ``ARGUMENTS`` maps each one, and ``translate`` turns a script's name and arguments into the command of this
project. The tables in the guide and in notebook 04 are made from these, and a test dry-runs every command they show,
so they stay correct.

Source: mindspore-ai/models, official/nlp/Pangu_alpha, its scripts, configuration and README. Settings that its training
script chooses for each size (tensor parallelism over 8 devices, sharded optimizer states, recomputation; for 200B also
stages, micro-batches and rates) are explicit here.
"""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError, nearest
from pangu_lab.planner import plan
from pangu_lab.presets import preset
from pangu_lab.ranges import shown

WEIGHTS = "WEIGHTS"  # where converted weights go in the commands shown
TENSOR = 8  # the reference's op_level_model_parallel_num for every size that trains with sharded optimizer states
ASCEND = (
    "DATASET",
    "RANK_TABLE",
    "RANK_SIZE",
    "TYPE",
    "MODE",
    "STAGE_NUM",
    "MICRO_SIZE",
    "PER_BATCH",
    "RANK_START",
    "LOCAL_DEVICE_NUM",
)
SOURCE = ("STRATEGY", "TOKENIZER", "CKPT_PATH", "CKPT_NAME", "MODE")
FROM_0 = ("RANK_START", "ENABLE_ALLTOALL")  # the other numbers count something, from 1 on
EXPORTED = 8  # ranks of the reference's distributed export
TRAINED = {
    "200B": {"parallel.pipeline": 16, "parallel.micro_batches": 32, "train.start_lr": 6e-5, "train.end_lr": 6e-6},
    "13B": {"train.start_lr": 5e-5, "train.end_lr": 1e-6},
}  # whatever the arguments say
PREDICTED = {"200B": 4}  # pipeline stages in prediction, evaluation and serving; one for the other sizes
HALF = "fp16"  # a TYPE


@dataclass(frozen=True)
class ReferenceLaunch:
    """A script of the reference: its arguments in order, how many of them may be left out, and an example."""

    script: str
    arguments: tuple[str, ...]
    example: str
    optional: int = 0


LAUNCHES = {
    item.script: item
    for item in (
        ReferenceLaunch("run_distribute_train", ASCEND, "DATASET hccl.json 8 fp32 2.6B 1 1 8 0 8"),
        ReferenceLaunch(
            "run_distribute_train_gpu",
            ("RANK_SIZE", "HOSTFILE", "DATASET", "PER_BATCH", "MODE"),
            "16 hosts DATASET 16 2.6B",
        ),
        ReferenceLaunch(
            "run_distribute_train_moe",
            (*ASCEND, "EXPERT_NUM_PER_EP", "ENABLE_ALLTOALL", "EXPERT_PARALLEL_NUM"),
            "DATASET hccl.json 16 fp32 2.6B 1 1 2 0 8 4 1 2",
            optional=1,
        ),
        ReferenceLaunch(
            "run_distribute_train_moe_host_device",
            (*ASCEND, "EXPERT_NUM_PER_EP", "ENABLE_ALLTOALL"),
            "DATASET hccl.json 8 fp32 2.6B 1 1 2 0 8 36 0",
        ),
        ReferenceLaunch(
            "run_distribute_incremental_train",
            ("DATASET", "RANK_TABLE", "RANK_SIZE", "TYPE", "MODE", "PER_BATCH", "STRATEGY", "CKPT_PATH", "CKPT_NAME"),
            "DATASET hccl.json 8 fp32 2.6B 8 STRATEGY.ckpt CKPT_PATH filerted",
        ),
        ReferenceLaunch(
            "run_distribute_train_auto_parallel",
            (*ASCEND, "SEARCH_MODE"),
            "DATASET hccl.json 8 fp16 2.6B 1 1 16 0 8 recursive_programming",
            optional=1,
        ),
        ReferenceLaunch(
            "run_standalone_predict",
            (*SOURCE, "DEVICE_TARGET"),
            "STRATEGY.ckpt TOKENIZER CKPT_PATH filitered 2.6B Ascend",
        ),
        ReferenceLaunch(
            "run_distribute_predict",
            ("RANK_SIZE", "RANK_TABLE", *SOURCE, "TYPE"),
            "8 hccl.json STRATEGY.ckpt TOKENIZER CKPT_PATH filitered 2.6B fp32",
        ),
        ReferenceLaunch(
            "run_standalone_eval",
            (*SOURCE, "DEVICE_TARGET", "TASK", "TASK_PATH"),
            "STRATEGY.ckpt TOKENIZER CKPT_PATH filitered 2.6B Ascend c3 C3",
        ),
        ReferenceLaunch(
            "run_distribute_eval",
            ("RANK_SIZE", "RANK_TABLE", "STRATEGY", "TOKENIZER", "CKPT_PATH", "MODE", "TYPE", "TASK", "TASK_PATH"),
            "8 hccl.json STRATEGY.ckpt TOKENIZER CKPT_PATH 13B fp32 c3 C3",
        ),
        ReferenceLaunch(
            "run_standalone_export",
            ("STRATEGY", "CKPT_PATH", "MODE", "DEVICE_TARGET", "TASK"),
            "STRATEGY.ckpt CKPT_PATH 2.6B Ascend c3",
            optional=3,
        ),
        ReferenceLaunch(
            "run_distribute_export", ("STRATEGY", "CKPT_PATH", "TASK"), "STRATEGY.ckpt CKPT_PATH", optional=1
        ),
        ReferenceLaunch(
            "run_cluster_export",
            ("STRATEGY", "CKPT_PATH", "RANK_TABLE", "RANK_SIZE", "RANK_START"),
            "STRATEGY.ckpt CKPT_PATH hccl.json 16 8",
        ),
    )
}

# argument → its counterpart here, in English and Chinese
ARGUMENTS: dict[str, tuple[str, str]] = {
    "DATASET": ("`--data DIR`, made by `pangu-lab prepare`", "`--data DIR`，由 `pangu-lab prepare` 生成"),
    "RANK_TABLE": (
        "`--rank-table FILE`, made by `pangu-lab ranktable`",
        "`--rank-table FILE`，由 `pangu-lab ranktable` 生成",
    ),
    "HOSTFILE": ("`--backend mpirun --hosts FILE`", "`--backend mpirun --hosts FILE`"),
    "RANK_SIZE": (
        "`parallel.data` = RANK_SIZE / stages / tensor; must agree with the rank table or the hosts",
        "`parallel.data` = RANK_SIZE / 流水级数 / 张量并行数；须与 rank table 或主机文件一致",
    ),
    "TYPE": (
        "`--dtype` of `generate` and `serve` (in one process float16 where the weights are stored so); in training "
        "`train.param_dtype`: the matrices of the layers, with fp32 states and no fp32 copy",
        "`generate` 和 `serve` 用 `--dtype`（单进程且权重以 float16 保存时默认如此）；训练用 `train.param_dtype`："
        "各层矩阵为 fp16，优化器状态为 fp32，不另存 fp32 权重",
    ),
    "MODE": (
        "`--preset MODE`; its `1.3B` is `reference-1.3B` here; 200B predicts and evaluates in 4 stages, `--pipeline 4`",
        "`--preset MODE`；其 `1.3B` 在此名为 `reference-1.3B`；200B 预测和评测分 4 级，即 `--pipeline 4`",
    ),
    "STAGE_NUM": (
        "`parallel.pipeline`; of `generate`, `evaluate`, `export` and `serve` `--pipeline`",
        "`parallel.pipeline`；`generate`、`evaluate`、`export`、`serve` 用 `--pipeline`",
    ),
    "MICRO_SIZE": ("`parallel.micro_batches`", "`parallel.micro_batches`"),
    "PER_BATCH": (
        "`data.batch_size` = PER_BATCH × data ranks × micro-batches (here it counts the whole step)",
        "`data.batch_size` = PER_BATCH × 数据并行数 × 微批数（此处按整步计）",
    ),
    "RANK_START": (
        "`--node-rank` = RANK_START / LOCAL_DEVICE_NUM; of an export `--rank-start`",
        "`--node-rank` = RANK_START / LOCAL_DEVICE_NUM；导出时为 `--rank-start`",
    ),
    "LOCAL_DEVICE_NUM": ("the rank table says it", "由 rank table 给出"),
    "EXPERT_NUM_PER_EP": (
        "`model.num_experts` = EXPERT_NUM_PER_EP × EXPERT_PARALLEL_NUM",
        "`model.num_experts` = EXPERT_NUM_PER_EP × EXPERT_PARALLEL_NUM",
    ),
    "ENABLE_ALLTOALL": ("`parallel.all_to_all`", "`parallel.all_to_all`"),
    "EXPERT_PARALLEL_NUM": ("`parallel.expert`", "`parallel.expert`"),
    "STRATEGY": (
        "`convert --strategy FILE`; found by itself beside the files",
        "`convert --strategy FILE`；在文件旁时自动找到",
    ),
    "CKPT_PATH": (
        "`convert --from PATH`, once; then `--init-from DIR`, or `--from DIR`",
        "先用 `convert --from PATH` 转换一次，再 `--init-from DIR` 或 `--from DIR`",
    ),
    "CKPT_NAME": ("recognised", "自动识别"),
    "SEARCH_MODE": (
        "`pangu-lab plan` searches, before the launch and on any machine; the command has what it found",
        "由 `pangu-lab plan` 在启动前搜索，任何机器均可；命令中是其结果",
    ),
    "TOKENIZER": (
        "`convert --tokenizer DIR`: it is kept with the weights",
        "`convert --tokenizer DIR`：与权重保存在一起",
    ),
    "DEVICE_TARGET": ("no counterpart: the device that MindSpore finds", "无对应项：使用 MindSpore 找到的设备"),
    "TASK": (
        "`evaluate TASK`; for an export nothing: a bundle generates and scores",
        "`evaluate TASK`；导出时无需给出：导出包既能生成也能打分",
    ),
    "TASK_PATH": ("`--data PATH`", "`--data PATH`"),
}


def translate(script: str, arguments: Sequence[str]) -> list[str]:
    """The command of this project for a launch of the reference.

    Args:
        script: its name, such as "run_distribute_train" (with or without ".sh").
        arguments: what was given to it, in its order.

    Raises:
        InputError: there is no such script, or its arguments do not go together.
    """
    launch = _launch(script)
    least = len(launch.arguments) - launch.optional
    if not least <= len(arguments) <= len(launch.arguments):
        number_of = f"{least} to {len(launch.arguments)}" if launch.optional else str(least)
        raise InputError(
            f"{launch.script} takes {number_of} arguments ({' '.join(launch.arguments)}), not {len(arguments)}"
        )
    given = dict(zip(launch.arguments, arguments))
    kind = launch.script.removeprefix("run_").partition("_")[2]
    for name, make in (("predict", _predict), ("eval", _evaluate), ("export", _export)):
        if kind == name:
            return make(launch.script, given)
    words = ["pangu-lab", "launch", "--preset", _preset(given["MODE"]), *_where(given), "--data", given["DATASET"]]
    if "CKPT_PATH" in given:
        words += ["--init-from", WEIGHTS]
    settings = _settings(launch.script, given)
    return [*words, "--run", "DIR", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def _predict(script: str, given: Mapping[str, str]) -> list[str]:
    half = ["--dtype", "float16"] if given.get("TYPE") == HALF else []
    return ["pangu-lab", "generate", "--from", WEIGHTS, *_ranks(given), *half, "--prompt", "TEXT"]


def _evaluate(script: str, given: Mapping[str, str]) -> list[str]:
    return ["pangu-lab", "evaluate", given["TASK"], "--from", WEIGHTS, *_ranks(given), "--data", given["TASK_PATH"]]


def _ranks(given: Mapping[str, str]) -> list[str]:
    """The options that name the processes of a prediction, if there are several, and the stages that they form."""
    if "RANK_TABLE" not in given:
        return []
    stages, ranks = PREDICTED.get(given["MODE"], 1), number(given, "RANK_SIZE", 1)
    if ranks % stages:
        raise InputError(
            f"RANK_SIZE={ranks} must be a multiple of {stages}, the pipeline stages of the reference's {given['MODE']} "
            "in prediction"
        )
    return ["--rank-table", given["RANK_TABLE"], *(["--pipeline", str(stages)] if stages > 1 else [])]


def _export(script: str, given: Mapping[str, str]) -> list[str]:
    words = ["pangu-lab", "export", "--from", WEIGHTS, "--out", "BUNDLE"]
    if "distribute" in script:
        words += ["--tensor-parallel", str(EXPORTED)]
    if "cluster" in script:
        ranks, first = number(given, "RANK_SIZE", EXPORTED), number(given, "RANK_START", 0)
        if first >= ranks:
            raise InputError(f"RANK_START={first} must be below RANK_SIZE={ranks}")
        words += [
            "--tensor-parallel",
            str(ranks),
            "--rank-start",
            str(first),
            "--ranks",
            str(min(EXPORTED, ranks - first)),
        ]
    return words


def before(script: str, arguments: Sequence[str]) -> list[str]:
    """The command to run before ``translate``'s, if any: it converts weights or searches for a layout."""
    launch = _launch(script)
    given = dict(zip(launch.arguments, arguments))
    if "CKPT_PATH" in given:
        tokenizer = ["--tokenizer", given["TOKENIZER"]] if "TOKENIZER" in given else []
        return [
            "pangu-lab",
            "convert",
            "--from",
            given["CKPT_PATH"],
            "--strategy",
            given["STRATEGY"],
            *tokenizer,
            "--out",
            WEIGHTS,
        ]
    if launch.script.endswith("auto_parallel"):
        settings = reversed(translate(script, arguments))
        batch = next(word for word in settings if word.startswith("data.batch_size=")).partition("=")[2]
        return [
            "pangu-lab",
            "plan",
            "--preset",
            _preset(given["MODE"]),
            "--devices",
            given["RANK_SIZE"],
            "--batch",
            batch,
        ]
    return []


BEFORE = re.compile(r"(?:\S*/)?(?:bash|sh|python|python3|nohup|export|\$)|-[a-z]|[A-Za-z_]+=\S*")  # the script's name
LONGEST = 20_000  # characters; shlex takes the square of them
SHELLS = re.compile(r"[0-9]?&?>.*|<.*|&&?|\|\|?|\S*;|#.*")


def translated_line(line: str) -> list[str]:
    """The commands for a line as one pastes it: ``bash scripts/run_distribute_train.sh DATASET …``.

    Variables such as ``${FILE_PATH}`` stay as they are. Also the reference's preprocessing, its evaluation through a
    server, and the start and stop of its server.

    Raises:
        InputError: it is none of the reference's.
    """
    if len(line) > LONGEST:
        raise InputError(
            f"this line has {len(line)} characters: paste one line of the reference, a script and its arguments"
        )
    try:
        words = shlex.split(re.sub(r"\\[ \t]*\r?\n", " ", line))
    except ValueError as error:
        raise InputError(f"cannot read this line ({error}): paste it as it would be typed") from None
    words = list(itertools.dropwhile(BEFORE.fullmatch, words))
    if shells := [word for word in words if SHELLS.fullmatch(word)]:
        raise InputError(
            f"'{shown(shells[0])}' is for the shell: paste one script and its arguments, without what follows"
        )
    if not words:
        raise InputError("paste a line of the reference, such as 'bash scripts/run_distribute_train.sh DATASET …'")
    name = Path(words[0]).name.removesuffix(".sh").removesuffix(".py")
    if name in OTHERS:
        return [_typed(OTHERS[name](words[1:]))]
    return [_typed(command) for command in (before(words[0], words[1:]), translate(words[0], words[1:])) if command]


def _typed(words: Sequence[str]) -> str:
    """The words as one line; variables stay what they are to a shell."""
    return " ".join(
        word
        if re.fullmatch(r"(?:~/)?[\w@%+=:,./${}-]+", word)
        else f'"{word}"'
        if "$" in word and re.fullmatch(r"[\w@%+=:,./${} -]+", word)
        else shlex.quote(word)
        for word in words
    )


def _options(words: Sequence[str]) -> dict[str, str]:
    """``--name value``, ``--name=value`` and bare ``--name``, by name."""
    found, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = value
        elif name:
            found[name] = word
    return found


def _preprocess(words: Sequence[str]) -> list[str]:
    given = _options(words)
    tokenizer = "pangu" if given.get("tokenizer") == "jieba" else given.get("vocab_file", "VOCABULARY")
    return [
        "pangu-lab",
        "prepare",
        "--input",
        given.get("input_glob", "data/*.txt"),
        "--tokenizer",
        tokenizer,
        "--eod",
        given.get("eot", "6"),
        "--seq-length",
        given.get("seq_length", "1025"),
        "--column",
        given.get("data_column_name", "input_ids"),
        "--out",
        given.get("output_file", "output"),
    ]


def _client(words: Sequence[str]) -> list[str]:
    given = _options(words)
    if "stage_num" in given and "device_num" in given:
        return [
            "pangu-lab",
            "generate",
            "--from",
            WEIGHTS,
            "--nproc",
            str(number(given, "device_num", 1)),
            "--pipeline",
            str(number(given, "stage_num", 1)),
            "--prompt",
            "TEXT",
        ]
    if "enable_client" not in given:
        raise InputError(
            "predict.py is started by the reference's scripts: paste the line of the script, or one with "
            "--enable_client"
        )
    return [
        "pangu-lab",
        "evaluate",
        given.get("eval_task", "c3"),
        "--server",
        "http://127.0.0.1:7860",
        "--tokenizer",
        given.get("tokenizer_path", "pangu"),
        "--data",
        given.get("eval_data_url", "C3"),
    ]


OTHERS = {
    "src.preprocess": _preprocess,
    "preprocess": _preprocess,
    "predict": _client,
    "start_pangu_standalone": lambda words: ["pangu-lab", "serve", "--from", "BUNDLE", "--pid-file", "serve.pid"],
    "start_pangu_distributed": lambda words: [
        "pangu-lab",
        "serve",
        "--from",
        "BUNDLE",
        "--rank-table",
        "hccl.json",
        "--pid-file",
        "serve.pid",
    ],
    "serving_agent": lambda words: [
        "pangu-lab",
        "serve",
        "--agent",
        "--from",
        "BUNDLE",
        "--rank-table",
        "hccl.json",
        "--node-rank",
        "1",
    ],
    "stop_pangu": lambda words: ["pangu-lab", "serve", "--stop", "--pid-file", "serve.pid"],
}


def _launch(script: str) -> ReferenceLaunch:
    name = Path(script).name.removesuffix(".sh").replace("run_distributed", "run_distribute")
    if name not in LAUNCHES:
        raise InputError(f"unknown script '{shown(script)}'{nearest(name, LAUNCHES)}; there are {', '.join(LAUNCHES)}")
    return LAUNCHES[name]


def _preset(mode: str) -> str:
    name = "reference-1.3B" if mode == "1.3B" else mode
    preset(name)  # refuses an unknown name
    return name


def _where(given: Mapping[str, str]) -> list[str]:
    """The options that name the machines, and which of them this one is."""
    if "HOSTFILE" in given:
        return ["--backend", "mpirun", "--hosts", given["HOSTFILE"]]
    node = number(given, "RANK_START", 0) // max(1, number(given, "LOCAL_DEVICE_NUM", 1))
    return ["--rank-table", given["RANK_TABLE"], "--node-rank", str(node)]


def number(given: Mapping[str, str], name: str, otherwise: int) -> int:
    """The whole number given for an argument, or ``otherwise`` where the script has no such argument."""
    text = given.get(name, str(otherwise))
    least = 0 if name in FROM_0 else 1
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise InputError(f"{name}={shown(text)} must be a whole number from {least} on")
    return int(text)


def _settings(script: str, given: Mapping[str, str]) -> dict[str, str]:
    """Settings by dotted key, without those that the preset has already."""
    fixed = TRAINED.get(given["MODE"], {})
    stages = fixed.get("parallel.pipeline", number(given, "STAGE_NUM", 1))
    micro_batches = fixed.get("parallel.micro_batches", number(given, "MICRO_SIZE", 1))
    devices = number(given, "RANK_SIZE", 1)
    data, rest = divmod(devices, stages * TENSOR)
    if rest or not data:
        raise InputError(
            f"RANK_SIZE={devices} must be a multiple of STAGE_NUM × {TENSOR}, the reference's tensor "
            f"parallelism: {stages * TENSOR}" + (" (its 200B always has 16 stages)" if fixed and stages > 1 else "")
        )
    batch = number(given, "PER_BATCH", 1) * data * (micro_batches if stages > 1 else 1)
    expert = number(given, "EXPERT_PARALLEL_NUM", 1)
    if script.endswith("auto_parallel"):
        parallel = _searched(given["MODE"], devices, stages, batch)
    else:
        parallel = {
            "parallel.data": data,
            "parallel.tensor": TENSOR,
            "parallel.pipeline": stages,
            "parallel.micro_batches": micro_batches if stages > 1 else 1,
            "parallel.optimizer": data > 1,
            "parallel.recompute": True,
            "parallel.expert": expert,
            "parallel.all_to_all": number(given, "ENABLE_ALLTOALL", 0) > 0,
        }
    default = {f"parallel.{name}": value for name, value in vars(preset(_preset(given["MODE"])).parallel).items()}
    kept = {key: str(value).lower() for key, value in parallel.items() if value != default.get(key, 1)}
    more = {"data.batch_size": str(batch)}
    if "EXPERT_NUM_PER_EP" in given:
        more["model.num_experts"] = str(number(given, "EXPERT_NUM_PER_EP", 1) * expert)
    if script.endswith("host_device"):
        more["train.offload"] = "optimizer"  # which has halves on the device as it is
    elif given.get("TYPE") == HALF:
        more["train.param_dtype"] = "float16"
    train = preset(_preset(given["MODE"])).train
    more |= {
        key: f"{value:g}"
        for key, value in fixed.items()
        if key.startswith("train.") and value != getattr(train, key.partition(".")[2])
    }
    return {**kept, **more}


def _searched(mode: str, devices: int, stages: int, batch: int) -> dict[str, Any]:
    """The planner's layout with this many stages, by dotted key."""
    found = plan(preset(_preset(mode)), devices, batch=batch)
    fitting = [item for item in found.layouts if item.fits and item.parallel.pipeline == stages]
    if not fitting:
        raise InputError(
            f"no layout of {devices} devices in {stages} stages holds {mode}; see `pangu-lab plan "
            f"--preset {_preset(mode)} --devices {devices} --batch {batch}`"
        )
    return fitting[0].settings()


# ------------------------------------------------------------------------------------------------------ tables

_WORDS = {
    "en": ("argument of the reference", "here", "launch of the reference, with an example", "the same here"),
    "zh": ("参考实现的参数", "此处", "参考实现的启动方式与示例", "此处的等价命令"),
}


@functools.cache
def tables(language: str = "en") -> str:
    """Two Markdown tables: every argument and its counterpart here; every launch and its command here."""
    argument, here, launch, command = _WORDS[language]
    column = {"en": 0, "zh": 1}[language]
    lines = [f"| {argument} | {here} |", "|---|---|"]
    lines += [f"| `{name}` | {texts[column]} |" for name, texts in ARGUMENTS.items()]
    lines += ["", f"| {launch} | {command} |", "|---|---|"]
    for item in LAUNCHES.values():
        commands = [before(item.script, item.example.split()), translate(item.script, item.example.split())]
        ours = "<br>".join(f"`{shlex.join(command)}`" for command in commands if command)
        lines.append(f"| `{item.script}` `{' '.join(item.arguments)}`<br>`{item.example}` | {ours} |")
    return "\n".join(lines)
