"""The body of ``POST /v1/completions``, checked and turned into prompts and settings; and its answers.

Names and meanings are those of OpenAI's completions API, so that its clients work unchanged; in addition there are
samplers that this model has and that API lacks (``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens``).
Penalties count only the generated text, as there. The defaults of a request are also as there (``temperature``
1, ``max_tokens`` 16), not as in the bundle, for the same reason.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from pydantic import BaseModel, ConfigDict, create_model

from pangu_lab.config import SAMPLING_RANGES, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sequence import FULL, LENGTH, Completion, Prompt, TokenLogprob
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.scheduler import prompt_of_ids, with_seed

RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "num_return_sequences": "n"}
LEFT_OUT = ("no_repeat_ngram", "num_beams", "length_penalty")
OURS = {name: RENAMED.get(name, name) for name in SAMPLING_RANGES if name not in LEFT_OUT}
SETTINGS = {theirs: ours for ours, theirs in OURS.items()}  # of a request, and what they are called here
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
    """Parse a JSON body; for every route that reads one.

    Raises:
        Refused: it is not JSON, or one of its texts has half a surrogate pair, which is not a character and would
            break any later encoding.
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
    include_obfuscation: Optional[bool] = None  # accepted and ignored


Number = Any  # any kind and size: SamplingConfig refuses what is not a number or out of range, with a message


class _Body(BaseModel):
    """What may stand in a request beside ``SETTINGS``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Optional[str] = None
    prompt: Union[str, list[int], list[str], list[list[int]], None] = None
    suffix: Optional[str] = None
    best_of: Number = None
    stream: Optional[bool] = None
    stream_options: Optional[StreamOptions] = None
    echo: Optional[bool] = None
    stop: Union[str, list[str], None] = None
    logit_bias: Optional[dict[str, Any]] = None
    user: Optional[str] = None


CompletionBody = create_model("CompletionBody", __base__=_Body, __doc__="A request. None is the same as leaving it out.",
                              **{name: (Number, None) for name in SETTINGS})


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
        Refused: 400 for a value that means nothing, 422 for one that this server does not allow.
    """
    given = {ours: value for theirs, ours in SETTINGS.items() if (value := getattr(body, theirs)) is not None}
    if given.get("top_k") == 0:  # off
        del given["top_k"]
    if isinstance(given.get("seed"), int) and -2**63 <= given["seed"] < 0:
        given["seed"] += 2**63
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        config = SamplingConfig(**{"max_new_tokens": 16, **given}, echo=bool(body.echo), stop=stop,
                                logit_bias=_bias_of(body))
    except InputError as error:
        raise refused_setting(error) from None
    _check_bounds(config, limits)
    if body.suffix:
        raise Refused(400, "this model only continues a prompt: leave suffix out", "suffix")
    if body.best_of not in (None, config.num_return_sequences):
        raise Refused(400, "best_of must equal n: no completion is discarded here", "best_of")
    return with_seed(config)


def _check_bounds(config: SamplingConfig, limits: Limits) -> None:
    for name, value, most in (("max_tokens", config.max_new_tokens, limits.new_tokens),
                              ("n", config.num_return_sequences, limits.choices),
                              ("logprobs", config.logprobs or 0, limits.logprobs),
                              ("stop", len(config.stop), limits.stop_texts)):
        if value > most:
            raise Refused(422, f"{name}={value} is more than this server's {most}", name)


def refused_setting(error: InputError, names: Mapping[str, str] = OURS) -> Refused:
    """A refusal by ``SamplingConfig``, under an API's names.

    Args:
        names: the API's names, for settings that it calls differently.
    """
    first = re.match(r"sampling\.(\w+)", str(error))
    message = re.sub(r"sampling\.(\w+)", lambda found: names.get(found[1], found[1]), str(error))
    return Refused(400, message, names.get(first[1], first[1]) if first else None)


def _bias_of(body: CompletionBody) -> tuple[tuple[int, Any], ...]:
    try:
        return tuple((int(index), bias) for index, bias in (body.logit_bias or {}).items())
    except ValueError:
        raise Refused(400, "logit_bias maps token ids to numbers", "logit_bias") from None


# ----------------------------------------------------------------------------------------------------- the answers


def new_head(model: str) -> dict[str, Any]:
    """The fields that begin every answer, and every piece of a streamed one."""
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
    """The likeliest tokens by their text; of several tokens with one text (pieces of one character) the likeliest."""
    if token.logprob is None:
        return None
    tops: dict[str, float] = {}
    for index, logprob in token.top:
        tops.setdefault(tokenizer.decode([index]), logprob)
    return tops


def usage_of(prompts: Sequence[Prompt], written: int) -> dict[str, int]:
    read = sum(len(prompt.ids) for prompt in prompts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
