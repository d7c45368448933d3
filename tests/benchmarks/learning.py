"""What a small model has learned after some minutes, beside a PyTorch GPT-2 of the same size on the same verse.

Ours is the preset `verse` (Muon, warm-up–stable–decay). The peer is nanoGPT's recipe for a model of characters: AdamW
(rate 1e-3 to 1e-4 by a cosine, 100 steps of warm-up, betas 0.9 and 0.99, weight decay 0.1 for matrices), clipping at 1,
no dropout, no biases, tied embeddings; 4 layers × 256, batches of 32 × 128, fp32, `torch.compile` where that is quicker.
Both see the same records in an order of their own and are measured on the same held-out poems.

Each has one core, and its minutes are of processor time, divided by two ("minutes on two cores"), so that other work on
the machine does not count. A first short run finds how many steps the minutes hold; compiling is not counted. The
schedule of each ends with its minutes: every number is a training of its own.

    make bench ARGS=learning                                  6 and 30 minutes of the peer: two hours on two cores
    python -m tests.benchmarks.learning --minutes 6           others
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SHARE = 0.4  # of the peer's minutes, in which ours is to reach the same
CORES = 2
TEMPLATE = "《{title}》\n{text}"
LAYERS, HIDDEN, HEADS, SEQ, BATCH, VOCAB = 4, 256, 4, 128, 32, 6000
DATA = Path(os.environ.get("PANGU_LAB_DATA", "../shared/data"), "verse")
FOLDER = Path("runs", "learning")


def prepared(collection: Path, folder: Path) -> None:
    """The data sets `train` and `heldout` in the folder, and their records as arrays for the peer."""

    def command(*words: object) -> None:
        subprocess.run(
            [Path(sys.executable).with_name("pangu-lab"), *map(str, words)], check=True, stdout=subprocess.DEVNULL
        )

    poems, tokenizer = folder / "poems", folder / "tokenizer"
    if not poems.exists():
        command("corpus", "verse", "--from", collection, "--out", poems)
    if not tokenizer.exists():
        command(
            "tokenizer",
            "train",
            "--kind",
            "char",
            "--vocab-size",
            VOCAB,
            "--input",
            poems / "train.jsonl",
            "--template",
            TEMPLATE,
            "--out",
            tokenizer,
        )
    for side in ("train", "heldout"):
        if not (folder / side).exists():
            command(
                "prepare",
                "--input",
                poems / f"{side}.jsonl",
                "--template",
                TEMPLATE,
                "--tokenizer",
                tokenizer,
                "--seq-length",
                SEQ + 1,
                "--whole-documents",
                "--out",
                folder / side,
            )
    command_of(folder, "arrays")


def arrays(folder: Path) -> None:
    """Inputs, labels and weights of all records as .npy files."""
    import numpy as np

    from pangu_lab.data import open_dataset

    for side in ("train", "heldout"):
        dataset = open_dataset(folder / side)
        batches = list(dataset.batches(BATCH, seed=0, shuffle=False, epochs=1))
        for name, kind in (("inputs", np.int16), ("labels", np.int16), ("weights", bool)):
            rows = np.concatenate([getattr(batch, name) for batch in batches])[: len(dataset)]
            np.save(folder / f"{side}_{name}.npy", rows.astype(kind))
    print(json.dumps({"characters_per_token": dataset.characters_per_token}))


def ours(folder: Path, minutes: float) -> dict:
    """Train the preset `verse` for that long, from step 0 to the end of its schedule."""
    from pangu_lab import preset
    from pangu_lab.evaluate import perplexity
    from pangu_lab.train import train

    def trained(name: str, steps: int) -> float:
        run = folder / name
        config = preset("verse").replace(
            **{"data.path": str(folder / "train"), "train.steps": steps, "train.checkpoint_every": steps}
        )
        shutil.rmtree(run, ignore_errors=True)
        started = time.process_time()
        train(config, run, resume=False)
        return time.process_time() - started

    name = f"ours-{minutes:g}"
    short, longer = (trained(f"{name}-{steps}", steps) for steps in (10, 60))
    step = (longer - short) / 50
    start = short - 10 * step
    steps = round(minutes * 60 * CORES / step)
    seconds = trained(name, steps) - start
    measured = perplexity(folder / name, folder / "heldout", batch_size=BATCH)
    return {"bits": measured.bits_per_character, "steps": steps, "minutes": seconds / 60 / CORES}


def gpt2():
    """A PyTorch GPT-2 of the preset's size, as nanoGPT initialises it."""
    import math

    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, bias=False), nn.LayerNorm(HIDDEN, bias=False)
            self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
            self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False), nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

        def forward(self, x):
            split = self.qkv(self.norm1(x)).view(len(x), SEQ, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*split, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(len(x), SEQ, HIDDEN))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(SEQ, HIDDEN)
            self.blocks, self.norm = nn.ModuleList([Block() for _ in range(LAYERS)]), nn.LayerNorm(HIDDEN, bias=False)
            for name, weight in self.named_parameters():
                if weight.dim() > 1:
                    nn.init.normal_(
                        weight, std=0.02 / (math.sqrt(2 * LAYERS) if "out." in name or "down." in name else 1)
                    )

        def forward(self, ids):
            x = self.words(ids) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.words.weight.T

    return Model()


