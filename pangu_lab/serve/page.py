"""The page over a served bundle: a text and its continuation, few-shot templates, a look at the next token.

Gradio draws it; nothing is loaded from anywhere but this server (system fonts, no analytics, no sharing), its
buttons are closed to other programs (``gradio_client`` has one function, ``complete``), and the model's output
is shown as plain text in text boxes and tables, never as markup. Labels follow the browser's language (zh or en).
Prompts are not logged or kept. The buttons' actions are in ``writing.py``; the requests of all pages and of the HTTP
API share one scheduler.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from pangu_lab.config import SLIDERS, SamplingConfig
from pangu_lab.generate.engine import Engine
from pangu_lab.serve.gate import Gate
from pangu_lab.serve.limits import Limits
from pangu_lab.serve.scheduler import Scheduler
from pangu_lab.serve.templates import TEMPLATES
from pangu_lab.serve.texts import LANGUAGES, PRESETS, language_of
from pangu_lab.serve.writing import MORE, STAGES, Writer, plain

FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
THREADS = 32  # page requests followed at once; their positions in the queue are the scheduler's
CSS = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important; padding: 12px !important}
#title h1 {font-size: 1.5rem; margin: 0.2rem 0} #title p {margin: 0; opacity: 0.75}
#prompt textarea, #continuation textarea, #answer textarea, #next_prompt textarea {font-size: 1.05rem; line-height: 1.7}
.buttons {gap: 8px !important; flex-wrap: nowrap !important} .buttons button {min-width: 0 !important}
.status {min-height: 1.6rem; opacity: 0.8} .status p, #model p {margin: 0} #model {opacity: 0.6}
@media (max-width: 600px) {#candidates {width: calc(100vw - 24px) !important; min-width: 0 !important}
  .gradio-container, .main.fillable {padding: 6px !important}}
.count {min-height: 1.4rem; font-size: 0.85rem; opacity: 0.85} .count p {margin: 0}
#candidates, #candidates .table-wrap {overflow-x: auto; max-width: 100%}
footer {display: none !important}
"""


PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}  # of every event of the page
CONTROL_ORDER = (
    "new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition",
    "frequency",
    "presence",
    "stop_texts",
    "seed",
    *MORE,
)


