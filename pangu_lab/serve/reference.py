"""The routes of the reference implementation's serving, for clients that were written for it.

``POST /model/pangu/version/0:predict`` takes ``{"instances": [{"input_sentence": …}]}`` (one object without the
list as well) and answers ``{"instances": [{"output_sentence": …}]}``; ``GET /query?u=`` answers plain text. The
reference's names are kept, its bugs are not: probabilities are e**logit, the nucleus is the right way round, and text
comes from the tokenizer instead of joined pieces.

With ``return_scores`` nothing is generated: ``output_sentence`` is the mean negative log-likelihood of what follows
``prompt`` in ``input_sentence`` (of all of it when ``prompt`` is empty), by which its evaluation ranks options.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import Engine
from pangu_lab.generate.sequence import Completion, Prompt, prepare_prompt
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.protocol import Refused, refused_setting
from pangu_lab.serve.scheduler import prompt_of_ids, with_seed

PARAMETERS = (
    "frequency_penalty",
    "presence_penalty",
    "max_generate_length",
    "top_k_num",
    "top_p",
    "end_token",
    "use_past",
)
NAMES = {"max_new_tokens": "max_generate_length", "top_k": "top_k_num", "stop_ids": "end_token"}  # of SamplingConfig
TEXTS = ("input_sentence", "prompt", "return_scores")


@dataclass(frozen=True)
class ParsedInstance:
    """One instance: the prompt to feed, its settings, and for scores the position they begin at."""

    prompt: Prompt
    config: SamplingConfig
    scored_from: int | None = None


def instances_of(body: Any, limits: Limits) -> list[dict[str, Any]]:
    """The instances of a request, each with the parameters given beside them.

    Raises:
        Refused: not of that form.
    """
    instances = body.get("instances") if isinstance(body, dict) else None
    if isinstance(instances, dict):
        instances = [instances]
    if not isinstance(instances, list) or not instances or not all(isinstance(one, dict) for one in instances):
        raise Refused(400, 'send {"instances": [{"input_sentence": "…"}]}', "instances")
    if len(instances) > limits.prompts:
        raise Refused(
            422, f"{len(instances)} instances in one request; this server takes {limits.prompts}", "instances"
        )
    shared = {key: value for key, value in body.items() if key != "instances"}
    merged = [{**shared, **one} for one in instances]
    for one in merged:
        for name in one:
            if name not in (*TEXTS, *PARAMETERS):
                raise Refused(400, f"unknown name '{name[:100]}'; known are {', '.join((*TEXTS, *PARAMETERS))}", name)
    return merged


def parse_instance(instance: dict[str, Any], engine: Engine, limits: Limits, encode: Any) -> ParsedInstance:
    """What one instance asks for.

    Raises:
        Refused: a value of the wrong kind or out of its range.
    """
    text, prompt = _text(instance, "input_sentence", limits), _text(instance, "prompt", limits)
    try:
        if _value(instance, "return_scores", bool, False):
            return _parse_scoring(engine, text, prompt, encode)
        config = settings_of(instance, engine, limits)
        return ParsedInstance(prepare_prompt(prompt + text, engine.tokenizer, config, engine.max_length), config)
    except InputError as error:
        raise refused_setting(error, NAMES) from None


def _parse_scoring(engine: Engine, text: str, prompt: str, encode: Any) -> ParsedInstance:
    """The tokens of the prompt are those that the whole text begins with too."""
    whole, before = encode(text), encode(prompt)
    start = 0
    while start < min(len(whole), len(before)) and whole[start] == before[start]:
        start += 1
    if start >= len(whole):
        raise Refused(400, "input_sentence must continue prompt: there is nothing to score", "input_sentence")
    config = SamplingConfig(max_new_tokens=0, temperature=0, echo=True, logprobs=0)
    return ParsedInstance(prompt_of_ids(engine, whole), config, max(start, 1))


def settings_of(instance: dict[str, Any], engine: Engine, limits: Limits) -> SamplingConfig:
    """The bundle's own settings, changed by what the instance names."""
    base, plain = engine.sampling, (int, float)
    values: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "echo": False, "logprobs": None}
    for name in ("frequency_penalty", "presence_penalty", "top_p"):
        values[name] = _value(instance, name, plain, getattr(base, name))
    count = _value(instance, "max_generate_length", int, min(base.max_new_tokens, limits.new_tokens))
    end = _value(instance, "end_token", int, None)
    values |= {
        "max_new_tokens": count,
        "min_new_tokens": min(base.min_new_tokens, count),
        "top_k": _value(instance, "top_k_num", int, base.top_k) or None,
        "stop_ids": base.stop_ids if end is None else (end,),
    }
    _value(instance, "use_past", bool, True)  # the cache is always used: the text is the same either way
    config = dataclasses.replace(base, **values)
    if count > limits.new_tokens:
        raise Refused(
            422, f"max_generate_length={count} is more than this server's {limits.new_tokens}", "max_generate_length"
        )
    return with_seed(config)


def reply_of(asked: ParsedInstance, done: Completion) -> dict[str, Any]:
    """The answer to one instance."""
    if asked.scored_from is None:
        return {"output_sentence": done.text}
    scored = [token.logprob for token in done.prompt_logprobs[asked.scored_from :]]
    return {"output_sentence": -sum(scored) / len(scored), "scores": scored}


def _text(instance: dict[str, Any], name: str, limits: Limits) -> str:
    text = _value(instance, name, str, "")
    if len(text) > limits.prompt_characters:
        raise Refused(
            413, f"{name} has {len(text)} characters and this server reads {limits.prompt_characters}: shorten it", name
        )
    return text


def _value(instance: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = instance.get(name)
    if value is None:
        return default
    if isinstance(value, bool) and kind is not bool or not isinstance(value, kind):
        expected = {bool: "true or false", str: "a text", int: "a whole number"}.get(kind, "a number")
        raise Refused(400, f"{name} must be {expected}", name)
    return value
