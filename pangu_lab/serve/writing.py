"""The actions of the page's buttons: requests to the scheduler, and their deltas as readable texts."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

from pangu_lab.config import SLIDERS, SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.sampling import History, explain
from pangu_lab.generate.sequence import prepare_prompt
from pangu_lab.generate.text import unknown_ids
from pangu_lab.serve.request import Busy, RequestFailed, ServedRequest, TooLate, Unavailable
from pangu_lab.serve.scheduler import Scheduler
from pangu_lab.serve.templates import TEMPLATES
from pangu_lab.tokenizer.display import VISIBLE

REFRESH_SECONDS = 0.06  # how often the text on the page is updated; faster only loads the browser
CANDIDATES = 12
MORE = tuple(
    name for name in SLIDERS if name not in ("temperature", "top_k", "top_p", "repetition_penalty")
)  # other sliders


class _Running:
    """The requests of every open page, so that a stop button finds its own."""

    def __init__(self) -> None:
        self._requests: dict[str, ServedRequest] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self, session: str, request: ServedRequest) -> Iterator[ServedRequest]:
        with self._lock:
            self._requests[session] = request
        try:
            yield request
        finally:
            request.cancel()
            with self._lock:
                if self._requests.get(session) is request:
                    del self._requests[session]

    def cancel(self, session: str) -> None:
        with self._lock:
            request = self._requests.get(session)
        if request is not None:
            request.cancel()


class Writer:
    """The functions behind the page, without the page."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.engine, self.limits = scheduler, scheduler.engine, scheduler.limits
        self.running = _Running()

    def write(self, texts: dict[str, str], session: str, prompt: str, *controls: Any) -> Iterator[tuple[str, str]]:
        """Yield (continuation, status) repeatedly while the text is generated."""
        try:
            yield from self._write(texts, session, prompt, sampling_of(self.engine.sampling, *controls))
        except InputError as error:
            yield "", f"{texts['refused']} {plain(str(error))}"

    def answer(
        self, texts: dict[str, str], session: str, name: str, examples: str, passage: str, question: str, *controls: Any
    ) -> Iterator[tuple[str, str]]:
        """As ``write``, for a template's prompt: the answer ends where the pattern's next line begins."""
        template = TEMPLATES[name]
        try:
            config = sampling_of(self.engine.sampling, *controls)
            config = dataclasses.replace(
                config,
                stop=template.stop,
                min_new_tokens=0,
                max_new_tokens=min(template.new_tokens, self.limits.new_tokens),
            )
            yield from self._write(texts, session, template.prompt(question, passage, examples), config)
        except InputError as error:
            yield "", f"{texts['refused']} {plain(str(error))}"

    def _write(
        self, texts: dict[str, str], session: str, prompt: str, config: SamplingConfig
    ) -> Iterator[tuple[str, str]]:
        if len(prompt) > self.limits.prompt_characters:
            yield "", texts["too_long"].format(limit=self.limits.prompt_characters)
            return
        yield "", texts["starting"]
        try:
            with self.running.one(session, self._submit(session, prompt, config)) as request:
                yield from self._pieces(texts, request)
        except Busy:
            yield "", texts["busy"]
        except (RequestFailed, Unavailable) as error:
            yield "", f"{texts['refused']} {plain(str(error))}"

    def _submit(self, session: str, prompt: str, config: SamplingConfig, **more: Any) -> ServedRequest:
        config = dataclasses.replace(config, max_new_tokens=min(config.max_new_tokens, self.limits.new_tokens))
        read = prepare_prompt(prompt, _Encoding(self.scheduler), config, self.engine.max_length)
        return self.scheduler.submit([read], config, f"page/{session}", **more)[0]

    def _pieces(self, texts: dict[str, str], request: ServedRequest) -> Iterator[tuple[str, str]]:
        text, late = "", False
        try:
            while (deltas := request.take(REFRESH_SECONDS)) is not None:
                text += "".join(delta.text for delta in deltas)
                yield text, self._status(texts, request)
                time.sleep(REFRESH_SECONDS if deltas else 0)
        except TooLate:
            late = True
        done = request.completion
        reason = texts["late" if late else "stop_reason" if done.finish_reason == "stop" else done.finish_reason]
        said = [_speed(texts, request), reason, texts["seed_was"].format(seed=done.seed)]
        yield done.text, " · ".join([*said, *map(plain, done.warnings)])

    def _status(self, texts: dict[str, str], request: ServedRequest) -> str:
        if request.state == "waiting" and (place := self.scheduler.position(request)):
            return texts["queue"].format(place=place)
        return _speed(texts, request) if request.first_token else texts["starting"]

    def complete(
        self, prompt: str, max_tokens: int = 64, temperature: float = 1.0, top_p: float = 1.0, seed: int = -1
    ) -> str:
        """Continue a prompt, for Gradio's own client; a negative seed takes a random one.

        Raises:
            Error: of Gradio, with the reason; its client raises it again.
        """
        from gradio import Error

        try:
            config = SamplingConfig(
                max_new_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=None if isinstance(seed, int) and seed < 0 else seed,
            )
            if not isinstance(prompt, str):
                raise InputError("the prompt must be a text")
            if len(prompt) > self.limits.prompt_characters or config.max_new_tokens > self.limits.new_tokens:
                raise InputError(
                    f"this server reads {self.limits.prompt_characters} characters and writes "
                    f"{self.limits.new_tokens} tokens at most"
                )
            return self._submit("client", prompt, config).result().text
        except (InputError, Busy, RequestFailed, Unavailable, TooLate) as error:
            raise Error(str(error), print_exception=False) from None

    def count(self, texts: dict[str, str], prompt: str) -> str:
        """How many tokens a prompt has, and how many the model holds."""
        if len(prompt) > self.limits.prompt_characters:
            return texts["too_long"].format(limit=self.limits.prompt_characters)
        return texts["count"].format(tokens=len(self.scheduler.encode(prompt)), most=self.engine.max_length)

    def candidates(
        self, texts: dict[str, str], session: str, prompt: str, *controls: Any
    ) -> tuple[list[list[str]], list[str], str]:
        """The likeliest next tokens before and after each sampler.

        Returns:
            Rows (token, then a percentage for each stage), the tokens' texts as they are, and a status.
        """
        try:
            config = sampling_of(self.engine.sampling, *controls)
            request = self._submit(session, prompt, dataclasses.replace(config, max_new_tokens=1), keep_logits=True)
            request.result()
            stages = self._stages(request, config)
        except (InputError, Busy, RequestFailed, Unavailable, TooLate) as error:
            return [], [], f"{texts['refused']} {plain(str(error))}"
        best = [index for index, _ in stages["model"].top(CANDIDATES)]
        best += [index for index, _ in list(stages.values())[-1].top(3) if index not in best]
        written = [self.engine.tokenizer.decode([index]) for index in best]
        rows = [
            [
                _visible(text, index, self.engine.tokenizer),
                *(f"{100 * stage.probabilities[index]:.2f}" for stage in stages.values()),
            ]
            for index, text in zip(best, written)
        ]
        return rows, written, texts["choose"]

    def _stages(self, request: ServedRequest, config: SamplingConfig) -> dict[str, Any]:
        """The rows of the table: the model's own, all bans and penalties as one, and each sampler."""
        tokenizer = self.engine.tokenizer
        ends = (tokenizer.eod_id, *config.stop_ids)
        history = History(request.prompt.ids, [], ends, unknown=unknown_ids(tokenizer))
        stages = {stage.name: stage for stage in explain(request.logits[: tokenizer.vocab_size], config, history)}
        shown = {"model": stages["model"], "penalties": stages["frequency_and_presence"]}
        for name in STAGES[2:-1]:
            shown[name] = stages.get(name, list(stages.values())[-1])
        return {**shown, "chance": list(stages.values())[-1]}