def build_page(scheduler: Scheduler) -> Any:
    """The page as a ``gradio.Blocks``, not yet served."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    translate = gr.I18n(**LANGUAGES)
    writer, engine = Writer(scheduler), scheduler.engine
    with gr.Blocks(title="PanGu-α", analytics_enabled=False) as page:
        gr.Markdown(translate("heading"), elem_id="title")
        gr.Markdown(plain(engine.name), elem_id="model", visible=bool(engine.name))
        with gr.Row():
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab(translate("tab_write"), id="write"):
                    boxes = _boxes(gr, translate, scheduler.limits)
                with gr.Tab(translate("tab_templates"), id="templates"):
                    fields = _fields(gr, translate, scheduler.limits)
                with gr.Tab(translate("tab_next"), id="next"):
                    looks = _looks(gr, translate, scheduler.limits)
            with gr.Column(scale=2, min_width=280):
                controls = _controls(gr, translate, engine, scheduler.limits)
        handlers = _Handlers(gr, writer)
        _wire_controls(gr, controls)
        values = [controls[name] for name in CONTROL_ORDER]
        _wire_writing(gr, handlers, boxes, values)
        _wire_templates(gr, handlers, fields, values)
        _wire_next(gr, handlers, looks, values)
        page.unload(handlers.stop)
        gr.api(writer.complete, api_name="complete", concurrency_limit=THREADS)
    page.queue(api_open=False, max_size=scheduler.limits.waiting, default_concurrency_limit=THREADS)
    page.translation = translate
    return page


def mount_page(app: Any, page: Any, auth: tuple[str, str] | None, root_path: str = "") -> Any:
    """Put the page at the root of a FastAPI application, behind every route that it has already, and behind a gate.

    ``root_path``: below which a proxy shows it.
    """
    import gradio as gr

    style = f"<style>{CSS}</style>"  # in the head: Gradio lets css= reach the inner parts only
    theme = gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=MONO_FONTS)
    theme.set(block_info_text_color="*neutral_600", body_text_color_subdued="*neutral_600")  # Gradio's own is too pale
    page.state_session_capacity = 1000
    gr.mount_gradio_app(
        app,
        page,
        "/",
        auth=auth,
        allowed_paths=[],
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=theme,
        head=style,
        i18n=page.translation,
        show_error=False,
        root_path=root_path or None,
    )
    page.has_launched = True  # only launch() sets it, and until then Gradio copies any file that a request names
    mounted = app.router.routes[-1]
    mounted.app = Gate(mounted.app)
    return app


# ------------------------------------------------------------------------------------------------------ the layout


def _buttons(gr: Any, translate: Any, *named: tuple[str, str, str]) -> dict[str, Any]:
    """A row of buttons: (id, word, variant) each."""
    with gr.Row(elem_classes="buttons"):
        return {name: gr.Button(translate(word), variant=variant, elem_id=name) for name, word, variant in named}


def _boxes(gr: Any, translate: Any, limits: Limits) -> dict[str, Any]:
    """The writing tab: prompt, its tokens, buttons, continuation, status."""
    boxes = {
        "prompt": gr.Textbox(
            label=translate("prompt"),
            placeholder=translate("placeholder"),
            lines=3,
            max_lines=16,
            max_length=limits.prompt_characters,
            elem_id="prompt",
        ),
        "count": gr.Markdown("", elem_id="count", elem_classes="count"),
    }
    boxes |= _buttons(
        gr,
        translate,
        ("write", "write", "primary"),
        ("stop", "stop", "stop"),
        ("keep", "keep", "secondary"),
        ("clear", "clear", "secondary"),
    )
    boxes["continuation"] = gr.Textbox(
        label=translate("continuation"),
        lines=6,
        max_lines=24,
        interactive=False,
        elem_id="continuation",
        autoscroll=True,
    )
    boxes["status"] = gr.Markdown("", elem_id="status", elem_classes="status")
    return boxes


def _fields(gr: Any, translate: Any, limits: Limits) -> dict[str, Any]:
    """The templates tab: which pattern, the reader's case, the answer, and the examples before it."""
    first = TEMPLATES["qa"]
    choices = [(translate(f"template_{name}"), name) for name in TEMPLATES]
    most = {"max_length": limits.prompt_characters}
    fields = {
        "template": gr.Radio(choices, value="qa", label=translate("template"), elem_id="template"),
        "passage": gr.Textbox(label=translate("passage"), lines=3, visible=False, elem_id="passage", **most),
        "question": gr.Textbox(first.question, label=translate("case"), lines=1, elem_id="question", **most),
    }
    fields |= _buttons(gr, translate, ("ask", "ask", "primary"), ("stop_asking", "stop", "stop"))
    fields["answer"] = gr.Textbox(label=translate("answer"), lines=3, interactive=False, elem_id="answer")
    fields["status"] = gr.Markdown("", elem_id="answer_status", elem_classes="status")
    with gr.Accordion(translate("examples"), open=False):
        fields["examples"] = gr.Textbox(
            first.examples, label=translate("examples_info"), lines=6, elem_id="examples", **most
        )
    return fields


def headers_of(texts: dict[str, str]) -> list[str]:
    """Of the table of candidates."""
    return [texts["token"], *(texts[f"stage_{name}"] for name in STAGES)]


