"""The entry to training: from a configuration to a complete run folder.

``train`` is all a caller needs. It writes the run folder: effective configuration, events, checkpoints, and status with
a heartbeat. It resumes exactly: the weights, both moments, the step, the position in the data and the loss scale are
saved, and dropout and shuffling need no state. It stops cleanly on Ctrl-C, SIGTERM, the ``stop`` file or the time
budget, and never leaves half a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms

from pangu_lab import memory
from pangu_lab.checkpoint.best import Best
from pangu_lab.config import RunConfig
from pangu_lab.errors import InputError
from pangu_lab.locking import LockLost
from pangu_lab.parallel.collectives import start_communication
from pangu_lab.parallel.mesh import Mesh, check_layout
from pangu_lab.progress import Progress, silent, tell_budget
from pangu_lab.runs import heartbeat
from pangu_lab.train.fitting import memory_line
from pangu_lab.train.graph_cache import GraphCache
from pangu_lab.train.inputs import check_same_data, open_data, with_tokenizer
from pangu_lab.train.loop import Trainer, TrainingFailed
from pangu_lab.train.run_folder import RunFolder
from pangu_lab.train.saving import newest_together
from pangu_lab.train.schedule import rate_change
from pangu_lab.train.starting import starting_point


@dataclass(frozen=True)
class TrainResult:
    """How a call of ``train`` ended.

    Attributes:
        reason: "finished", "stopped", "stop file", "signal", "time budget", "no gain" (``train.patience``) or "stopped
            with the other ranks".
        eval_loss, eval_perplexity, eval_bits_per_character: of the last evaluation; None where there was none. The last
            one is also None for a data set that does not know its characters.
        eval_records, eval_of_records: how many of the held-out records it used; training uses the first
            ``train.eval_batches`` batches.
        eval_step: the step at which it was; one before ``step`` where a signal left no time for another.
        best: the step with the lowest held-out loss, kept as ``run@best``; None where there was no evaluation.
        notes: what was done to the weights of ``train.init_from``.
    """

    run: Path
    step: int
    loss: float
    eval_loss: float | None
    eval_perplexity: float | None
    reason: str
    checkpoint: Path
    notes: tuple[str, ...] = ()
    eval_bits_per_character: float | None = None
    eval_records: int = 0
    eval_of_records: int = 0
    best: Best | None = None
    eval_step: int | None = None


def train(
    config: RunConfig,
    run_folder: Path | str,
    *,
    resume: bool | str = "auto",
    progress: Progress = silent,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train ``config`` in ``run_folder``.

    Args:
        config: complete settings; ``data.path`` names a folder made by ``prepare``.
        run_folder: created, or continued from its last good checkpoint.
        resume: "auto" continues an existing run; True requires one; False refuses one; "start-over" is like "auto", but
            begins at step 0 again when every checkpoint of the run is damaged.
        stop: called after every step; True ends the run cleanly, as does the file ``stop`` in the run folder.

    Raises:
        InputError: settings, data set and run folder do not go together.
        TrainingFailed: gradients were not finite, and the message says which setting to change; or another process has
            taken over the run while this one was suspended.
    """
    config = config.with_absolute_paths()
    if resume not in (True, False, "auto", "start-over"):
        raise InputError(f'resume={resume!r} is not known: give "auto", "start-over", True or False')
    ms.set_context(mode=ms.GRAPH_MODE)
    rank, world = start_communication()
    if world != config.parallel.world_size:
        raise InputError(
            f"parallel: this layout needs {config.parallel.world_size} processes, {world} are running; "
            "start it with `pangu-lab launch`"
        )
    check_layout(config)
    mesh = Mesh(config.parallel, rank)
    dataset, evalset = open_data(config)
    config = with_tokenizer(config, dataset)
    memory_note = memory_line(config) if rank == 0 and ms.get_context("device_target") == "CPU" else ""
    run = RunFolder(run_folder, owner=rank == 0)
    created = run.open(config, resume)
    with run.running(config.train.steps) as signals, GraphCache(config) as graphs:
        if memory_note:
            memory.log.info(memory_note)
        trainer = Trainer(config, run, dataset, evalset, mesh, graphs)
        try:
            reason, path = _run(trainer, signals, progress, stop, created, resume == "start-over")
        except LockLost as error:
            heartbeat.silence()
            raise TrainingFailed(str(error)) from None
        except BaseException as error:
            run.finish("failed", trainer.step, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
            raise
        run.finish("finished" if reason == "finished" else "stopped", trainer.step, reason)
    last = trainer.last_eval
    return TrainResult(
        run.folder,
        trainer.step,
        trainer.last_loss,
        last.loss if last else None,
        last.perplexity if last else None,
        reason,
        path,
        trainer.notes,
        last.bits_per_character if last else None,
        last.records if last else 0,
        last.of if last else 0,
        trainer.watch.best,
        trainer.eval_step,
    )


def _run(trainer: Trainer, signals, progress: Progress, stop, created: bool, start_over: bool) -> tuple[str, Path]:
    config, run, asked = trainer.config, trainer.run, trainer.config.train
    checkpoint = newest_together(run, start_over, trainer.ranks)
    if checkpoint is None and run.owner and not created:
        run.warn("the run holds no good checkpoint: starting over at step 0")
    if checkpoint is not None:
        check_same_data(checkpoint, trainer.dataset)
        trainer.restore(checkpoint)
        config = trainer.config
        if (
            run.previous is not None
            and config.train is asked
            and (note := rate_change(run.previous.train, config.train, trainer.step))
        ):
            run.warn(note)
    else:
        trainer.build(_first_values(trainer))
    if run.owner and not created:
        trainer.watch.resume(trainer.step)
    run.keep_tokenizer(trainer.dataset.tokenizer_folder)
    deadline = min(_deadline(config.train.max_minutes), time.monotonic() + trainer.timetable.left)
    budget = None if math.isinf(deadline) else round(deadline - time.monotonic(), 1)
    tell_budget(progress, budget)
    run.event(
        "start",
        step=trainer.step,
        resumed_from=trainer.step,
        steps=config.train.steps,
        preset=config.preset,
        parameters=config.model.num_parameters,
        records=len(trainer.dataset),
        vocab_size=config.model.vocab_size,
        vocabulary=trainer.dataset.fingerprint,
        characters_per_token=trainer.dataset.characters_per_token,
        init_from=config.train.init_from,
        budget=budget,
        processes=config.parallel.world_size,
        mindspore=ms.__version__,
        device=ms.get_context("device_target"),
    )
    if trainer.step == 0:
        trainer.evaluate()
    if trainer.step >= config.train.steps:
        trainer.evaluate()  # no steps left: report the held-out loss
        if config.train is not asked:
            trainer.notes += (
                f"the schedule of this run, fitted to its minutes, ended at step {trainer.step}: to train on, "
                f"start a new run with --init-from {run.folder}",
            )
        return "finished", checkpoint.folder if checkpoint else trainer.save()
    return trainer.loop(lambda: _stop_reason(run, signals, deadline, stop), progress)


def _first_values(trainer: Trainer) -> Callable[..., Any]:
    """``read`` for the weights of a new run; notes about them go into the events."""
    point = starting_point(trainer.config, trainer.dataset)
    trainer.notes = point.notes
    for note in point.notes:
        trainer.run.event("warning", text=note)
    return point.read


def _deadline(minutes: float | None) -> float:
    return math.inf if minutes is None else time.monotonic() + 60.0 * minutes


def _stop_reason(run: RunFolder, signals, deadline: float, stop) -> str | None:
    run.check()
    if signals.received:
        return "signal"
    if run.stop_asked():
        return "stop file"
    if time.monotonic() >= deadline:
        return "time budget"
    return "stopped" if stop is not None and stop() else None
