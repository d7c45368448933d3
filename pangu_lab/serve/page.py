"""A page to write with, over an exported bundle: a prompt, its continuation as it is made, the sampling controls.

Gradio draws it; nothing is loaded from anywhere but this server (system fonts, no analytics, no sharing), the API
is closed, and what the model writes is shown as plain text in a text box, never as markup. Several people can
write at once: their generations take turns token by token over one bundle. Labels follow the browser's language
(zh or en). Prompts are not logged or kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.generate.engine import CompletionStream, Engine, stream
from pangu_lab.serve.texts import LANGUAGES, PRESETS, language_of

REFRESH_SECONDS = 0.06  # how often the text on the page grows; quicker only costs the browser
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
CSS = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important; padding: 12px !important}
#title h1 {font-size: 1.5rem; margin: 0.2rem 0} #title p {margin: 0; opacity: 0.75}
#prompt textarea, #continuation textarea {font-size: 1.05rem; line-height: 1.7}
#buttons {gap: 8px; flex-wrap: nowrap} #buttons button {min-width: 0}
#status {min-height: 1.6rem; opacity: 0.8} #status p, #model p {margin: 0} #model {opacity: 0.6}
@media (max-width: 600px) {.gradio-container, .main.fillable {padding: 6px !important}}
footer {display: none !important}
"""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        prompt_characters: longer prompts are refused.
        new_tokens: the highest setting of the length control.
        seconds: a generation is stopped after this long.
        at_once: generations that take turns; more wait.
        waiting: requests that wait; more are refused.
    """

    prompt_characters: int = 20_000
    new_tokens: int = 1024
    seconds: float = 300.0
    at_once: int = 4
    waiting: int = 32


class _Running:
    """The generations of every open page, so that a stop button finds its own."""

    def __init__(self) -> None:
        self._streams: dict[str, CompletionStream] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self, session: str, made: CompletionStream) -> Iterator[CompletionStream]:
        with self._lock:
            self._streams[session] = made
        try:
            yield made
        finally:
            made.close()
            with self._lock:
                if self._streams.get(session) is made:
                    del self._streams[session]

    def cancel(self, session: str) -> None:
        with self._lock:
            made = self._streams.get(session)
        if made is not None:
            made.cancel()


class _Writer:
    """What the buttons do; everything the page shows goes through here."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits, self.running = engine, limits, _Running()

    def write(self, texts: dict[str, str], session: str, prompt: str, *controls: Any) -> Iterator[tuple[str, str]]:
        """(continuation, status) again and again while it is made."""
        if len(prompt) > self.limits.prompt_characters:
            yield "", texts["too_long"].format(limit=self.limits.prompt_characters)
            return
        yield "", texts["starting"]
        try:
            made = stream(self.engine, prompt, sampling_of(self.engine.sampling, *controls))
            with self.running.one(session, made):
                yield from self._pieces(texts, made)
        except InputError as error:
            yield "", f"{texts['refused']} {plain(str(error))}"

    def _pieces(self, texts: dict[str, str], made: CompletionStream) -> Iterator[tuple[str, str]]:
        text, shown, started = "", 0.0, time.monotonic()
        for piece in made:
            text += piece
            now = time.monotonic()
            if now - started > self.limits.seconds:
                made.cancel()
            if now - shown >= REFRESH_SECONDS:
                shown = now
                yield text, _speed(texts, made.tokens, now - started)
        done = made.completion
        seconds = time.monotonic() - started
        reason = texts["stop_reason" if done.finish_reason == "stop" else done.finish_reason]
        news = [_speed(texts, made.tokens, seconds), reason, texts["seed_was"].format(seed=done.seed)]
        yield done.text, " · ".join([*news, *map(plain, done.warnings)])


def sampling_of(defaults: SamplingConfig, new_tokens: float, temperature: float, top_p: float, top_k: float,
                repetition: float, frequency: float, presence: float, stop: str, seed: str) -> SamplingConfig:
    """The controls of the page as settings.

    Args:
        defaults: of the bundle; what the page has no control for stays as it is there.
        top_p, top_k: 1 and 0 switch them off.
        stop: one stop string a line.
        seed: empty for a fresh one.

    Raises:
        InputError: a value outside its range.
    """
    if seed.strip() and not seed.strip().isdecimal():
        raise InputError(f"the seed must be a whole number, not '{seed.strip()}'")
    return dataclasses.replace(
        defaults, max_new_tokens=int(new_tokens), min_new_tokens=min(defaults.min_new_tokens, int(new_tokens)),
        temperature=float(temperature), top_p=float(top_p) if top_p < 1 else None, top_k=int(top_k) or None,
        repetition_penalty=float(repetition), frequency_penalty=float(frequency), presence_penalty=float(presence),
        stop=tuple(line for line in (stop or "").splitlines() if line), num_beams=1, num_return_sequences=1,
        echo=False, logprobs=None, seed=int(seed) if seed.strip() else None)


