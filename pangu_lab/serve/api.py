"""The HTTP API: OpenAI-compatible completions, the reference's predict routes, health and metrics.

Every error is answered with the same body: ``{"error": {"message", "type", "param", "code"}}``. When a client
disconnects its requests end, streamed or not, waiting or running. Texts of requests are never logged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.sequence import Delta, Prompt
from pangu_lab.serve import reference
from pangu_lab.serve.metrics import Metrics
from pangu_lab.serve.protocol import (
    IGNORED,
    Logprobs,
    Refused,
    choice_of,
    completion_body,
    finish_of,
    hung_up,
    new_head,
    parse_json,
    prompt_offsets,
    prompts_of,
    refused_setting,
    settings_of,
    usage_of,
    without_repeats,
)
from pangu_lab.serve.request import Busy, RequestFailed, ServedRequest, TooLate, Unavailable
from pangu_lab.serve.scheduler import Scheduler

SSE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def build_api(scheduler: Scheduler, metrics: Metrics) -> FastAPI:
    """The routes over a scheduler; without the page, and without a guard (``server.py`` adds both)."""
    app = FastAPI(title="PanGu-α lab", docs_url=None, redoc_url=None, openapi_url=None)
    api = _Api(scheduler)
    read = ["GET", "HEAD"]
    for path in ("/v1/models", "/v1/models/"):
        app.add_api_route(path, api.models, methods=read)
    app.add_api_route("/v1/models/{name:path}", api.model, methods=read)
    app.add_api_route("/v1/completions", api.completions, methods=["POST"])
    app.add_api_route("/model/pangu/version/0:predict", api.predict, methods=["POST"])
    app.add_api_route("/query", api.query, methods=["GET"])
    app.add_api_route("/healthz", lambda: PlainTextResponse("ok\n"), methods=read)
    app.add_api_route("/readyz", api.ready, methods=read)
    app.add_api_route(
        "/metrics", lambda: Response(metrics.text(), media_type="text/plain; version=0.0.4"), methods=read
    )
    for path in ("/v1/{rest:path}", "/model/{rest:path}"):  # or the page, which is mounted after, would answer
        app.add_api_route(path, _no_route, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    app.add_exception_handler(Refused, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_unforeseen)
    app.add_exception_handler(RequestValidationError, _answer_http)
    return app


async def _no_route(request: HttpRequest) -> None:
    hint = "; use /v1/completions, since this model only continues texts" if "chat" in request.url.path else ""
    raise Refused(404, f"{request.method} {request.url.path[:100]} does not exist here{hint}", code="unknown_url")


async def _answer(request: HttpRequest, error: Refused) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


async def _answer_nobody(request: HttpRequest, error: ClientDisconnect) -> JSONResponse:
    return await _answer(request, hung_up())


async def _answer_http(request: HttpRequest, error: Any) -> JSONResponse:
    status, detail = getattr(error, "status_code", 400), getattr(error, "detail", "the request has another form")
    return await _answer(request, Refused(status, str(detail)))


async def _answer_unforeseen(request: HttpRequest, error: Exception) -> JSONResponse:
    return await _answer(request, refusal(RequestFailed("this request failed inside the server, whose log says why")))


def refusal(error: Exception) -> Refused:
    """The answer to an exception of the scheduler."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(429, str(error), code="rate_limit_exceeded", kind="rate_limit_error")
    if isinstance(error, TooLate):
        return Refused(504, str(error), code="timeout", kind="timeout_error")
    if isinstance(error, Unavailable):
        return Refused(503, str(error), code="unavailable", kind="server_error")
    if isinstance(error, InputError):
        return refused_setting(error)
    return Refused(500, str(error), code="request_failed", kind="server_error")


class _Asking:
    """The scheduler's requests of one HTTP request, and the event loop that waits for them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.requests = scheduler, []
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()

    async def submit(self, prompts: Sequence[Prompt], configs: Any, session: str) -> None:
        try:
            self.requests = await run_in_threadpool(
                self.scheduler.submit, prompts, configs, session, None, self._notify
            )
        except (InputError, Busy, Unavailable) as error:
            raise refusal(error) from None

    def _notify(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._told.set)
        except RuntimeError:  # the loop has ended, and nobody is waiting any more
            pass

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index of the prompt, delta) until every request has ended.

        Raises:
            Refused: one of them failed.
        """
        left = dict(enumerate(self.requests))
        while left:
            self._told.clear()
            for index, asked in list(left.items()):
                while taken := self._take(asked):
                    for one in taken:
                        yield index, one
                if taken is None:
                    del left[index]
            if left:
                await self._told.wait()

    @staticmethod
    def _take(asked: ServedRequest) -> list[Delta] | None:
        try:
            return asked.take()
        except (InputError, RequestFailed, TooLate, Unavailable) as error:
            raise refusal(error) from None

    async def finish(self, request: HttpRequest) -> None:
        """Wait until all have ended, or the client disconnects."""

        async def all_deltas() -> None:
            async for _ in self.deltas():
                pass

        working = asyncio.ensure_future(all_deltas())
        watching = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise hung_up()
            await working
        finally:
            self.cancel()
            working.cancel()
            watching.cancel()

    def cancel(self) -> None:
        for asked in self.requests:
            if asked.state != "done":
                asked.cancel()