STAGES = ("model", "penalties", "temperature", "top_k", "top_p", "chance")  # the table's columns of numbers


class _Encoding:
    """The engine's tokenizer, whose ``encode`` waits for its turn."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def encode(self, text: str) -> list[int]:
        return self._scheduler.encode(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler.engine.tokenizer, name)


def sampling_of(
    defaults: SamplingConfig,
    new_tokens: float,
    temperature: float,
    top_p: float,
    top_k: float,
    repetition: float,
    frequency: float,
    presence: float,
    stop: str,
    seed: str,
    *more: float,
) -> SamplingConfig:
    """The controls of the page as settings.

    Args:
        defaults: of the bundle; settings without a control on the page keep these values.
        top_p, top_k: 1 and 0 switch them off.
        stop: one stop string per line.
        seed: empty for a random one.
        more: of ``MORE``, in that order.

    Raises:
        InputError: a value outside its range.
    """
    seed = str(seed).strip()
    if seed and not (seed.isdecimal() and len(seed) <= 19):
        raise InputError(f"the seed must be a whole number of at most 19 digits, not '{seed[:40]}'")
    made = dataclasses.replace(
        defaults,
        max_new_tokens=new_tokens,
        min_new_tokens=0,
        temperature=temperature,
        top_p=None if top_p == 1 else top_p,
        top_k=top_k or None,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        stop=tuple(line for line in (stop or "").splitlines() if line),
        num_beams=1,
        num_return_sequences=1,
        echo=False,
        logprobs=None,
        seed=int(seed) if seed else None,
        **{name: None if value == SLIDERS[name][3] else value for name, value in zip(MORE, more)},
    )
    return dataclasses.replace(made, min_new_tokens=min(defaults.min_new_tokens, made.max_new_tokens))


def plain(text: str) -> str:
    """``text`` for a place that reads markup: every character that could begin markup is escaped."""
    harmless = " .,:;()-=/"
    return "".join(letter if letter.isalnum() or letter in harmless else f"&#{ord(letter)};" for letter in text)


def _visible(text: str, index: int, tokenizer: Any) -> str:
    """A token as a table shows it: blanks drawn; the end of a document, and pieces that add no text, named."""
    if index == tokenizer.eod_id:
        return "⟨eod⟩"
    return text.translate(VISIBLE) or tokenizer.piece(index)


def _speed(texts: dict[str, str], request: ServedRequest) -> str:
    """Tokens, and tokens per second since the first was chosen."""
    end = request.ended_at or time.monotonic()
    seconds = max(end - (request.started or end), 1e-9)
    return texts["speed"].format(tokens=request.tokens, rate=request.tokens / seconds)