def plain(text: str) -> str:
    """``text`` for a place that reads markup: every sign that could begin markup is written as a character."""
    harmless = " .,:;()-=/"
    return "".join(letter if letter.isalnum() or letter in harmless else f"&#{ord(letter)};" for letter in text)


def _speed(texts: dict[str, str], tokens: int, seconds: float) -> str:
    return texts["speed"].format(tokens=tokens, rate=tokens / max(seconds, 1e-9))


# ------------------------------------------------------------------------------------------------------ the layout


def build_page(engine: Engine, limits: Limits = Limits()) -> Any:
    """The page as a ``gradio.Blocks``, not yet served.

    Args:
        engine: a loaded bundle, or any other engine.
        limits: what a request may ask for.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    translate = gr.I18n(**LANGUAGES)
    writer = _Writer(engine, limits)
    with gr.Blocks(title="PanGu-α", analytics_enabled=False) as page:
        gr.Markdown(translate("heading"), elem_id="title")
        gr.Markdown(plain(engine.name), elem_id="model", visible=bool(engine.name))
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                boxes = _boxes(gr, translate, limits)
            with gr.Column(scale=2, min_width=280):
                controls = _controls(gr, translate, engine, limits)
        _wire(gr, page, writer, boxes, controls)
    page.queue(api_open=False, max_size=limits.waiting, default_concurrency_limit=limits.at_once)
    page.translation = translate
    return page


def _boxes(gr: Any, translate: Any, limits: Limits) -> dict[str, Any]:
    """The left column: prompt, buttons, continuation, status."""
    boxes = {"prompt": gr.Textbox(label=translate("prompt"), placeholder=translate("placeholder"), lines=5,
                                  max_lines=16, max_length=limits.prompt_characters, elem_id="prompt")}
    with gr.Row(elem_id="buttons"):
        boxes["write"] = gr.Button(translate("write"), variant="primary", elem_id="write")
        boxes["stop"] = gr.Button(translate("stop"), variant="stop", elem_id="stop")
        boxes["keep"] = gr.Button(translate("keep"), elem_id="keep")
        boxes["clear"] = gr.Button(translate("clear"), elem_id="clear")
    boxes["continuation"] = gr.Textbox(label=translate("continuation"), lines=7, max_lines=24, interactive=False,
                                       elem_id="continuation", autoscroll=True)
    boxes["status"] = gr.Markdown("", elem_id="status")
    return boxes


def _controls(gr: Any, translate: Any, engine: Engine, limits: Limits) -> dict[str, Any]:
    """The right column: the sampling settings, beginning at the bundle's defaults."""
    settings = engine.sampling
    if settings == SamplingConfig():  # nobody chose: drawing from the whole distribution is seldom what one wants
        temperature, top_p, _, repetition = PRESETS["balanced"]
        settings = SamplingConfig(temperature=temperature, top_p=top_p, repetition_penalty=repetition)
    most = min(limits.new_tokens, engine.max_length)
    styles = [(translate(name), name) for name in PRESETS]
    made = {"preset": gr.Radio(styles, label=translate("preset"), elem_id="preset")}

    def slider(name: str, low: float, high: float, value: float, step: float, info: bool = True) -> None:
        made[name] = gr.Slider(low, high, value=value, step=step, label=translate(name), elem_id=name,
                               info=translate(f"{name}_info") if info else None)

    slider("new_tokens", 1, most, min(settings.max_new_tokens or 1, most), 1, info=False)
    slider("temperature", 0.0, 2.0, min(settings.temperature, 2.0), 0.05)
    slider("top_p", 0.05, 1.0, settings.top_p or 1.0, 0.01)
    slider("top_k", 0, 200, min(settings.top_k or 0, 200), 1)
    with gr.Accordion(translate("more"), open=False):
        slider("repetition", 0.5, 2.0, min(max(settings.repetition_penalty, 0.5), 2.0), 0.05, info=False)
        slider("frequency", -2.0, 2.0, min(max(settings.frequency_penalty, -2.0), 2.0), 0.1, info=False)
        slider("presence", -2.0, 2.0, min(max(settings.presence_penalty, -2.0), 2.0), 0.1, info=False)
        made["stop_texts"] = gr.Textbox("\n".join(settings.stop), label=translate("stop_texts"), lines=2,
                                        max_length=1000, elem_id="stop_texts")
        made["seed"] = gr.Textbox("" if settings.seed is None else str(settings.seed), label=translate("seed"),
                                  max_lines=1, max_length=19, elem_id="seed")
    return made


