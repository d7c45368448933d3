"""Text generation: samplers, key-value cache, the decode loop, streaming, beam search."""

from __future__ import annotations

from pangu_lab.generate.constraint import Constraint, Verse
from pangu_lab.generate.engine import CompletionStream, Engine, engine_from_weights, generate, generate_many, stream
from pangu_lab.generate.pictures import decode_seconds, plot_seconds, plot_stages
from pangu_lab.generate.runner import Runner, network_runner
from pangu_lab.generate.sampling import History, Stage, choose, explain
from pangu_lab.generate.sequence import Completion, TokenLogprob

__all__ = [
    "Completion",
    "CompletionStream",
    "Constraint",
    "Engine",
    "History",
    "Runner",
    "Stage",
    "TokenLogprob",
    "Verse",
    "choose",
    "decode_seconds",
    "engine_from_weights",
    "explain",
    "generate",
    "generate_many",
    "network_runner",
    "plot_seconds",
    "plot_stages",
    "stream",
]
