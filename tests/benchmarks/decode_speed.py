"""Writing 64 tokens after a prompt of 64, beside transformers: 12 layers × 768, vocabulary 40000, fp32.

Ours is the whole way of ``generate`` (tokens, cache, greedy choice, text), over weights compiled here and over an
exported bundle, and with weights rounded to int8; the peer is ``GPT2LMHeadModel.generate``, greedy, of the same size. Weights are random,
compilation is told apart. ``first token`` is the time to read a prompt of 512 tokens and give one. ``batch of 8`` is eight
texts at once beside the same engine writing one after the other, ``steps of 8`` the same without the time that the prompts take:
what 65 tokens take longer than one.

Ours also tells how quickly weights are read (their bytes · tokens of one sequence a second, the prompt's time included) and how quickly this machine reads memory:
the largest of as many floats, each thread its part. Layers that the third-level cache keeps make the first the larger one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

LAYERS, HIDDEN, HEADS, VOCABULARY, POSITIONS = 12, 768, 12, 40_000, 1024
WORK = {
    "decode": (64, 64),
    "first token": (512, 1),
    "batch of 8": (64, 64),
    "steps of 8": (64, 65),
}  # prompt, new tokens
THREADS = 2


def ours(kind: str, work: str) -> None:
    import mindspore as ms

    from pangu_lab.config import SamplingConfig
    from pangu_lab.generate import generate_many
    from tests.benchmarks.turns import serve

    prompt, new = WORK[work]
    started = time.perf_counter()
    engine = _engine(kind)
    texts = ["x" * prompt] * (8 if work.endswith("of 8") else 1)

    def seconds_of(tokens: int) -> float:
        config, began = SamplingConfig(temperature=0, max_new_tokens=tokens, min_new_tokens=tokens), time.perf_counter()
        for part in [[text] for text in texts] if kind == "in turn" else [texts]:
            assert all(len(made.ids) == tokens for made in generate_many(engine, part, config))
        return time.perf_counter() - began

    def write() -> float:
        return seconds_of(new) - (seconds_of(1) if work == "steps of 8" else 0)

    write()
    first = time.perf_counter() - started
    write()
    seconds = write()
    weights = {"int8": 1, "float16": 2, "bfloat16": 2}.get(kind, 4) * (12 * LAYERS * HIDDEN**2 + VOCABULARY * HIDDEN)
    serve(
        write,
        load_and_first_seconds=round(first, 2),
        mindspore=ms.__version__,
        weights_gb_a_second=round(weights * new / seconds / 1e9, 1),
        memory_gb_a_second=round(_memory_speed(), 1),
    )


def _memory_speed() -> float:
    """GB/s of reading as much memory as the weights take."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = np.array_split(np.ones(116_000_000, np.float32), THREADS)
    best = float("inf")
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(10):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - started)
    return 0.464 / best


def _engine(kind: str):
    from pangu_lab.config import ModelConfig
    from pangu_lab.export import export_bundle, load_bundle
    from pangu_lab.generate import engine_from_weights
    from pangu_lab.generate.engine import Engine
    from pangu_lab.generate.runner import DTYPES, kernel_runner
    from pangu_lab.model.parameters import initial_weights
    from pangu_lab.tokenizer import load_tokenizer

    config = ModelConfig(VOCABULARY, POSITIONS, HIDDEN, LAYERS, HEADS, dropout_rate=0.0)
    tokenizer = load_tokenizer("pangu")
    if kind in DTYPES:
        engine = Engine(kernel_runner(initial_weights(config, 1), config, kind), tokenizer)
    elif kind != "bundle":  # "in turn" too
        engine = engine_from_weights(initial_weights(config, 1), config, tokenizer)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = export_bundle(initial_weights(config, 1), config, tokenizer, Path(folder) / "bundle")
            engine = load_bundle(out)
    tokenizer = engine.tokenizer
    tokenizer.encode = lambda text: list(range(100, 100 + len(text)))  # as many tokens as the work asks for
    return engine


def peer(work: str) -> None:
    import torch
    import transformers

    from tests.benchmarks.turns import serve

    prompt, new = WORK[work]
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(100, 100 + prompt)[None]

    @torch.inference_mode()
    def write() -> None:
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        assert made.shape[1] == prompt + new

    write()
    serve(write, torch=torch.__version__, transformers=transformers.__version__)


def run(rounds: int = 7) -> dict:
    """Seconds of both and the ratio, for each way and work."""
    from tests.benchmarks.turns import Program, compare

    result = {}
    for work in ("batch of 8", "steps of 8"):
        result[f"{work}, engine"] = compare(
            Program("ours", __name__, "ours", "engine", work),
            Program("one after the other", __name__, "ours", "in turn", work),
            rounds,
        )
    for kind, work in (("engine", "decode"), ("bundle", "decode"), ("int8", "decode"), ("engine", "first token")):
        found = compare(
            Program(f"ours, {kind}", __name__, "ours", kind, work),
            Program("transformers", __name__, "peer", work),
            rounds,
        )
        if work == "decode":
            found["ours_tokens_per_second"] = round(WORK[work][1] / found["ours_seconds"], 1)
            found["peer_tokens_per_second"] = round(WORK[work][1] / found["peer_seconds"], 1)
        result[f"{work}, {kind}"] = found
    return result


if __name__ == "__main__":
    {"ours": ours, "peer": peer}[sys.argv[1]](*sys.argv[2:])