def _looks(gr: Any, translate: Any, limits: Limits) -> dict[str, Any]:
    """The next-token tab: a text, and a table of what may follow it."""
    looks = {
        "prompt": gr.Textbox(
            label=translate("prompt"),
            placeholder=translate("placeholder"),
            lines=4,
            max_lines=12,
            max_length=limits.prompt_characters,
            elem_id="next_prompt",
        )
    }
    looks |= _buttons(gr, translate, ("look", "look", "primary"))
    looks["status"] = gr.Markdown("", elem_id="next_status", elem_classes="status")
    headers = headers_of(LANGUAGES["en"])  # Gradio does not translate headers: each look sends the reader's own
    looks["table"] = gr.Dataframe(
        headers=headers,
        datatype="str",
        interactive=False,
        elem_id="candidates",
        column_count=len(headers),
        label=translate("candidates"),
        wrap=False,
    )
    looks["texts"] = gr.State([])
    return looks


def _controls(gr: Any, translate: Any, engine: Engine, limits: Limits) -> dict[str, Any]:
    """The right column: the sampling settings, beginning at the bundle's defaults."""
    settings, style = engine.sampling, None
    if settings == SamplingConfig():  # nobody chose: drawing from the whole distribution is seldom what one wants
        style = "balanced"
        temperature, top_p, _, repetition = PRESETS[style]
        settings = SamplingConfig(temperature=temperature, top_p=top_p, repetition_penalty=repetition)
    most = min(limits.new_tokens, engine.max_length)
    styles = [(translate(name), name) for name in PRESETS]
    made = {"preset": gr.Radio(styles, value=style, label=translate("preset"), elem_id="preset")}

    def slider(name: str, low: float, high: float, value: float, step: float, info: bool = True) -> None:
        made[name] = gr.Slider(
            low,
            high,
            value=value,
            step=step,
            label=translate(name),
            elem_id=name,
            info=translate(f"{name}_info") if info else None,
        )

    slider("new_tokens", 1, most, min(settings.max_new_tokens or 1, most), 1, info=False)
    slider("temperature", 0.0, 2.0, min(settings.temperature, 2.0), 0.05)
    slider("top_p", 0.05, 1.0, settings.top_p or 1.0, 0.01)
    slider("top_k", 0, 200, min(settings.top_k or 0, 200), 1)
    with gr.Accordion(translate("more"), open=False):
        slider("repetition", 0.5, 2.0, min(max(settings.repetition_penalty, 0.5), 2.0), 0.05, info=False)
        slider("frequency", -2.0, 2.0, min(max(settings.frequency_penalty, -2.0), 2.0), 0.1, info=False)
        slider("presence", -2.0, 2.0, min(max(settings.presence_penalty, -2.0), 2.0), 0.1, info=False)
        for name in MORE:
            low, high, step, off = SLIDERS[name]
            slider(name, low, high, min(max(getattr(settings, name) or off, low), high), step)
        made["stop_texts"] = gr.Textbox(
            "\n".join(settings.stop), label=translate("stop_texts"), lines=2, max_length=1000, elem_id="stop_texts"
        )
        made["seed"] = gr.Textbox(
            "" if settings.seed is None else str(settings.seed),
            label=translate("seed"),
            max_lines=1,
            max_length=19,
            elem_id="seed",
        )
    return made


# ------------------------------------------------------------------------------------------------------ the wiring


