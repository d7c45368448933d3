"""Evaluation: scoring text, the published tasks, and what the numbers are worth.

from pangu_lab.evaluate import evaluate

evaluate("c3", "runs/first", "data/c3").value
"""

from __future__ import annotations

from pangu_lab.evaluate.heldout import PerplexityResult, perplexity
from pangu_lab.evaluate.pictures import plot_results, plot_temperatures
from pangu_lab.evaluate.routing import plot_routed_text, route_text
from pangu_lab.evaluate.run import Result, engine_writer, evaluate, find_files, open_scorer
from pangu_lab.evaluate.scoring import LocalScorer, Score, Scorer, TokenScorer
from pangu_lab.evaluate.server import ServerScorer
from pangu_lab.evaluate.statistics import mean_interval, perplexity_interval, standard_error, wilson_interval
from pangu_lab.evaluate.tasks import TASKS, Task, make_task
from pangu_lab.evaluate.verse import VerseMeasure, VerseResult, evaluate_verse, measure_temperatures

__all__ = [
    "TASKS",
    "LocalScorer",
    "PerplexityResult",
    "Result",
    "Score",
    "Scorer",
    "ServerScorer",
    "Task",
    "TokenScorer",
    "VerseMeasure",
    "VerseResult",
    "engine_writer",
    "evaluate",
    "evaluate_verse",
    "find_files",
    "make_task",
    "mean_interval",
    "measure_temperatures",
    "open_scorer",
    "perplexity",
    "perplexity_interval",
    "plot_results",
    "plot_routed_text",
    "plot_temperatures",
    "route_text",
    "standard_error",
    "wilson_interval",
]
