"""Training steps a second beside PyTorch eager and torch.compile, at sizes from nanoGPT's CPU recipe to a 12-layer model.

All do the same work: forward, backward, clip by the global norm, AdamW; fp32; random tokens. Compilation and the first
step are told apart and not counted.
"""

from __future__ import annotations

import functools
import resource
import sys
import time

SIZES = {  # layers, hidden, heads, sequence, batch, vocabulary
    "yardstick": (6, 384, 6, 256, 12, 8000),
    "nanogpt-cpu": (4, 128, 4, 64, 12, 8000),
    "12x768": (12, 768, 12, 512, 2, 40000),
}


def first_step(size: str):
    """(trainer, batch of random tokens, seconds of the compilation and first step)."""
    import mindspore as ms
    import numpy as np

    from pangu_lab.data import Batch
    from pangu_lab.presets import preset
    from pangu_lab.train.loop import Trainer
    from pangu_lab.train.starting import starting_values

    ms.set_context(mode=ms.GRAPH_MODE)
    layers, hidden, heads, seq, batch, vocab = SIZES[size]
    config = preset("small").replace(
        **{
            "model.num_layers": layers,
            "model.hidden_size": hidden,
            "model.num_heads": heads,
            "model.vocab_size": vocab,
            "model.num_positions": seq,
            "data.seq_length": seq,
            "data.batch_size": batch,
        }
    )
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, vocab, (2, batch, seq)).astype(np.int32)
    made = Batch(
        ids,
        labels,
        np.tile(np.arange(seq, dtype=np.int32), (batch, 1)),
        np.ones((batch, seq), np.float32),
        np.arange(batch, dtype=np.int32),
        float(batch * seq),
    )
    trainer = Trainer(config, None, [0], None)
    started = time.perf_counter()
    trainer.build(starting_values(config))
    trainer.train_batch(made)
    return trainer, made, time.perf_counter() - started


def ours(size: str) -> None:
    import mindspore as ms

    from tests.benchmarks.turns import serve

    trainer, made, first = first_step(size)
    trainer.train_batch(made)
    serve(
        lambda: trainer.train_batch(made)["seconds"],
        first_step_seconds=round(first, 2),
        peak_mb=peak_mb(),
        kernels=bool(trainer.backend.path),
        mindspore=ms.__version__,
    )


def peak_mb() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def peer(size: str, compiled: bool = False) -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    from tests.benchmarks.turns import serve

    layers, hidden, heads, seq, batch, vocab = SIZES[size]
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
            self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

        def forward(self, x):
            split = self.qkv(self.norm1(x)).view(batch, seq, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*split, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, hidden))
            inner = self.up(self.norm2(x))
            return x + self.down(inner * torch.sigmoid(1.702 * inner))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(vocab, hidden), nn.Embedding(seq, hidden)
            self.blocks, self.norm = nn.ModuleList([Block() for _ in range(layers)]), nn.LayerNorm(hidden)
            for weight in self.parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=0.02)

        def forward(self, ids):
            x = self.words(ids) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.words.weight.T

    model = Model()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    ids, labels = torch.randint(0, vocab, (2, batch, seq))

    def step() -> None:
        loss = functional.cross_entropy(forward(ids).view(-1, vocab), labels.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    step()
    serve(step, first_step_seconds=round(first, 2), peak_mb=peak_mb(), torch=torch.__version__)


def run(rounds: int = 7, sizes: tuple[str, ...] = tuple(SIZES)) -> dict:
    """Tokens a second of ours and each peer and their ratio, by size."""
    from tests.benchmarks.turns import Program, compare

    result = {}
    for size in sizes:
        tokens = SIZES[size][3] * SIZES[size][4]
        for kind, name in (("peer", "eager"), ("compiled", "torch.compile")):
            found = compare(Program("ours", __name__, "ours", size), Program(name, __name__, kind, size), rounds)
            result[f"train {size}, {name}"] = {
                **found,
                "ours_tokens_per_second": round(tokens / found["ours_seconds"]),
                "peer_tokens_per_second": round(tokens / found["peer_seconds"]),
            }
    return result


if __name__ == "__main__":
    {"ours": ours, "peer": peer, "compiled": functools.partial(peer, compiled=True)}[sys.argv[1]](sys.argv[2])
