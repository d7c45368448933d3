"""Cloze tasks: how probable the missing word is, and whether the model would have generated it.

Used by PD, CFT and WPLC. A word counts as right when each of its tokens is the most probable one at its position,
as greedy decoding would generate it (the measure known from LAMBADA, arXiv 1606.06031).
"""

from __future__ import annotations

from collections.abc import Sequence

from pangu_lab.evaluate.scoring import Score
from pangu_lab.evaluate.statistics import perplexity_interval, wilson_interval
from pangu_lab.evaluate.tasks.base import Measure, Outcome, Question, ScoredTask


class ClozeTask(ScoredTask):
    """One pair a question: what stands before the gap, and the missing word as its only option."""

    def judge(self, question: Question, scores: Sequence[Score]) -> Outcome:
        [score] = scores
        details = {
            "answer": question.options[0],
            "right": score.greedy,
            "loss": round(-score.logprob, 6),
            "tokens": score.tokens,
            **({"cut": score.cut} if score.cut else {}),
        }
        return Outcome(question.id, float(score.greedy), 1, details)

    def measure(self, outcomes: Sequence[Outcome]) -> Measure:
        losses = [float(outcome.details["loss"]) for outcome in outcomes]
        tokens = [int(outcome.details["tokens"]) for outcome in outcomes]
        perplexity, low, high = perplexity_interval(losses, tokens)
        right = sum(outcome.right for outcome in outcomes)
        accuracy = right / max(len(outcomes), 1)
        if self.metric == "perplexity":
            return Measure(perplexity, (low, high), {"accuracy": accuracy})
        return Measure(accuracy, wilson_interval(right, len(outcomes)), {"perplexity": perplexity})
