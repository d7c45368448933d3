"""``evaluate``: a task, a model or a server, the user's files → one number with its interval and its baselines.

Questions are scored in chunks. Their size is adapted to the speed, so that results are saved and the progress bar
moves every few seconds, whatever the model's size. The order of the work does not change the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pangu_lab.config import SamplingConfig
from pangu_lab.errors import InputError
from pangu_lab.evaluate.engine import EngineScorer
from pangu_lab.evaluate.record import Record
from pangu_lab.evaluate.scoring import BATCH_TOKENS, LocalScorer, Scorer
from pangu_lab.evaluate.server import ServerScorer
from pangu_lab.evaluate.tasks import Outcome, Question, Task, make_task
from pangu_lab.evaluate.tasks.base import ScoredTask, WrittenTask
from pangu_lab.files import sha256_file
from pangu_lab.generate import generate_many
from pangu_lab.generate.engine import Engine
from pangu_lab.loading import Model
from pangu_lab.memory import available, generation_need, scoring_need
from pangu_lab.progress import Progress, silent
from pangu_lab.tokenizer import Tokenizer

CHUNK_SECONDS = 10.0
Generate = Callable[[Sequence[str], int, Sequence[str]], Sequence[str]]  # prompts, new tokens, stop → completions
Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Result:
    """The outcome of an evaluation.

    Attributes:
        task, metric: what was measured: "accuracy", "exact_match" (shares, 0 … 1) or "perplexity".
        n: how many judgements the number rests on.
        value, interval: the number and its 95 % interval; None when only baselines were asked for.
        baselines: the same metric for answers given without a model, by name.
        more: further numbers (F1, accuracy, perplexity), by name.
        model: what was evaluated.
        cut: questions whose text did not fit the model's window.
        seconds: spent in this call; ``resumed`` questions were taken over from an interrupted one.
    """

    task: str
    metric: str
    n: int
    value: float | None
    interval: tuple[float, float] | None
    baselines: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)
    model: str = ""
    cut: int = 0
    seconds: float = 0.0
    resumed: int = 0


def evaluate(
    task: str | Task,
    source: Scorer | str | Path | None,
    data: Paths,
    *,
    split: str | None = None,
    half: str | None = None,
    scoring: str | None = None,
    template: str | None = None,
    negatives: int | None = None,
    limit: int | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    generate: Generate | None = None,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Evaluate a model on a task.

    Args:
        task: a name from ``TASKS``, or a task.
        source: what ``PanguLM.load`` opens (a run, a checkpoint, a bundle …), a ``PanguLM``, the URL of a server, or a
            ``Scorer``; None gives the baselines alone.
        data: a file of the task's published format, several, or a folder with such files.
        split: which part to take from a folder; each task's usual one when not given.
        half: of C3, "d" or "m"; both when not given.
        scoring: of C3, "corrected" or "reference".
        template: instead of the paper's; ``{|}`` stands where scoring begins.
        negatives: wrong labels offered where a task has many (TNEWS, IFLYTEK: 3); 0 offers all.
        limit: use only this many questions, from the start.
        tokenizer: instead of the one kept with the model; with it a server is sent token ids.
        generate: writes completions, for tasks in which the model writes; made from ``source`` when not given.
        out: results file, a JSON with every question; an interrupted evaluation is resumed from it.
        progress: called with the number of questions done.

    Raises:
        InputError: no such task, files or model; files of another format; settings that do not go together.
    """
    if isinstance(task, str):
        task = make_task(task, scoring=scoring, template=template, negatives=negatives)
    files = find_files(task, data, split, half)
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} must be at least 1")
    questions = task.read(files)[:limit]
    n, baselines = task.count(questions), task.baselines(questions)
    if source is None and generate is None:
        return Result(task.name, task.metric, n, None, None, baselines)
    model, answer = _open(task, source, tokenizer, generate)
    record = Record(out, _settings(task, files, model, limit))
    started = time.monotonic()
    _run(questions, answer, record, progress)
    outcomes = [record.outcomes[question.id] for question in questions]
    measure = task.measure(outcomes)
    cut = sum("cut" in outcome.details for outcome in outcomes)
    seconds = round(time.monotonic() - started, 3)
    result = Result(
        task.name,
        task.metric,
        n,
        measure.value,
        measure.interval,
        baselines,
        dict(measure.more),
        model,
        cut,
        seconds,
        record.resumed,
    )
    record.finish(asdict(result))
    return result


def open_scorer(source: Scorer | str | Path, tokenizer: Tokenizer | str | Path | None = None) -> Scorer:
    """A scorer for ``source``: a scorer, a ``PanguLM``, an engine, a server's URL, or anything ``Model.load`` opens.

    A model whose batches would not fit into memory is scored text by text, through the engine that generates.

    Raises:
        InputError: nothing usable there.
    """
    if isinstance(source, Scorer):
        return source
    if isinstance(source, Engine):
        return EngineScorer(source)
    if str(source).startswith(("http://", "https://")):
        return ServerScorer(str(source), tokenizer=tokenizer)
    model = source if isinstance(source, Model) else Model.load(source, tokenizer)
    free, batched = available(), scoring_need(model.config, BATCH_TOKENS)
    if model.weights is None or batched.total > free >= generation_need(model.config).total:
        return EngineScorer(model.engine, name=model.origin)
    return LocalScorer.of(model)


