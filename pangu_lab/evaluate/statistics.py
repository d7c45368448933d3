"""Confidence intervals of measured numbers: shares, means and perplexities.

A share of right answers gets Wilson's score interval (Wilson 1927), which stays within 0 … 1 and is right for
small samples and for shares near 0 or 1, where the textbook ±1.96 standard errors is not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054  # 95 % of the normal distribution lies within this many standard deviations


def wilson_interval(right: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval for the share behind ``right`` successes in ``n`` trials; (0, 1) when there were none."""
    if n <= 0:
        return 0.0, 1.0
    share, square = right / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def standard_error(share: float, n: int) -> float:
    """Standard error of a share measured on ``n`` trials."""
    return math.sqrt(share * (1 - share) / n) if n > 0 else math.nan


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float, float]:
    """(mean, low, high) of independent values, by the normal approximation; of one value the mean alone."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    half = z * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def perplexity_interval(losses: Sequence[float], tokens: Sequence[int], z: float = Z95) -> tuple[float, float, float]:
    """(perplexity, low, high) of texts with these summed losses (nats) and token counts.

    Perplexity is exp of a ratio of sums over texts. The texts are what was sampled, so the interval is that of a ratio
    estimator, linearised as usual.
    """
    total, n = sum(tokens), len(losses)
    if not total:
        return math.nan, math.nan, math.nan
    rate = math.fsum(losses) / total
    residuals = [loss - rate * count for loss, count in zip(losses, tokens)]
    spread = math.sqrt(math.fsum(r * r for r in residuals) * n / max(n - 1, 1)) / total
    low, high = rate - z * spread, rate + z * spread
    return math.exp(min(rate, 700.0)), math.exp(min(low, 700.0)), math.exp(min(high, 700.0))
