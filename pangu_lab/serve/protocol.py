"""The body of ``POST /v1/completions``, checked and turned into prompts and settings; and its answers.

Names and meanings are those of OpenAI's completions API, so that its clients work unchanged; in addition there are
samplers that this model has and that API lacks (``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens``).
Penalties count only the generated text, as there. The defaults of a request are also as there (``temperature``
1, ``max_tokens`` 16), not as in the bundle, for the same reason. Fields that cannot change a text (``HARMLESS``) are
ignored, and named in the answer's header; every other unknown one is refused, since a text would silently differ.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, create_model, field_validator

from pangu_lab.config import SAMPLING_RANGES, SamplingConfig
from pangu_lab.errors import InputError, nearest
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sequence import FULL, LENGTH, Completion, Prompt, TokenLogprob
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.scheduler import prompt_of_ids, with_seed

RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "num_return_sequences": "n"}
LEFT_OUT = ("no_repeat_ngram", "num_beams", "length_penalty")
OURS = {name: RENAMED.get(name, name) for name in SAMPLING_RANGES if name not in LEFT_OUT}
SETTINGS = {theirs: ours for ours, theirs in OURS.items()}  # of a request, and what they are called here
HARMLESS = ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store")
IGNORED = "X-Ignored-Fields"  # the header that names the ignored ones
DEEPEST = 32  # lists and objects in one another: no request needs ten
FINISH = {LENGTH: "length", FULL: "length"}  # everything else is "stop"


class Refused(Exception):
    """A request that is answered with an error body.

    Attributes:
        status: of HTTP.
        kind, parameter, code: as the API names the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter, self.code, self.kind = status, message, parameter, code, kind

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}}


def hung_up() -> Refused:
    """What ends a request whose client is not there any more; nobody reads it, but the metrics count it."""
    return Refused(499, "the client has hung up")


def parse_json(body: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Parse a JSON body; for every route that reads one.

    Args:
        pairs: makes an object of its names and values.

    Raises:
        Refused: it is not JSON, or too deep, or one of its texts has half a surrogate pair, which is not a character
            and would break any later encoding.
    """
    try:
        values = json.loads(body, object_pairs_hook=pairs)
        if _is_deep(values):
            raise RecursionError
    except RecursionError:
        raise Refused(400, f"the request's lists and objects are more than {DEEPEST} deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Refused(400, "the request's body is not JSON") from None
    except ValueError:  # Python's own bound, against numbers that take long to read
        raise Refused(400, "the request has a number of thousands of digits") from None
    if not _is_text(values):
        name = (
            next((name for name, value in values.items() if _is_text(name) and not _is_text(value)), None)
            if isinstance(values, dict)
            else None
        )
        raise Refused(
            400,
            f"{name or 'a text in the request'} holds half a surrogate pair (such as \\ud83d alone): "
            "send whole characters",
            name,
        )
    return values


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``pairs`` as an object.

    Raises:
        Refused: a name stands there twice, and nothing says which value is meant.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        name = name[:100] if _is_text(name) else "…"
        raise Refused(400, f"the request has {name!r} twice: send each name once", name)
    return values


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(DEEPEST):
        level = [
            one
            for each in level
            if isinstance(each, (dict, list))
            for one in (each.values() if isinstance(each, dict) else each)
            if isinstance(one, (dict, list))
        ]
    return bool(level)


def _is_text(values: Any) -> bool:
    """Whether every text in JSON values is one that can be encoded."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
        return True
    except UnicodeEncodeError:
        return False


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None  # accepted and ignored


Number = Any  # any kind and size: SamplingConfig refuses what is not a number or out of range, with a message


class _Body(BaseModel):
    """What may stand in a request beside ``SETTINGS``; each description completes "the field must be"."""

    model_config = ConfigDict(strict=True)

    model: str | None = Field(None, description="the model's name")
    prompt: Any = Field(  # checked below, since pydantic would describe every one of half a million wrong values
        None, description="a text, a list of texts, a list of token ids, or a list of such lists"
    )
    suffix: str | None = Field(None, description="a text")
    best_of: int | None = Field(None, description="a whole number")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description='an object such as {"include_usage": true}')
    echo: bool | None = Field(None, description="true or false")
    stop: Any = Field(None, description="a text or a list of texts")
    logit_bias: dict[str, Any] | None = Field(None, description="an object that maps token ids to numbers")
    user: str | None = Field(None, description="a text")

    @field_validator("prompt", "stop")
    @classmethod
    def _check_lists(cls, value: Any, info: ValidationInfo) -> Any:
        good = isinstance(value, str) or _all(str, value)
        if not good and info.field_name == "prompt":
            good = _all(int, value) or _all(list, value) and all(_all(int, one) for one in value)
        if not good:
            raise ValueError
        return value


def _all(kind: type, values: Any) -> bool:
    """Whether it is a list of values of just this kind; true and false are no numbers."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


CompletionBody = create_model(
    "CompletionBody",
    __base__=_Body,
    __doc__="A request. None is the same as leaving it out.",
    **dict.fromkeys(SETTINGS, (Number, None)),
)


def completion_body(values: Any) -> tuple[CompletionBody, list[str]]:
    """A request, and the names of its fields that are ignored.

    Raises:
        Refused: it is no object; a field is unknown or has a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise Refused(400, 'the request must be an object such as {"prompt": "…"}')
    fields = {name: value for name, value in values.items() if value is not None and name not in HARMLESS}
    known = CompletionBody.model_fields
    unknown = next((name[:100] for name in fields if name not in known), None)
    if unknown is not None:
        raise Refused(400, f"unrecognised request argument: {unknown}{nearest(unknown, known)}", unknown)
    try:
        return CompletionBody.model_validate(fields), [name for name in values if name in HARMLESS]
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
    raise Refused(400, f"{name} must be {known[name].description}", name)


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


