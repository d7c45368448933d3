"""PanGu-α once more, in NumPy and double precision, from the paper and not from the library: what every path is held to.

Slow and plain. Documents are told apart by their positions, which restart at 0. Parameters by released name. An option of
the network is added here, and to ``CONFIGS``, for which every path is tried.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pangu_lab.config import ModelConfig

BASE = ModelConfig(vocab_size=512, num_positions=32, hidden_size=32, num_layers=3, num_heads=4, dropout_rate=0.0)
CONFIGS = {
    "dense": BASE,
    "dense fast_gelu": dataclasses.replace(BASE, hidden_act="fast_gelu"),
    "dense gelu_erf": dataclasses.replace(BASE, hidden_act="gelu_erf"),
    "experts": dataclasses.replace(BASE, num_experts=4, experts_per_token=2),
    "experts one choice": dataclasses.replace(BASE, num_experts=3, moe_every=2),
}

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def reference_logits(weights, config, ids, positions) -> np.ndarray:
    """ids, positions (batch, seq) → logits (batch, seq, vocab) float64."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    return np.stack([_Record(weights, config, record).logits(row) for row, record in zip(ids, positions)])


def reference_probabilities(weights, config, ids, positions) -> list[np.ndarray]:
    """What each layer's heads mix values with, (heads, seq, seq), of one text: ids, positions (seq,)."""
    record = _Record({name: np.asarray(value, np.float64) for name, value in weights.items()}, config, positions)
    record.logits(ids)
    return record.probabilities


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(x):
    return np.log(softmax(x))


def rounded_to_bytes(weights) -> dict[str, np.ndarray]:
    """The weights that int8 stands for: each output of each product with its largest value at 127."""
    return {name: _rounded(name, np.asarray(value, np.float64)) for name, value in weights.items()}


def _rounded(name: str, value: np.ndarray) -> np.ndarray:
    if not (name.endswith(("word_embedding.embedding_table", ".weight"))):
        return value
    if name.endswith("top_query_layer.attention.dense1.weight"):  # of the ready queries, which no product makes
        return value
    outputs = -1 if any(part in name for part in ("dense", "embedding_table")) else 0
    scale = np.abs(value).max(outputs, keepdims=True) / 127
    return np.rint(value / np.where(scale, scale, 1)) * scale


class _Record:
    """One record of the batch: who sees whom, and the layers over it."""

    def __init__(self, weights, config, positions) -> None:
        self.weights, self.config, self.positions = weights, config, positions
        place, document = np.arange(len(positions)), np.cumsum(positions == 0)
        self.seen = (place[:, None] >= place) & (document[:, None] == document)
        self.act, self.probabilities = ACTIVATIONS[config.hidden_act], []

    def logits(self, ids):
        words = self.weights["backbone.word_embedding.embedding_table"]
        x = words[ids] + self.weights["backbone.position_embedding.embedding_table"][self.positions]
        for block in range(self.config.num_layers - 1):
            x = self.layer(x, f"backbone.blocks.{block}", block in self.config.moe_layers)
        x = self.norm(x, "backbone.layernorm")
        query = self.weights["backbone.top_query_embedding.embedding_table"][self.positions]
        return self.layer(x, "backbone.top_query_layer", False, query) @ words.T

    def layer(self, x, prefix, has_experts, query=None):
        normed = self.norm(x, f"{prefix}.layernorm1")
        x = x + self.attention(normed if query is None else query, normed, f"{prefix}.attention")
        inner = self.norm(x, f"{prefix}.layernorm2")
        return x + (self.experts if has_experts else self.feed_forward)(inner, f"{prefix}.output")

    def norm(self, x, prefix):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layernorm_eps)
        return centred / scale * self.weights[f"{prefix}.gamma"] + self.weights[f"{prefix}.beta"]

    def attention(self, asking, asked, prefix):
        q, k, v = (
            self._heads(x @ self.weights[f"{prefix}.{name}.weight"].T + self.weights[f"{prefix}.{name}.bias"])
            for x, name in ((asking, "dense1"), (asked, "dense2"), (asked, "dense3"))
        )
        scores = np.where(self.seen, q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]), -np.inf)
        self.probabilities.append(softmax(scores))
        mixed = (self.probabilities[-1] @ v).transpose(1, 0, 2).reshape(len(asking), -1)
        return self._product(mixed, f"{prefix}.projection")

    def _heads(self, x):
        return x.reshape(len(x), self.config.num_heads, -1).transpose(1, 0, 2)

    def _product(self, x, prefix):
        return x @ self.weights[f"{prefix}.weight"] + self.weights[f"{prefix}.bias"]

    def feed_forward(self, x, prefix):
        return self._product(self.act(self._product(x, f"{prefix}.mapping")), f"{prefix}.projection")

    def experts(self, x, prefix):
        """Without limit of capacity: the chosen experts' answers, by their share of the router's probability."""
        probabilities, out = softmax(x @ self.weights[f"{prefix}.router.weight"]), np.zeros_like(x)
        for row, share in enumerate(probabilities):
            chosen = np.argsort(-share, kind="stable")[: self.config.experts_per_token]
            total = share[chosen].sum() if len(chosen) > 1 else 1.0
            for expert in chosen:
                up, up_bias, down, down_bias = (
                    self.weights[f"{prefix}.experts.{name}"][expert]
                    for name in ("mapping.weight", "mapping.bias", "projection.weight", "projection.bias")
                )
                answer = self.act(x[row] @ up + up_bias[0]) @ down + down_bias[0]
                out[row] += share[expert] / total * answer
        return out
