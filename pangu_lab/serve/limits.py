"""Every limit of the server in one place, each with its default; `pangu-lab serve --limit NAME=VALUE` changes one.

An open server will get every kind of request sooner or later. What exceeds a limit is refused with a plain
sentence and the HTTP status that fits: 408 sent too slowly, 413 too large, 422 too much asked, 429 too many at
once, 503 not now, 504 took too long.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pangu_lab.errors import InputError, nearest


@dataclass(frozen=True)
class Limits:
    """Limits of one request, of one session, and of all together.

    Attributes:
        body_bytes: of one HTTP request.
        prompt_characters: of one prompt.
        prompts: prompts in one request.
        new_tokens: tokens generated for one completion; the API refuses more, and the page's control ends here.
        choices: completions of one prompt (``n``).
        logprobs: likeliest tokens returned per position.
        stop_texts: stop strings of one request.
        seconds: wall clock of one request, waiting included.
        at_once: sequences in one decode step, at most 16.
        waiting: prompts that wait, over all sessions; more are refused.
        waiting_per_session: prompts of one session that wait.
        sessions: connections that are answered at once. A few more can be open: for /healthz, /readyz and /metrics.
        sessions_per_address: of these, from one client address.
        header_seconds: from the connection, or from a request's first byte, to the end of the request's headers.
        body_seconds: from there to the end of its body.
        keep_alive_seconds: how long a connection may stay open without a request.
        send_seconds: how long an answer waits for a client that does not read it.
        drain_seconds: how long a stop waits for what is running and waiting.
    """

    body_bytes: int = 1 << 20
    prompt_characters: int = 20_000
    prompts: int = 32
    new_tokens: int = 1024
    choices: int = 8
    logprobs: int = 20
    stop_texts: int = 16
    seconds: float = 300.0
    at_once: int = 16
    waiting: int = 128
    waiting_per_session: int = 64
    sessions: int = 256
    sessions_per_address: int = 128
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    send_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or value == 0 and field.name not in ("logprobs", "stop_texts", "drain_seconds"):
                raise InputError(f"the limit {field.name}={value} must be above 0")
            if not math.isfinite(value):
                raise InputError(f"the limit {field.name}={value} must be a finite number")
        if self.at_once > 16:
            raise InputError(f"the limit at_once={self.at_once} must be at most 16: larger batches gain nothing here")


def parse_limits(pairs: Sequence[str]) -> Limits:
    """Limits from ``NAME=VALUE`` texts.

    Raises:
        InputError: an unknown name, or a value that is no number or out of its range.
    """
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Limits)}
    values = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in kinds:
            raise InputError(f"unknown limit '{name}'{nearest(name, kinds)}; there are {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise InputError(f"the limit {name}={text} must be a number") from None
    return Limits(**values)
