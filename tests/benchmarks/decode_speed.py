"""Writing 64 tokens after a prompt of 64, beside transformers: 12 layers × 768, vocabulary 40000, fp32.

Ours is the whole way of ``generate`` (tokens, cache, greedy choice, text), over weights compiled here and over an
exported bundle, and with weights rounded to int8; the peer is ``GPT2LMHeadModel.generate``, greedy, of the same size. Weights are random,
compilation is told apart. ``first token`` is the time to read a prompt of 512 tokens and give one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

LAYERS, HIDDEN, HEADS, VOCABULARY, POSITIONS = 12, 768, 12, 40_000, 1024
WORK = {"decode": (64, 64), "first token": (512, 1)}  # prompt, new tokens


def ours(kind: str, work: str) -> None:
    import mindspore as ms

    from pangu_lab.config import SamplingConfig
    from pangu_lab.generate import generate
    from tests.benchmarks.turns import serve

    prompt, new = WORK[work]
    started = time.perf_counter()
    engine = _engine(kind)
    config = SamplingConfig(temperature=0, max_new_tokens=new, min_new_tokens=new)

    def write() -> None:
        assert len(generate(engine, "x" * prompt, config).ids) == new

    write()
    first = time.perf_counter() - started
    write()
    serve(write, load_and_first_seconds=round(first, 2), mindspore=ms.__version__)


def _engine(kind: str):
    from pangu_lab.config import ModelConfig
    from pangu_lab.export import export_bundle, load_bundle
    from pangu_lab.generate import engine_from_weights
    from pangu_lab.model.parameters import initial_weights
    from pangu_lab.tokenizer import load_tokenizer

    config = ModelConfig(VOCABULARY, POSITIONS, HIDDEN, LAYERS, HEADS, dropout_rate=0.0)
    tokenizer = load_tokenizer("pangu")
    if kind != "bundle":
        engine = engine_from_weights(initial_weights(config, 1), config, tokenizer)
        if kind == "int8":
            engine.runner.use_int8()
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
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=HIDDEN, n_layer=LAYERS,
                                     n_head=HEADS, bos_token_id=1, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(100, 100 + prompt)[None]

    @torch.inference_mode()
    def write() -> None:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                              do_sample=False, pad_token_id=0)
        assert made.shape[1] == prompt + new

    write()
    serve(write, torch=torch.__version__, transformers=transformers.__version__)


def run(rounds: int = 7) -> dict:
    """Seconds of both and the ratio, for each way and work."""
    from tests.benchmarks.turns import Program, compare

    result = {}
    for kind, work in (("engine", "decode"), ("bundle", "decode"), ("int8", "decode"), ("engine", "first token")):
        found = compare(Program(f"ours, {kind}", __name__, "ours", kind, work),
                        Program("transformers", __name__, "peer", work), rounds)
        if work == "decode":
            found["ours_tokens_per_second"] = round(WORK[work][1] / found["ours_seconds"], 1)
            found["peer_tokens_per_second"] = round(WORK[work][1] / found["peer_seconds"], 1)
        result[f"{work}, {kind}"] = found
    return result


if __name__ == "__main__":
    {"ours": ours, "peer": peer}[sys.argv[1]](*sys.argv[2:])