def _prompt_of(given: str | Sequence[int], engine: Engine, limits: Limits, encode: Any, measured: bool) -> Prompt:
    if isinstance(given, str) and len(given) > limits.prompt_characters:
        raise Refused(
            413,
            f"the prompt has {len(given)} characters and this server reads {limits.prompt_characters}: shorten it",
            "prompt",
            "context_length_exceeded",
        )
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
    if isinstance(given.get("seed"), int) and -(2**63) <= given["seed"] < 0:
        given["seed"] += 2**63
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        config = SamplingConfig(
            **{"max_new_tokens": 16, **given}, echo=bool(body.echo), stop=stop, logit_bias=_bias_of(body)
        )
    except InputError as error:
        raise refused_setting(error) from None
    _check_bounds(config, limits)
    if body.suffix:
        raise Refused(400, "this model only continues a prompt: leave suffix out", "suffix")
    if body.best_of not in (None, config.num_return_sequences):
        raise Refused(400, "best_of must equal n: no completion is discarded here", "best_of")
    return with_seed(config)


def _check_bounds(config: SamplingConfig, limits: Limits) -> None:
    for name, value, most in (
        ("max_tokens", config.max_new_tokens, limits.new_tokens),
        ("n", config.num_return_sequences, limits.choices),
        ("logprobs", config.logprobs or 0, limits.logprobs),
        ("stop", len(config.stop), limits.stop_texts),
    ):
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
    biases = body.logit_bias or {}
    if not all(re.fullmatch(r"0|[1-9][0-9]{0,18}", index) for index in biases):
        raise Refused(400, "logit_bias must be an object that maps token ids to numbers", "logit_bias")
    return tuple((int(index), bias) for index, bias in biases.items())


# ----------------------------------------------------------------------------------------------------- the answers


def new_head(model: str) -> dict[str, Any]:
    """The fields that begin every answer, and every piece of a streamed one."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}


def finish_of(reason: str | None) -> str | None:
    return None if reason is None else FINISH.get(reason, "stop")


class Offsets:
    """Where each token of a text begins, in characters of that text; for tokens that may be parts of a character.

    Args:
        start: where the first one begins.
    """

    def __init__(self, tokenizer: Any, start: int = 0) -> None:
        self._tokenizer, self._end = tokenizer, start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, index: int) -> int:
        """The place of the next token: of the character that its first byte belongs to."""
        piece = self._tokenizer.text_bytes(index)
        place = self._add(piece[:1]) if piece else self._end
        self._add(piece[1:])
        return place

    def _add(self, part: bytes) -> int:
        """The place of the character that the last byte of ``part`` belongs to."""
        self._end += len(self._decoder.decode(part))
        unfinished = self._decoder.getstate()[0]
        return self._end if unfinished else self._end - 1


def prompt_offsets(
    prompt: Prompt, tokenizer: Any, words_of: Callable[[str], Sequence[tuple[str, Sequence[int]]]]
) -> list[int]:
    """Where each token of a prompt begins in its text, which a tokenizer may write otherwise ("…" as "...").

    Args:
        words_of: a text's words, each with its tokens.
    """
    if tokenizer.decode(prompt.ids) == prompt.text:
        offsets = Offsets(tokenizer)
        return [offsets.of(index) for index in prompt.ids]
    words = words_of(prompt.text)
    if [index for _, ids in words for index in ids] != list(prompt.ids):
        words = [(prompt.text, prompt.ids)]
    places, start = [], 0
    for word, ids in words:
        offsets, last = Offsets(tokenizer, start), start + max(len(word) - 1, 0)
        places += [min(offsets.of(index), last) for index in ids]
        start += len(word)
    return places


class Logprobs:
    """The API's lists about the tokens of one choice, which may come in pieces.

    Args:
        prompt_places: of the prompt's tokens, which come first, when the text begins with the prompt.
        start: where the text after these begins.
    """

    def __init__(self, tokenizer: Any, prompt_places: Sequence[int] = (), start: int = 0) -> None:
        self._tokenizer, self._places, self._offsets = tokenizer, list(prompt_places), Offsets(tokenizer, start)

    def of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens. ``bytes`` has each token's own, which alone may be no character."""
        places = [self._places.pop(0) if self._places else self._offsets.of(token.id) for token in tokens]
        pieces = [self._tokenizer.text_bytes(token.id) for token in tokens]
        return {
            "tokens": [spelled(piece) for piece in pieces],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._tops(token) for token in tokens],
            "text_offset": places,
            "bytes": [list(piece) for piece in pieces],
        }

    def _tops(self, token: TokenLogprob) -> dict[str, float] | None:
        """The likeliest tokens by their text; of several with one text (special pieces have none) the likeliest."""
        if token.logprob is None:
            return None
        tops: dict[str, float] = {}
        for index, logprob in token.top:
            tops.setdefault(spelled(self._tokenizer.text_bytes(index)), logprob)
        return tops


def spelled(piece: bytes) -> str:
    """A token as a text; one that is only a part of a character as the API spells it: ``bytes:\\xe6\\x98``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def choice_of(index: int, done: Completion, logprobs: Logprobs) -> dict[str, Any]:
    """One completion as a choice."""
    told = None if done.logprobs is None else logprobs.of([*(done.prompt_logprobs or ()), *done.logprobs])
    return {"index": index, "text": done.text, "logprobs": told, "finish_reason": finish_of(done.finish_reason)}


def usage_of(prompts: Sequence[Prompt], written: int) -> dict[str, int]:
    read = sum(len(prompt.ids) for prompt in prompts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