def peer(folder: Path, minutes: float) -> dict:
    """Train nanoGPT's recipe for that long."""
    import math

    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    data = {
        name: np.load(folder / f"{name}.npy")
        for side in ("train", "heldout")
        for name in (f"{side}_inputs", f"{side}_labels", f"{side}_weights")
    }

    def batch(side: str, rows) -> tuple:
        found = (torch.from_numpy(data[f"{side}_{name}"][rows]) for name in ("inputs", "labels", "weights"))
        inputs, labels, weights = found
        return inputs.long(), torch.where(weights, labels.long(), -100)

    def loss_of(forward, side: str, rows, reduction: str = "mean"):
        inputs, labels = batch(side, rows)
        return functional.cross_entropy(forward(inputs).view(-1, VOCAB), labels.view(-1), reduction=reduction)

    def trained(steps: int, compiled: bool, first: int) -> tuple:
        """(model, processor seconds of all steps after the first ones)."""
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        model = gpt2()
        forward = torch.compile(model) if compiled else model
        groups = [
            {"params": [w for w in model.parameters() if (w.dim() > 1) == decay], "weight_decay": 0.1 * decay}
            for decay in (True, False)
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        order, records = np.empty(0, int), len(data["train_inputs"])
        for step in range(steps):
            if step == first:
                started = time.process_time()
            rate = (
                1e-3 * (step + 1) / 100
                if step < 100
                else 1e-4 + 0.45e-3 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            if len(order) < BATCH:
                order = rng.permutation(records)
            rows, order = order[:BATCH], order[BATCH:]
            loss = loss_of(forward, "train", rows)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 100 == 0:
                print(
                    f"peer, {minutes:g} minutes: step {step} of {steps}, loss {loss.item():.3f}",
                    file=sys.stderr,
                    flush=True,
                )
        return model, time.process_time() - started

    first = 5
    speeds = {compiled: trained(35, compiled, first)[1] / 30 for compiled in (False, True)}
    compiled = speeds[True] < speeds[False]
    steps = round(minutes * 60 * CORES / speeds[compiled])
    model, seconds = trained(steps + first, compiled, first)
    with torch.no_grad():
        heldout = len(data["heldout_inputs"])
        total = sum(loss_of(model, "heldout", slice(at, at + BATCH), "sum").item() for at in range(0, heldout, BATCH))
    loss = total / int(data["heldout_weights"].sum())
    return {"loss": loss, "steps": steps, "minutes": seconds / 60 / CORES, "compiled": compiled}


def command_of(folder: Path, *words: object) -> dict:
    """What this module's part says in a process of its own, on one thread."""
    return _said(_started(folder, *words))


def _started(folder: Path, *words: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOG_v": "3"}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            __name__ if __name__ != "__main__" else "tests.benchmarks.learning",
            "--folder",
            str(folder),
            "--part",
            *map(str, words),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _said(process: subprocess.Popen) -> dict:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args}: exit code {process.returncode}")
    return json.loads(out.splitlines()[-1])


def run(rounds: int = 1, minutes: tuple[float, ...] = (6, 30), collection: Path = DATA, folder: Path = FOLDER) -> dict:
    """Bits per held-out character of both after the minutes, and of ours after a share of them."""
    if not collection.exists():
        print(
            f"learning: no collection of verse at {collection} (PANGU_LAB_DATA names the folder above it): left out",
            file=sys.stderr,
        )
        return {}
    from pangu_lab.data import open_dataset
    from pangu_lab.runs.units import bits_per_character

    folder.mkdir(parents=True, exist_ok=True)
    prepared(collection, folder)
    characters = open_dataset(folder / "heldout").characters_per_token
    found = {}
    for budget in minutes:
        other = _started(folder, "peer", budget)
        short = command_of(folder, "ours", budget * SHARE)
        whole = command_of(folder, "ours", budget)
        theirs = _said(other)
        theirs["bits"] = bits_per_character(theirs["loss"], characters)
        found[f"learning, {budget:g} minutes"] = {
            "told": f"bits a character: ours {whole['bits']:.3f}, after {short['minutes']:.1f} minutes {short['bits']:.3f}; "
            f"peer {theirs['bits']:.3f}",
            "ours": whole,
            "ours_early": short,
            "peer": theirs,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[6, 30])
    parser.add_argument("--collection", type=Path, default=DATA)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.part:
        for name, told in run(1, tuple(args.minutes), args.collection, args.folder).items():
            print(f"{name}: {told['told']}\n{json.dumps(told)}", flush=True)
    elif args.part[0] == "arrays":
        arrays(args.folder)
    else:
        print(json.dumps({"ours": ours, "peer": peer}[args.part[0]](args.folder, float(args.part[1]))))


if __name__ == "__main__":
    main()
