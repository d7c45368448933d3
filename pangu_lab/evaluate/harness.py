"""Tasks of lm-evaluation-harness on a model of this project (``pip install 'pangu-lab[harness]'``).

The harness has three kinds of request: how probable a continuation is, how probable a whole text is, and to generate
until a stop string. ``harness_model`` answers them with a scorer and a writer; ``run_harness`` runs tasks by name
or from a folder of the user's own task files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_lab.errors import InputError
from pangu_lab.evaluate.engine import EngineScorer
from pangu_lab.evaluate.run import Generate, open_scorer, open_writer
from pangu_lab.evaluate.scoring import LocalScorer, Score, Scorer, TokenScorer
from pangu_lab.evaluate.split import TokenPair
from pangu_lab.progress import Progress, silent


def harness_model(scorer: Scorer, generate: Generate | None = None, progress: Progress = silent) -> Any:
    """An ``lm_eval`` model over a scorer.

    Args:
        scorer: give a ``LocalScorer`` a ``start_id``, so that texts without context are scored from their first
            token, as the harness wants it.
        generate: (prompts, new tokens, stop) → completions, for tasks in which the model writes.

    Raises:
        InputError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise InputError("lm-evaluation-harness is not installed: pip install 'pangu-lab[harness]'") from None

    class HarnessModel(LM):
        """Passes the harness's three kinds of request on to the scorer and the writer."""

        def loglikelihood(self, requests, disable_tqdm: bool = False):
            scores = scorer.loglikelihood([request.args for request in requests], progress=progress)
            return [(score.logprob, score.greedy) for score in scores]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
            texts = [request.args[0] for request in requests]
            return [score.logprob for score in score_texts(scorer, texts, progress)]

        def generate_until(self, requests, disable_tqdm: bool = False):
            if generate is None:
                raise InputError("this task has the model write: give generate=")
            return write_until(generate, [request.args for request in requests])

    return HarnessModel()


def score_texts(scorer: Scorer, texts: Sequence[str], progress: Progress = silent) -> list[Score]:
    """Scores of whole texts. One longer than the model's window is scored in several windows, each token once.

    Every further window begins with half of the one before as context, so that no token lacks context.
    """
    if not isinstance(scorer, TokenScorer) or scorer.tokenizer is None:
        return scorer.loglikelihood([("", text) for text in texts], progress=progress)
    start = [] if scorer.start_id is None else [scorer.start_id]
    windows = [_windows([*start, *scorer.tokenizer.encode(text)], scorer.longest) for text in texts]
    scores = iter(scorer.score_tokens([pair for group in windows for pair in group], progress))
    return [_joined([next(scores) for _ in group]) for group in windows]


def _windows(ids: Sequence[int], longest: int) -> list[TokenPair]:
    """The requests that together score every token but the first."""
    pairs, scored = [], 1
    while scored < len(ids):
        begin = 0 if len(ids) <= longest else max(0, scored - max(1, longest // 2))
        end = min(len(ids), begin + longest)
        pairs.append(TokenPair(tuple(ids[begin:end]), scored - begin))
        scored = end
    return pairs


def _joined(scores: Sequence[Score]) -> Score:
    values = tuple(value for score in scores for value in score.token_logprobs)
    return Score(sum(values), len(values), all(score.greedy for score in scores), 0, values)


def write_until(generate: Generate, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Completions of (prompt, {until, max_gen_toks}) requests; those with the same limits are written together."""
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, (_, options) in enumerate(requests):
        until = options.get("until") or []
        until = (until,) if isinstance(until, str) else tuple(until)
        groups.setdefault((int(options.get("max_gen_toks", 64)), until), []).append(number)
    results = [""] * len(requests)
    for (new_tokens, until), numbers in groups.items():
        texts = generate([requests[number][0] for number in numbers], new_tokens, until)
        for number, text in zip(numbers, texts):
            results[number] = text
    return results


def _opened(source: Scorer | str | Path, generate: Generate | None) -> tuple[Scorer, Generate | None]:
    """The scorer, and a writer that is opened at its first use."""
    if isinstance(source, Scorer):
        return source, generate
    scorer = open_scorer(source)
    if isinstance(scorer, (LocalScorer, EngineScorer)):
        scorer.start_id = scorer.tokenizer.eod_id  # the harness scores the first token of a text too
    opened: list[Generate] = [] if generate is None else [generate]

    def write(prompts: Sequence[str], new_tokens: int, stop: Sequence[str]) -> Sequence[str]:
        if not opened:
            opened.append(open_writer(source)[1])
        return opened[0](prompts, new_tokens, stop)

    return scorer, write


def run_harness(
    source: Scorer | str | Path,
    tasks: Sequence[str],
    task_folder: str | Path | None = None,
    limit: int | None = None,
    generate: Generate | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, Any]]:
    """Run harness tasks; returns what the harness reports for each, by name.

    Args:
        source: a ``PanguLM``, a run or checkpoint folder, a server's URL, or a scorer.
        task_folder: a folder of your own task files (YAML), in addition to those that the harness ships.
        limit: use only this many questions of each task, from the start.
        generate: as in ``harness_model``; made from ``source`` unless that is a scorer.

    Raises:
        InputError: lm_eval is not installed, or does not know a task.
    """
    model = harness_model(*_opened(source, generate), progress)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = str(task_folder) if task_folder is not None else None
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder is not None and not set(tasks) <= set(manager.all_tasks):  # only now: the harness has thousands of files
        manager = TaskManager(include_path=folder)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise InputError(
            f"lm-evaluation-harness knows no task '{unknown[0]}'"
            + ("" if task_folder is not None else "; give the folder of your own task files")
        )
    found = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        log_samples=False,
        bootstrap_iters=0,
        verbosity=None,
    )
    return {name: dict(values) for name, values in found["results"].items()}
