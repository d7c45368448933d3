"""The body of ``POST /v1/completions``, checked and turned into prompts and settings; and its answers.

The names and meanings are those of OpenAI's completions API, so that its clients work unchanged; beside them stand
samplers that this model has and that API lacks (``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens``).
Penalties count as there: from the generated text alone. What is left out of a request is as there (``temperature``
1, ``max_tokens`` 16), not as in the bundle, for the same reason.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Optional, Union

from pydantic import BaseModel, ConfigDict, Field

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sequence import FULL, LENGTH, Completion, Prompt, TokenLogprob
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.scheduler import prompt_of_ids, with_seed

FINISH = {LENGTH: "length", FULL: "length"}  # everything else is "stop"


class Refused(Exception):
    """A request that is answered with an error body.

    Attributes:
        status: of HTTP.
        kind, parameter, code: as the API names the error.
    """

    def __init__(self, status: int, message: str, parameter: Optional[str] = None, code: Optional[str] = None,
                 kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.parameter, self.code, self.kind = status, message, parameter, code, kind

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}}


def parse_json(body: bytes) -> Any:
    """What a body holds; for every route that reads one.

    Raises:
        Refused: it is not JSON, or one of its texts has half a surrogate pair, which is no character and breaks
            whatever encodes it later.
    """
    try:
        values = json.loads(body)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "a text in the request holds half a surrogate pair (such as \\ud83d alone): send whole "
                      "characters") from None
    except (ValueError, RecursionError):
        raise Refused(400, "the request's body is not JSON") from None
    return values


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool = False
    include_obfuscation: Optional[bool] = None  # accepted, and never done


class CompletionBody(BaseModel):
    """What may stand in a request. None is the same as leaving it out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Optional[str] = None
    prompt: Union[str, list[int], list[str], list[list[int]], None] = None
    suffix: Optional[str] = None
    max_tokens: Optional[int] = Field(None, ge=0)
    temperature: Optional[float] = Field(None, ge=0, le=2)
    top_p: Optional[float] = Field(None, gt=0, le=1)
    n: Optional[int] = Field(None, ge=1)
    best_of: Optional[int] = Field(None, ge=1)
    stream: Optional[bool] = None
    stream_options: Optional[StreamOptions] = None
    logprobs: Optional[int] = Field(None, ge=0)
    echo: Optional[bool] = None
    stop: Union[str, list[str], None] = None
    presence_penalty: Optional[float] = Field(None, ge=-2, le=2)
    frequency_penalty: Optional[float] = Field(None, ge=-2, le=2)
    logit_bias: Optional[dict[str, float]] = None
    seed: Optional[int] = None
    user: Optional[str] = None
    top_k: Optional[int] = Field(None, ge=0)
    min_p: Optional[float] = Field(None, ge=0, le=1)
    repetition_penalty: Optional[float] = Field(None, gt=0)
    min_tokens: Optional[int] = Field(None, ge=0)


def prompts_of(body: CompletionBody, engine: Engine, limits: Limits, encode: Any) -> list[Prompt]:
    """The prompts of a request, as tokens.

    Args:
        encode: a text's tokens.

    Raises:
        Refused: 413 for too much text, 422 for too many prompts, 400 for what the model cannot read.
    """
    given = body.prompt if body.prompt is not None else ""
    many = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(many) > limits.prompts:
        raise Refused(422, f"{len(many)} prompts in one request; this server takes {limits.prompts}", "prompt")
    measured = bool(body.echo) and body.max_tokens == 0
    return [_prompt_of(one, engine, limits, encode, measured) for one in many]


def _prompt_of(given: Union[str, Sequence[int]], engine: Engine, limits: Limits, encode: Any,
               measured: bool) -> Prompt:
    if isinstance(given, str) and len(given) > limits.prompt_characters:
        raise Refused(413, f"the prompt has {len(given)} characters and this server reads "
                           f"{limits.prompt_characters}: shorten it", "prompt", "context_length_exceeded")
    try:
        prompt = prompt_of_ids(engine, encode(given) if isinstance(given, str) else given, measured)
    except InputError as error:
        code = "context_length_exceeded" if "context length" in str(error) else None
        raise Refused(400, str(error), "prompt", code) from None
    return dataclasses.replace(prompt, text=given) if isinstance(given, str) else prompt


def settings_of(body: CompletionBody, limits: Limits) -> SamplingConfig:
    """The settings of a request.

    Raises:
        Refused: a value that this server does not allow.
    """
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    count = 16 if body.max_tokens is None else body.max_tokens
    for name, value, most in (("max_tokens", count, limits.new_tokens), ("n", body.n or 1, limits.choices),
                              ("logprobs", body.logprobs or 0, limits.logprobs),
                              ("stop", len(stop), limits.stop_texts)):
        if value > most:
            raise Refused(422, f"{name}={value} is more than this server's {most}", name)
    if body.suffix:
        raise Refused(400, "this model writes after a prompt only: leave suffix out", "suffix")
    if body.best_of not in (None, body.n or 1):
        raise Refused(400, "best_of must equal n: no choice is thrown away here", "best_of")
    values = {"top_k": body.top_k or None, "top_p": body.top_p, "min_p": body.min_p, "logprobs": body.logprobs,
              "echo": bool(body.echo), "stop": tuple(stop), "max_new_tokens": count,
              "num_return_sequences": body.n or 1, "min_new_tokens": min(body.min_tokens or 0, count),
              "presence_penalty": body.presence_penalty or 0.0, "frequency_penalty": body.frequency_penalty or 0.0,
              "temperature": 1.0 if body.temperature is None else body.temperature,
              "repetition_penalty": body.repetition_penalty or 1.0, "logit_bias": _bias_of(body),
              "seed": None if body.seed is None else body.seed % 2**63}
    try:
        return with_seed(SamplingConfig(**values))
    except InputError as error:
        raise Refused(400, str(error).replace("sampling.", "")) from None


def _bias_of(body: CompletionBody) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(index), bias) for index, bias in (body.logit_bias or {}).items())
    except ValueError:
        raise Refused(400, "logit_bias maps token ids to numbers", "logit_bias") from None


# ----------------------------------------------------------------------------------------------------- the answers


def new_head(model: str) -> dict[str, Any]:
    """What every answer, and every piece of a streamed one, begins with."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": model}


def finish_of(reason: Optional[str]) -> Optional[str]:
    return None if reason is None else FINISH.get(reason, "stop")


def choice_of(index: int, done: Completion, tokenizer: Any) -> dict[str, Any]:
    """One completion as a choice."""
    logprobs = None
    if done.logprobs is not None:
        logprobs = logprobs_of([*(done.prompt_logprobs or ()), *done.logprobs], tokenizer)
    return {"index": index, "text": done.text, "logprobs": logprobs, "finish_reason": finish_of(done.finish_reason)}


def logprobs_of(tokens: Sequence[TokenLogprob], tokenizer: Any, offset: int = 0) -> dict[str, Any]:
    """The API's four lists. Offsets count characters of the tokens' own texts."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {"tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_tops(token, tokenizer) for token in tokens], "text_offset": offsets}


def _tops(token: TokenLogprob, tokenizer: Any) -> Optional[dict[str, float]]:
    """The likeliest by their text; of several tokens with one text (pieces of one character) the likeliest."""
    if token.logprob is None:
        return None
    tops: dict[str, float] = {}
    for index, logprob in token.top:
        tops.setdefault(tokenizer.decode([index]), logprob)
    return tops


def usage_of(prompts: Sequence[Prompt], written: int) -> dict[str, int]:
    read = sum(len(prompt.ids) for prompt in prompts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