def find_files(task: Task, data: Paths, split: str | None = None, half: str | None = None) -> list[Path]:
    """The files that ``data`` names, each once, in order.

    Raises:
        InputError: nothing there.
    """
    inputs = [data] if isinstance(data, (str, Path)) else list(data)
    files = [path for item in inputs for path in task.find(Path(item), split, half)]
    if not files:
        raise InputError("name at least one file or folder of data")
    return list(dict.fromkeys(files))


def _settings(task: Task, files: Sequence[Path], model: str, limit: int | None) -> dict[str, Any]:
    """What a results file belongs to. Data files are identified by content, so that they may be moved."""
    return {
        "task": task.name,
        "model": model,
        "template": task.template,
        "scoring": getattr(task, "scoring", None),
        "negatives": task.negatives,
        "seed": task.seed,
        "limit": limit,
        "data": [[path.name, sha256_file(path)] for path in files],
    }


Answer = Callable[[Sequence[Question], Progress], "list[Outcome]"]


def _open(task: Task, source: Any, tokenizer: Any, generate: Generate | None) -> tuple[str, Answer]:
    """The model's name, and the function that turns questions into outcomes."""
    if isinstance(task, WrittenTask):
        name, write = ("generate", generate) if generate is not None else open_writer(source, tokenizer)
        return name, _writing(task, write)
    if source is None or not isinstance(task, ScoredTask):
        raise InputError(f"{task.name} scores text: name a model or a server")
    scorer = open_scorer(source, tokenizer)
    return scorer.name, _scoring(task, scorer)


def _scoring(task: ScoredTask, scorer: Scorer) -> Answer:
    """Questions → outcomes, by scoring the options of all of them together."""

    def answer(questions: Sequence[Question], progress: Progress) -> list[Outcome]:
        pairs = [task.pairs(question) for question in questions]
        scores = iter(task.score(scorer, [pair for group in pairs for pair in group], progress))
        return [task.judge(question, [next(scores) for _ in group]) for question, group in zip(questions, pairs)]

    return answer


def engine_writer(engine: Any) -> Generate:
    """Greedy generation with an ``Engine`` of ``pangu_lab.generate``, in the form that ``evaluate`` takes."""

    def write(prompts: Sequence[str], new_tokens: int, stop: Sequence[str]) -> list[str]:
        config = SamplingConfig(max_new_tokens=new_tokens, temperature=0.0, stop=tuple(stop))
        return [completion.text for completion in generate_many(engine, prompts, config)]

    return write


def open_writer(source: Any, tokenizer: Tokenizer | str | Path | None = None) -> tuple[str, Generate]:
    """(name, greedy writer) of a server, or of a model.

    Raises:
        InputError: nothing usable there; or a scorer, which cannot write.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = open_scorer(source)
    if isinstance(source, ServerScorer):
        return source.name, source.complete
    if isinstance(source, Scorer):
        raise InputError("in this task the model writes its answers: name its folder, or give generate=")
    if isinstance(source, Engine):
        return source.name, engine_writer(source)
    model = source if isinstance(source, Model) else Model.load(source, tokenizer)
    return model.origin, engine_writer(model.engine)


def _writing(task: WrittenTask, write: Generate) -> Answer:
    """Questions → outcomes, by having the model write the answers."""

    def answer(questions: Sequence[Question], progress: Progress) -> list[Outcome]:
        texts = write([task.prompt(question) for question in questions], task.max_new_tokens, task.stop)
        return [task.judge(question, text) for question, text in zip(questions, texts)]

    return answer


def _run(questions: Sequence[Question], answer: Answer, record: Record, progress: Progress) -> None:
    """Answer the questions that have no outcome yet, in chunks of about ten seconds."""
    todo = [question for question in questions if question.id not in record.outcomes]
    done, total, size = len(questions) - len(todo), len(questions), 16
    started, resumed = time.monotonic(), done
    progress(done, total, "")
    while todo:
        chunk, todo = todo[:size], todo[size:]
        chunk_started = time.monotonic()
        record.add(answer(chunk, _chunk_progress(progress, done, len(chunk), total)))
        done += len(chunk)
        now = time.monotonic()
        progress(done, total, f"{(done - resumed) / max(now - started, 1e-9):.1f} questions/s")
        size = max(4, min(2048, int(size * min(4.0, CHUNK_SECONDS / max(now - chunk_started, 1e-3)))))


def _chunk_progress(progress: Progress, done: int, size: int, total: int) -> Progress:
    """Reports the progress of a chunk as progress of the whole."""

    def report(part: int, parts: int | None, text: str = "") -> None:
        progress(done + (size * part // parts if parts else 0), total, text)

    return report
