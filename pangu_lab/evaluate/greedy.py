"""Greedy writing without a key-value cache, for tasks in which the model writes.

Every new token costs a pass over the whole text, in batches of prompts of like length. It is the plain way: right,
without an engine of its own, and slow for long prompts; ``evaluate(..., generate=...)`` takes a faster one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pangu_lab.evaluate.scoring import LocalScorer


def write_greedily(scorer: LocalScorer, prompts: Sequence[str], new_tokens: int,
                   stop: Sequence[str] = ()) -> list[str]:
    """The most probable continuation of each prompt, token by token.

    A prompt that leaves no room for ``new_tokens`` loses its left. Writing ends with the end of document, before
    the first of ``stop`` that appears, or after ``new_tokens``.
    """
    room = max(1, scorer.window - new_tokens)
    encoded = [scorer.tokenizer.encode(prompt)[-room:] or [scorer.tokenizer.eod_id] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: -len(encoded[number]))
    results = [""] * len(prompts)
    while order:
        size = scorer.rows_at_once(len(encoded[order[0]]) + new_tokens)
        batch, order = order[:size], order[size:]
        for number, text in zip(batch, _write(scorer, [encoded[number] for number in batch], new_tokens, stop)):
            results[number] = text
    return results


def _write(scorer: LocalScorer, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Sequence[str]) -> list[str]:
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    active = list(range(len(prompts)))
    for _ in range(min(new_tokens, scorer.window)):
        if not active:
            break
        following = scorer.next_tokens([[*prompts[number], *written[number]] for number in active])
        ended = set()
        for number, token in zip(active, following):
            if token == scorer.tokenizer.eod_id or len(prompts[number]) + len(written[number]) >= scorer.window:
                ended.add(number)
                continue
            written[number].append(token)
            texts[number] = scorer.tokenizer.decode(written[number])
            if any(mark in texts[number] for mark in stop):
                ended.add(number)
        active = [number for number in active if number not in ended]
    return [_before(text, stop) for text in texts]


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string."""
    return text[:min([text.find(mark) for mark in stop if mark in text], default=len(text))]