async def _hung_up(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json_of(request: HttpRequest) -> Any:
    return await run_in_threadpool(parse_json, await request.body(), without_repeats)


def _session_of(request: HttpRequest, user: str | None = None) -> str:
    return f"{request.client.host if request.client else ''}/{(user or '')[:64]}"


class _Api:
    """The handlers of the routes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.engine, self.limits = scheduler, scheduler.engine, scheduler.limits
        self.name, self.started = scheduler.engine.name or "pangu", int(time.time())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "pangu-lab",
            "max_model_len": self.engine.max_length,
            "max_scored_len": self.engine.max_length + 1,
        }

    async def models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, name: str) -> JSONResponse:
        self._check_name(name)
        return JSONResponse(self._card())

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise Refused(
                404,
                f"the model '{name[:100]}' does not exist; this server has '{self.name}'",
                "model",
                "model_not_found",
            )

    async def ready(self) -> PlainTextResponse:
        return PlainTextResponse(self.scheduler.state + "\n", 200 if self.scheduler.ready.is_set() else 503)

    async def completions(self, request: HttpRequest) -> Response:
        body, ignored = await run_in_threadpool(completion_body, await _json_of(request))
        self._check_name(body.model or None)
        config = await run_in_threadpool(settings_of, body, self.limits)
        prompts = await run_in_threadpool(prompts_of, body, self.engine, self.limits, self.scheduler.encode)
        logprobs = await run_in_threadpool(self._logprobs, prompts, config)
        asking = _Asking(self.scheduler)
        await asking.submit(prompts, config, _session_of(request, body.user))
        told = {IGNORED: ", ".join(ignored)} if ignored else {}
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(
                self._pieces(asking, config, logprobs, usage), media_type="text/event-stream", headers={**SSE, **told}
            )
        await asking.finish(request)
        done = [one for asked in asking.requests for one in asked.completion.all]
        choices = [choice_of(index, one, logprobs[index]) for index, one in enumerate(done)]
        written = sum(asked.tokens for asked in asking.requests)
        values = {**new_head(self.name), "choices": choices, "usage": usage_of(prompts, written)}
        return JSONResponse(values, headers=told)

    def _logprobs(self, prompts: Sequence[Prompt], config: SamplingConfig) -> list[Logprobs]:
        """For each choice, what will tell its tokens."""
        made = []
        for prompt in prompts:
            echoed = config.echo and config.logprobs is not None
            places = prompt_offsets(prompt, self.engine.tokenizer, self.scheduler.words) if echoed else []
            start = len(prompt.text) if config.echo else 0
            made += [Logprobs(self.engine.tokenizer, places, start) for _ in range(config.num_return_sequences)]
        return made

    async def _pieces(
        self, asking: _Asking, config: SamplingConfig, logprobs: Sequence[Logprobs], usage: bool
    ) -> AsyncIterator[str]:
        """The events of a streamed answer."""
        head, streams = new_head(self.name), {}
        try:
            async for index, delta in asking.deltas():
                number = index * config.num_return_sequences + delta.number
                if number not in streams:
                    streams[number] = _Choice(number, asking.requests[index], config, logprobs[number])
                more = {"usage": None} if usage else {}
                yield _event({**head, "choices": [streams[number].piece(delta)], **more})
            if usage:
                prompts = [asked.prompt for asked in asking.requests]
                written = sum(asked.tokens for asked in asking.requests)
                yield _event({**head, "choices": [], "usage": usage_of(prompts, written)})
            yield "data: [DONE]\n\n"
        except Refused as error:
            yield _event(error.body())
        finally:
            asking.cancel()

    async def predict(self, request: HttpRequest) -> JSONResponse:
        instances = reference.instances_of(await _json_of(request), self.limits)
        asked = [
            await run_in_threadpool(reference.parse_instance, one, self.engine, self.limits, self.scheduler.encode)
            for one in instances
        ]
        asking = _Asking(self.scheduler)
        await asking.submit([one.prompt for one in asked], [one.config for one in asked], _session_of(request))
        await asking.finish(request)
        return JSONResponse(
            {"instances": [reference.reply_of(one, written.completion) for one, written in zip(asked, asking.requests)]}
        )

    async def query(self, request: HttpRequest) -> PlainTextResponse:
        text = request.query_params.get("u", "")
        asked = await run_in_threadpool(
            reference.parse_instance, {"input_sentence": text}, self.engine, self.limits, self.scheduler.encode
        )
        asking = _Asking(self.scheduler)
        await asking.submit([asked.prompt], asked.config, _session_of(request))
        await asking.finish(request)
        return PlainTextResponse(asking.requests[0].completion.text)


class _Choice:
    """One completion of a streamed answer, and whether some of it has been sent."""

    def __init__(self, number: int, request: ServedRequest, config: SamplingConfig, logprobs: Logprobs) -> None:
        self.number, self.request, self.config, self.logprobs = number, request, config, logprobs
        self.begun = False

    def piece(self, delta: Delta) -> dict[str, Any]:
        text, tokens = delta.text, list(delta.tokens)
        if self.config.echo and not self.begun:
            text = self.request.prompt.text + text
            tokens = [*(self.request.completion.all[delta.number].prompt_logprobs or ()), *tokens]
        self.begun = True
        logprobs = self.logprobs.of(tokens) if self.config.logprobs is not None and tokens else None
        return {
            "index": self.number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_of(delta.finish_reason),
        }


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
