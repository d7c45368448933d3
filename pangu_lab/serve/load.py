"""Load test of a server with many streams at once: how fast it is, and whether every text is right.

Each stream is a client of its own: it sends a request, reads the answer as it is generated, and repeats until the
time is over. Before that every request is sent once alone; under load the text must be the same, so a lost or
mixed-up answer shows. The driver speaks only HTTP and works with any server of OpenAI's ``/v1/completions``.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.progress import Progress, silent

PROMPTS = (
    "春天来了，",
    "从前有一座山，",
    "今天的天气",
    "他打开窗户，",
    "人工智能",
    "老师说：",
    "在很远的地方，",
    "秋天的早晨，",
)
SECONDS_TO_ANSWER = 600.0


@dataclass(frozen=True)
class Question:
    """One request's parameters; the same question has the same answer."""

    prompt: str
    seed: int
    new_tokens: int
    temperature: float = 0.8


@dataclass
class Load:
    """Measurements of ``streams`` clients over ``seconds``.

    Attributes:
        requests, tokens: complete answers, and the tokens in them.
        first_token, between_tokens: seconds, one for each request, and for each piece of text after the first.
        lost: requests without a complete answer; mixed_up: answers that differ from the text alone.
        problems: the first few of the reasons, in words.
        memory: bytes of the server's process at the beginning and the end, if its pid was given.
    """

    streams: int
    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    lost: int = 0
    mixed_up: int = 0
    first_token: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: tuple[int, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """The numbers without the lists, times in seconds."""
        return {
            "streams": self.streams,
            "seconds": round(self.seconds, 2),
            "requests": self.requests,
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "first_token_p50": percentile(self.first_token, 50),
            "lost": self.lost,
            "first_token_p99": percentile(self.first_token, 99),
            "mixed_up": self.mixed_up,
            "between_tokens_p50": percentile(self.between_tokens, 50),
            "between_tokens_p99": percentile(self.between_tokens, 99),
            "memory": list(self.memory),
        }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of them do not exceed; None if there are no values."""
    if not values:
        return None
    return round(sorted(values)[max(math.ceil(percent / 100 * len(values)) - 1, 0)], 4)


def drive(
    url: str,
    streams: Sequence[int] = (1, 8),
    seconds: float = 20.0,
    new_tokens: int = 64,
    prompts: Sequence[str] = PROMPTS,
    api_key: str | None = None,
    expected: Mapping[Question, str] | None = None,
    pid: int | None = None,
    progress: Progress = silent,
) -> list[Load]:
    """Load a server with each number of streams in turn.

    Args:
        url: of the server.
        seconds: for each number of streams; the last answers are waited for.
        expected: the right texts of ``questions(prompts, new_tokens)``; by default each is asked alone first.
        pid: the server's process, to watch its memory.

    Raises:
        InputError: nothing answers there, or it refuses the questions; a number is out of range.
    """
    if not streams or min(streams) < 1 or seconds <= 0 or new_tokens < 1 or not prompts:
        raise InputError("streams, seconds, new tokens and prompts must each be at least 1")
    client = Client(url, api_key)
    asked = questions(prompts, new_tokens)
    if expected is None:
        expected = {}
        for number, question in enumerate(asked):
            progress(number, len(asked), "asking alone")
            expected[question] = _alone(client, question)
    loads = []
    for number, count in enumerate(streams):
        progress(number, len(streams), f"{count} streams")
        loads.append(_load(client, count, seconds, asked, expected, pid))
    progress(len(streams), len(streams), "done")
    return loads


def questions(prompts: Sequence[str], new_tokens: int) -> list[Question]:
    """One for each prompt, half of them greedy."""
    return [Question(prompt, number, new_tokens, 0.8 * (number % 2)) for number, prompt in enumerate(prompts)]


def _alone(client: Client, question: Question) -> str:
    try:
        return client.ask(question)[0]
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{client.url}: no answer to load it with ({error})") from None


def _load(
    client: Client,
    count: int,
    seconds: float,
    asked: Sequence[Question],
    expected: Mapping[Question, str],
    pid: int | None,
) -> Load:
    load, lock, before = Load(count), threading.Lock(), _memory(pid)
    started = time.monotonic()

    def one(number: int) -> None:
        turn = number
        while time.monotonic() - started < seconds:
            _ask_once(client, asked[turn % len(asked)], expected, load, lock)
            turn += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds, load.memory = time.monotonic() - started, before + _memory(pid)
    return load


def _ask_once(
    client: Client, question: Question, expected: Mapping[Question, str], load: Load, lock: threading.Lock
) -> None:
    begun, times = time.monotonic(), []
    try:
        text, tokens = client.ask(question, lambda: times.append(time.monotonic()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        with lock:
            load.lost += 1
            load.problems = [*load.problems, f"{question.prompt}: {error}"][:5]
        return
    with lock:
        load.requests += 1
        load.tokens += tokens
        load.first_token += [time - begun for time in times[:1]]
        load.between_tokens += [after - before for before, after in zip(times, times[1:])]
        if text != expected[question]:
            load.mixed_up += 1
            load.problems = [*load.problems, f"{question.prompt}: {text!r} and not {expected[question]!r}"][:5]


def _memory(pid: int | None) -> tuple[int, ...]:
    import psutil

    return () if pid is None else (psutil.Process(pid).memory_info().rss,)


class Client:
    """Asks one server, a connection for each question.

    Raises:
        InputError: the address is none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        address = urllib.parse.urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"{url}: a server's address begins with http:// or https://")
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connect = lambda: kind(address.hostname, address.port, timeout=SECONDS_TO_ANSWER)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def ask(self, question: Question, heard: Callable[[], None] = lambda: None) -> tuple[str, int]:
        """The text and its number of tokens; ``heard`` is called for every piece.

        Raises:
            OSError, http.client.HTTPException, ValueError: no whole answer.
        """
        values = {
            "prompt": question.prompt,
            "seed": question.seed,
            "max_tokens": question.new_tokens,
            "temperature": question.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = self._connect()
        try:
            connection.request("POST", "/v1/completions", json.dumps(values).encode(), self._headers)
            reply = connection.getresponse()
            if reply.status != 200:
                raise ValueError(f"{reply.status}: {reply.read(500).decode('utf-8', 'replace')}")
            return _read(reply, heard)
        finally:
            connection.close()


def _read(reply: http.client.HTTPResponse, heard: Callable[[], None]) -> tuple[str, int]:
    text, tokens, reason = "", 0, None
    for line in reply:
        if not line.startswith(b"data: "):
            continue
        content = line[len(b"data: ") :].strip()
        if content == b"[DONE]":
            if reason is None:
                raise ValueError("the stream ended without a reason")
            return text, tokens
        event = json.loads(content)
        if "error" in event:
            raise ValueError(event["error"]["message"])
        for choice in event.get("choices", ()):
            text += choice["text"]
            reason = choice["finish_reason"] or reason
            heard()
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    raise ValueError("the stream broke off")