class _Handlers:
    """The page's functions as Gradio calls them: with the request, for its language and session."""

    def __init__(self, gr: Any, writer: Writer) -> None:
        self.gr, self.writer = gr, writer
        self.write = self._following(writer.write)
        self.answer = self._following(writer.answer)
        self.stop = self._with_request(lambda texts, session: writer.running.cancel(session))
        self.count = self._with_request(lambda texts, session, prompt: writer.count(texts, prompt or ""))
        self.look = self._with_request(self._look)

    def _look(self, texts: dict[str, str], session: str, prompt: str, *values: Any) -> tuple[Any, list[str], str]:
        rows, written, status = self.writer.candidates(texts, session, prompt or "", *values)
        return {"headers": headers_of(texts), "data": rows}, written, status

    def _with_request(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def handler(request: Any, *values: Any) -> Any:
            return work(*self._who(request), *values)

        handler.__annotations__ = {"request": self.gr.Request}  # Gradio finds the argument to fill by its type
        return handler

    def _following(self, work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handler(request: Any, *values: Any) -> Iterator[Any]:
            yield from work(*self._who(request), *(value if value is not None else "" for value in values))

        handler.__annotations__ = {"request": self.gr.Request}
        return handler

    def _who(self, request: Any) -> tuple[dict[str, str], str]:
        accepted = request.headers.get("accept-language", "") if request else ""
        return LANGUAGES[language_of(accepted)], str(request.session_hash)


def _wire_controls(gr: Any, controls: dict[str, Any]) -> None:
    def chosen(name: str | None) -> list[float]:
        return list(PRESETS[name]) if name in PRESETS else [gr.skip()] * 4

    controls["preset"].change(
        chosen,
        controls["preset"],
        [controls[name] for name in ("temperature", "top_p", "top_k", "repetition")],
        queue=False,
        **PRIVATE,
    )


def _wire_writing(gr: Any, handlers: _Handlers, boxes: dict[str, Any], values: list[Any]) -> None:
    shown = [boxes["continuation"], boxes["status"]]
    gr.on(
        [boxes["write"].click, boxes["prompt"].submit],
        handlers.write,
        [boxes["prompt"], *values],
        shown,
        trigger_mode="once",
        concurrency_limit=THREADS,
        **PRIVATE,
    )
    boxes["stop"].click(handlers.stop, queue=False, **PRIVATE)
    boxes["prompt"].change(
        handlers.count, boxes["prompt"], boxes["count"], queue=False, trigger_mode="always_last", **PRIVATE
    )
    boxes["keep"].click(
        lambda prompt, text: (prompt + text, "", ""),
        [boxes["prompt"], boxes["continuation"]],
        [boxes["prompt"], *shown],
        queue=False,
        **PRIVATE,
    )
    boxes["clear"].click(lambda: ("", "", ""), None, [boxes["prompt"], *shown], queue=False, **PRIVATE)


def _wire_templates(gr: Any, handlers: _Handlers, fields: dict[str, Any], values: list[Any]) -> None:
    def chosen(name: str) -> list[Any]:
        template = TEMPLATES[name]
        return [
            template.examples,
            template.question,
            gr.Textbox(template.passage, visible=bool(template.passage)),
            "",
            "",
        ]

    fields["template"].change(
        chosen,
        fields["template"],
        [fields[name] for name in ("examples", "question", "passage", "answer", "status")],
        queue=False,
        **PRIVATE,
    )
    gr.on(
        [fields["ask"].click, fields["question"].submit],
        handlers.answer,
        [*(fields[name] for name in ("template", "examples", "passage", "question")), *values],
        [fields["answer"], fields["status"]],
        trigger_mode="once",
        concurrency_limit=THREADS,
        **PRIVATE,
    )
    fields["stop_asking"].click(handlers.stop, queue=False, **PRIVATE)


def _wire_next(gr: Any, handlers: _Handlers, looks: dict[str, Any], values: list[Any]) -> None:
    def picked(event: Any, prompt: str, texts: list[str]) -> str:
        row = event.index[0]
        return (prompt or "") + (texts[row] if row < len(texts) else "")

    picked.__annotations__ = {"event": gr.SelectData}
    outputs = [looks["table"], looks["texts"], looks["status"]]
    look = {"fn": handlers.look, "inputs": [looks["prompt"], *values], "outputs": outputs, "concurrency_limit": THREADS}
    looks["look"].click(**look, **PRIVATE)
    looks["prompt"].submit(**look, **PRIVATE)
    looks["table"].select(picked, [looks["prompt"], looks["texts"]], looks["prompt"], queue=False, **PRIVATE).then(
        **look, **PRIVATE
    )
