"""The same scores from a server with an OpenAI-compatible ``/v1/completions`` (``echo`` and ``logprobs``).

Without a tokenizer the prompts are sent as text. To find where the context ends among the tokens, the context is also
requested alone, and the two are compared by the rule of ``split.py``. With a tokenizer the prompts are sent as token
ids, so that the server only runs the network, and texts can be shortened here, as for a local model.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.scoring import Score, TokenScorer, make_score
from pangu_lab.evaluate.split import TokenPair, fit, pieces_within
from pangu_lab.progress import Progress, silent
from pangu_lab.tokenizer import Tokenizer, load_tokenizer

TRIES = 4  # for a request that the server cannot answer at the moment
Prompt = str | Sequence[int]


class Connection:
    """Sends requests to one server.

    Args:
        url: of the server, with or without ``/v1``.
        model: as the server names it; the first one it lists when not given.
        api_key: sent as a bearer token.
        timeout: seconds for one request.

    Raises:
        InputError: nothing answers there, or something other than such a server.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None, timeout: float = 600.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"{url}: a server's address begins with http:// or https://")
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.timeout = timeout
        self._one_more = False  # some servers do not accept max_tokens=0
        listed = self._ask("/v1/models", tries=1).get("data") or [{}]
        chosen = next((entry for entry in listed if entry.get("id") == model), listed[0] if model is None else {})
        self.model = model or str(chosen.get("id", "model"))
        self.window: int | None = chosen.get("max_model_len")
        # This project's server scores one token more than it reads, as a local model does: the last is only predicted
        self.longest: int | None = chosen.get("max_scored_len", self.window)

    def echo(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """``logprobs`` of each prompt's own tokens: lists ``tokens``, ``token_logprobs``, ``top_logprobs``."""
        values = {"prompt": list(prompts), "echo": True, "logprobs": 1, "temperature": 0}
        try:
            choices = self.completions({**values, "max_tokens": int(self._one_more)})
        except InputError as error:
            if self._one_more or "max_tokens" not in str(error):
                raise
            self._one_more = True
            return self.echo(prompts)
        found = [choice.get("logprobs") for choice in choices]
        needed = {"tokens", "token_logprobs"}
        whole = all(isinstance(entry, dict) and needed <= set(entry) for entry in found)
        if len(found) != len(prompts) or not whole:
            raise InputError(
                f"{self.url}: answers without logprobs of the prompt; evaluation needs a server that "
                "supports echo and logprobs"
            )
        return [_without_last(entry) for entry in found] if self._one_more else found

    def completions(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices that ``/v1/completions`` answers with, in the order of the prompts."""
        reply = self._ask("/v1/completions", {"model": self.model, **values})
        choices = reply.get("choices")
        if not isinstance(choices, list):
            raise InputError(f"{self.url}: /v1/completions answers without choices")
        return sorted(choices, key=lambda choice: choice.get("index", 0))

    def _ask(self, path: str, values: dict[str, Any] | None = None, tries: int = TRIES) -> dict[str, Any]:
        body = json.dumps(values).encode("utf-8") if values is not None else None
        attempt = 1
        while True:
            try:
                return self._once(path, body)
            except _TryAgain as error:
                if attempt == tries:
                    raise InputError(f"{self.url}{path}: {error}") from None
            time.sleep(0.25 * 2**attempt)
            attempt += 1

    def _once(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, body, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            message = f"the server answers {error.code}: {_error_text(error)}"
            if error.code in (429, 502, 503, 504):
                raise _TryAgain(message) from None
            raise InputError(f"{self.url}{path}: {message}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise _TryAgain(f"no answer ({getattr(error, 'reason', error)}); is the server running?") from None
        except json.JSONDecodeError:
            raise InputError(f"{self.url}{path}: the answer is not JSON") from None


class _TryAgain(Exception):
    """The server may answer the same request later."""


def _error_text(error: urllib.error.HTTPError) -> str:
    text = error.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200] or error.reason


def _without_last(entry: dict[str, Any]) -> dict[str, Any]:
    """The logprobs of the prompt alone, when the server had to generate one more token."""
    return {key: value[:-1] if isinstance(value, list) else value for key, value in entry.items()}


class ServerScorer(TokenScorer):
    """A model behind a server.

    Args:
        url, model, api_key: of the server.
        tokenizer: the model's; with it prompts are sent as token ids. Without it they are sent as text, and the
            server refuses those that are too long.
        window: longest input in tokens; the one that the server reports when not given.
        batch: prompts per request.

    Raises:
        InputError: nothing answers there, or the window is not known although a tokenizer is given.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        tokenizer: Tokenizer | str | Path | None = None,
        window: int | None = None,
        batch: int = 16,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.connection = Connection(url, model, api_key, timeout)
        self.batch = max(1, batch)
        self.in_text = tokenizer is None
        longest = window or self.connection.longest
        window = window or self.connection.window
        if tokenizer is not None:
            tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
            if window is None:
                raise InputError(f"{url}: the server does not report its longest input: give the window")
        # For text there is no tokenizer and no window; of tokens, most servers want to be able to read the last one too
        super().__init__(tokenizer, window or 0, longest=longest or 0)  # type: ignore[arg-type]
        self.name = self.connection.model

    def loglikelihood(self, pairs, cut="context", progress=silent):
        if not self.in_text:
            return super().loglikelihood(pairs, cut, progress)
        fit((), 0, 1, cut)  # refuses an unknown cut
        scores: list[Score] = []
        for start in range(0, len(pairs), self.batch):
            scores += self._score_texts(pairs[start : start + self.batch])
            progress(len(scores), len(pairs), "pairs")
        return scores

    def _score_texts(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        texts = list(
            dict.fromkeys(
                [context + continuation for context, continuation in pairs] + [context for context, _ in pairs]
            )
        )
        texts = [text for text in texts if text]
        answers = dict(zip(texts, self._echo_whole(texts))) if texts else {}
        nothing: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
        answers[""] = nothing
        scores = []
        for context, continuation in pairs:
            whole = answers[context + continuation]
            scores.append(_score_of(whole, max(1, _context_tokens(whole["tokens"], answers[context]["tokens"]))))
        return scores

    def _echo_whole(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        try:
            return self.connection.echo(texts)
        except InputError as error:
            if "context length" not in str(error):
                raise
            raise InputError(
                f"{error}; with the model's tokenizer (--tokenizer DIR) long texts are cut here as a "
                "local model cuts them"
            ) from None

    def score_tokens(self, pairs: Sequence[TokenPair], progress: Progress = silent) -> list[Score]:
        if self.in_text:
            raise InputError("this needs the server's tokenizer: give it with --tokenizer")
        scores: list[Score] = []
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            for pair, answer in zip(part, self.connection.echo([list(pair.ids) for pair in part])):
                if len(answer["token_logprobs"]) != len(pair.ids):
                    raise InputError(
                        f"{self.connection.url}: {len(pair.ids)} tokens were sent, but "
                        f"{len(answer['token_logprobs'])} scored: check that the tokenizer is the model's"
                    )
                scores.append(_score_of(answer, pair.start, pair.cut))
            progress(len(scores), len(pairs), "pairs")
        return scores

    def complete(self, prompts: Sequence[str], new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy continuations, written by the server."""
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch):
            values = {
                "prompt": list(prompts[start : start + self.batch]),
                "max_tokens": new_tokens,
                "temperature": 0,
                "stop": list(stop) or None,
            }
            texts += [str(choice.get("text", "")) for choice in self.connection.completions(values)]
        return texts


def _context_tokens(whole: Sequence[str], alone: Sequence[str]) -> int:
    """How many tokens of the whole lie inside the context, whose own tokens are ``alone``; see ``split.py``."""
    if list(whole[: len(alone)]) == list(alone):
        return len(alone)
    return pieces_within(whole, "".join(alone))


def _score_of(answer: dict[str, Any], start: int, cut: int = 0) -> Score:
    """The score of the tokens from ``start`` on; greedy when each of them was the likeliest."""
    logprobs = answer["token_logprobs"][start:]
    tops = (answer.get("top_logprobs") or [None] * len(answer["token_logprobs"]))[start:]
    greedy = all(
        top is not None and logprob >= max(top.values(), default=logprob) - 1e-6 for logprob, top in zip(logprobs, tops)
    )
    return make_score(logprobs, greedy, cut)