CONTROL_ORDER = ("new_tokens", "temperature", "top_p", "top_k", "repetition", "frequency", "presence",
                 "stop_texts", "seed")


def _wire(gr: Any, page: Any, writer: _Writer, boxes: dict[str, Any], controls: dict[str, Any]) -> None:
    """What each button does. Every event is private: the page has no API."""
    private = {"api_visibility": "private", "show_progress": "hidden"}

    def write(request: Any, prompt: str, *values: Any) -> Iterator[tuple[str, str]]:
        texts = LANGUAGES[language_of(request.headers.get("accept-language", ""))]
        yield from writer.write(texts, str(request.session_hash), prompt or "", *values)

    def stop(request: Any) -> None:
        writer.running.cancel(str(request.session_hash))

    for event in (write, stop):  # Gradio finds the argument to fill by its type, which is not known at import
        event.__annotations__ = {"request": gr.Request}

    def chosen(name: Optional[str]) -> list[float]:
        return list(PRESETS[name]) if name in PRESETS else [gr.skip()] * 4

    gr.on([boxes["write"].click, boxes["prompt"].submit], write,
          [boxes["prompt"], *(controls[name] for name in CONTROL_ORDER)], [boxes["continuation"], boxes["status"]],
          trigger_mode="once", concurrency_limit=writer.limits.at_once, **private)
    boxes["stop"].click(stop, queue=False, **private)
    boxes["keep"].click(lambda prompt, text: (prompt + text, "", ""), [boxes["prompt"], boxes["continuation"]],
                        [boxes["prompt"], boxes["continuation"], boxes["status"]], queue=False, **private)
    boxes["clear"].click(lambda: ("", "", ""), None, [boxes["prompt"], boxes["continuation"], boxes["status"]],
                         queue=False, **private)
    controls["preset"].change(chosen, controls["preset"],
                              [controls[name] for name in ("temperature", "top_p", "top_k", "repetition")],
                              queue=False, **private)
    page.unload(stop)


# ------------------------------------------------------------------------------------------------------ the server


class Page:
    """A page that is being served.

    Attributes:
        url: where to open it.
    """

    def __init__(self, blocks: Any, url: str) -> None:
        self._blocks, self.url = blocks, url

    def close(self) -> None:
        """Stop serving."""
        self._blocks.close(verbose=False)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def serve_page(bundle: Path | str | Engine, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False,
               password: Optional[str] = None, insecure: bool = False, limits: Limits = Limits()) -> Page:
    """Serve the page until it is closed; returns as soon as it answers.

    Args:
        bundle: a bundle's folder, or an engine.
        host: an address of this machine. Others than 127.0.0.1 need a password.
        port: 0 takes a free one.
        password: asked for, with the user name ``pangu``.
        insecure: serve on any address without a password all the same.

    Raises:
        InputError: no usable bundle, the port is taken, or the address is open to others without a password.
    """
    if not (_is_loopback(host) or password or insecure):
        raise InputError(f"host={host} lets others reach this page: give a password, or say insecure to allow it")
    port = _free_port(host, port)
    if not isinstance(bundle, Engine):
        from pangu_lab.export import load_bundle

        bundle = load_bundle(bundle)
    _warm_up(bundle)
    blocks = build_page(bundle, limits)
    _launch(blocks, host, port, open_browser, password)
    shown = f"[{host}]" if ":" in host else host
    return Page(blocks, f"http://{shown}:{port}/")


def _launch(blocks: Any, host: str, port: int, open_browser: bool, password: Optional[str]) -> None:
    import gradio as gr

    style = f"<style>{CSS}</style>"  # in the head: Gradio lets css= reach the inner parts only
    theme = gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=MONO_FONTS)
    blocks.launch(server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
                  share=False, auth=("pangu", password) if password else None, allowed_paths=[], max_file_size=1,
                  ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, run_history=False,
                  strict_cors=True, footer_links=[], state_session_capacity=1000, theme=theme, head=style,
                  i18n=blocks.translation)


def _warm_up(engine: Engine) -> None:
    """Compile both graphs, so that the first reader does not wait for it."""
    engine.prefill([engine.tokenizer.eod_id, engine.tokenizer.eod_id][:engine.max_length])
    if engine.max_length > 2:
        engine.step(engine.tokenizer.eod_id)
    engine.reset()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot serve on {host}:{port} ({error}): give another host or port") from None
        return int(probe.getsockname()[1])
