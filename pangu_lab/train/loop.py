"""The training loop: one step after another, with evaluations, checkpoints and samples between them.

``training.py`` has ``train``, which sets all of it up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import psutil
from mindspore import Tensor
from mindspore import dtype as mstype

from pangu_lab.config import RunConfig, TrainConfig
from pangu_lab.data import Batch, TokenDataset
from pangu_lab.model.moe import Experts
from pangu_lab.model.pangu import PanguLoss, PanguStage, Parts, Weights
from pangu_lab.model.parameters import WORD, OneByOne, is_matrix, parameter_specs
from pangu_lab.ops.backend import training_backend
from pangu_lab.ops.portable import Portable
from pangu_lab.parallel.collectives import group_of
from pangu_lab.parallel.mesh import Mesh
from pangu_lab.parallel.sharding import (
    gradient_dimensions,
    is_first_copy,
    is_owner,
    is_spread,
    moment_shard,
    parameter_shards,
)
from pangu_lab.progress import Progress
from pangu_lab.runs.pipeline_log import PipelineLog
from pangu_lab.runs.status import step_text
from pangu_lab.train.evaluation import HeldOutLoss, batch_tensors, held_out_loss
from pangu_lab.train.graph_cache import GraphCache
from pangu_lab.train.inputs import data_identity
from pangu_lab.train.memory import MB, by_rank, device_peak_mb, peak_mb
from pangu_lab.train.muon import Muon
from pangu_lab.train.offload import HostAdamW
from pangu_lab.train.pipeline import PipelineGradients, PipelineLoss
from pangu_lab.train.ranks import Ranks
from pangu_lab.train.recompute import Pieces, by_pieces
from pangu_lab.train.routing import CountingStep, RoutedGradientStep, RoutingCounts
from pangu_lab.train.run_folder import RunFolder
from pangu_lab.train.samples import Samples
from pangu_lab.train.saving import save_together
from pangu_lab.train.schedule import LossScale, batches_of_step, learning_rate
from pangu_lab.train.step import AdamW, AddGradients, GradientStep
from pangu_lab.train.timetable import Timetable
from pangu_lab.train.watch import Watch


class TrainingFailed(RuntimeError):
    """Training cannot continue; the message says what to try."""


class Trainer:
    """The state of a running training: weights, moments, step, data position and loss scale."""

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder,
        dataset: TokenDataset,
        evalset: TokenDataset | None,
        mesh: Mesh = Mesh(),
        graphs: GraphCache | None = None,
    ):
        self.graphs = graphs or GraphCache(config)
        self.config, self.run, self.dataset, self.evalset, self.mesh = config, run, dataset, evalset, mesh
        self.ranks = Ranks(mesh)
        self.backend = training_backend(config.model)
        self.step = 0
        self.records = 0  # records consumed: the position in the data
        self.tokens = 0
        self.scale = LossScale.from_config(config.train, config.model.compute_dtype == "float16")
        self.last_loss = math.nan
        self.last_eval: HeldOutLoss | None = None
        self.eval_step: int | None = None
        self.watch = Watch(run, config.train.eval_every, config.train.patience)
        self.samples = Samples(config, run, dataset.load_tokenizer() if config.train.sample_prompts else None)
        self.first_step_done = False
        self.notes: tuple[str, ...] = ()
        self.timetable = Timetable(config.train)

    # ---------------------------------------------------------------- building

    @property
    def specs(self):
        """This rank's parameters, in the order of the data flow."""
        specs = parameter_specs(self.config.model)
        return {name: specs[name] for name in parameter_shards(specs, self.mesh, self.config.model.num_layers)}

    def build(self, read: Callable[..., Any], moments: bool = False) -> None:
        """Make the graphs.

        Args:
            read: ``read(name, offset, shape)`` gives a region of a parameter (or of ``adam_m.NAME``, ``adam_v.NAME``).
            moments: read the optimizer's moments too; otherwise they start at zero.
        """
        config, mesh, specs = self.config, self.mesh, self.specs
        self.shards = parameter_shards(specs, mesh, config.model.num_layers)

        def first_value(name: str):
            shard = self.shards[name]
            return self._device_value(name, read(name, shard.offset, shard.shape))

        self.weights = Weights(
            OneByOne(self.shards, first_value), mesh, {name for name, spec in specs.items() if is_spread(spec, mesh)}
        )
        parts = self._parts(config)
        stage = PanguStage(dataclasses.replace(parts, experts=Experts))
        self.routing = RoutingCounts(config.model, stage.moe_layers) if config.model.moe_layers else None
        self.parameters = [self.weights(name) for name in specs]
        ms.set_recursion_limit(max(1000, 10 * len(self.parameters)))  # loops over them become nested calls
        self.gradient_step = self._gradient_step(stage, parts)
        counted = [is_owner(spec, mesh) for spec in specs.values()]
        self.squared_norm = self.backend.squared_norm(counted)
        self.add_gradients = AddGradients()
        self.ranks.prepare_gradients(
            [tuple(parameter.shape) for parameter in self.parameters],
            [gradient_dimensions(spec, mesh) for spec in specs.values()],
        )
        self._build_optimizer(specs, read, moments)
        self.eval_loss = self._whole_loss(config.replace(**{"model.dropout_rate": 0.0}))

    def _parts(self, config: RunConfig) -> Parts:
        return Parts(config.model, self.weights, self.mesh, self.backend, config.train.seed, config.data.seq_length)

    def _gradient_step(self, stage: PanguStage, parts: Parts):
        """The cell that computes gradients: the whole network's graph, or this stage's part of the pipeline."""
        config, mesh, parameters = self.config, self.mesh, dict(zip(self.specs, self.parameters))
        loss = PanguLoss(stage) if mesh.is_last_stage else None
        pieces = Pieces(parts, parameters) if by_pieces(config) else None
        if mesh.size("pipeline") > 1:
            return PipelineGradients(
                mesh,
                stage,
                loss,
                parameters,
                WORD,
                config.model.hidden_size,
                PipelineLog(self.run.folder, mesh),
                self.routing,
                pieces,
            )
        if self.routing is not None:
            return CountingStep(RoutedGradientStep(loss, self.parameters), self.routing)
        return GradientStep(loss, self.parameters) if pieces is None else pieces.gradients

    def _whole_loss(self, config: RunConfig):
        """Σ loss of a batch through all stages, called with the graph's inputs."""
        mesh, parts = self.mesh, self._parts(config)
        if by_pieces(config) and mesh.size("pipeline") == 1:
            return Pieces(parts, dict(zip(self.specs, self.parameters))).whole_loss
        stage = PanguStage(parts)
        loss = PanguLoss(stage, gradients=False) if mesh.is_last_stage else None
        return loss if mesh.size("pipeline") == 1 else PipelineLoss(mesh, stage, loss, config.model.hidden_size)

    def _build_optimizer(self, specs, read, moments: bool) -> None:
        """The optimizer over this rank's parameters or, with ``parallel.optimizer``, over its rows of them."""
        self.moment_shards = {name: moment_shard(specs[name], shard, self.mesh) for name, shard in self.shards.items()}
        rows = [
            None
            if self.moment_shards[name] == shard
            else (
                self.moment_shards[name].offset[0] - shard.offset[0],
                self.moment_shards[name].offset[0] - shard.offset[0] + self.moment_shards[name].shape[0],
            )
            for name, shard in self.shards.items()
        ]
        weights, decay = self.parameters, [spec.decay for spec in specs.values()]
        common = (self.step, rows, group_of(self.mesh, "data"))
        if self.config.train.offload == "optimizer":

            def read_own(name: str, shape: tuple[int, ...]):
                shard = self.moment_shards[_parameter_of(name)]
                return read(name, shard.offset, shard.shape)

            self.optimizer = HostAdamW(
                weights, decay, self.config.train, read_own, read_own if moments else None, *common
            )
            return
        shards = {f"{kind}.{name}": shard for name, shard in self.moment_shards.items() for kind in self._moments(name)}
        values = OneByOne(shards, lambda name: read(name, shards[name].offset, shards[name].shape)) if moments else {}
        if self.config.train.optimizer == "muon":
            self.optimizer = Muon(
                weights, list(specs.values()), self.config.train, values, self.step, rows, self.mesh, self.backend
            )
        else:
            self.optimizer = AdamW(weights, decay, self.config.train, values, *common, self.backend)

    def _moments(self, name: str) -> tuple[str, ...]:
        """The kinds of optimizer states that a parameter has, as their names begin."""
        return ("muon_m",) if self.config.train.optimizer == "muon" and is_matrix(name) else ("adam_m", "adam_v")

    def _device_value(self, name: str, value):
        """The device's copy of a parameter: with offload or ``train.param_dtype``, matrices are there in fp16 alone."""
        train, compute = self.config.train, self.config.model.compute_dtype
        half = train.param_dtype == "float16" or train.offload == "optimizer" and compute == "float16"
        return value.astype("float16" if half and is_matrix(name) else "float32", copy=False)

    def restore(self, checkpoint) -> None:
        """Continue from a checkpoint of this run, whatever layout wrote it."""
        state = checkpoint.state
        self.step, self.records, self.tokens = state["step"], state["records"], state["tokens"]
        self.scale.value, self.scale.good_steps = state["loss_scale"], state["loss_scale_good_steps"]
        self._take_schedule(self.timetable.restore(state, self.config.train))
        self.build(checkpoint.read, moments=True)

    def _take_schedule(self, train: TrainConfig) -> None:
        self.config = dataclasses.replace(self.config, train=train)

    # ---------------------------------------------------------------- one step

    def gradients(self, batch):
        """Σ loss over the batch and the gradients of (scaled) mean loss, in ``train.accumulation`` × micro-batches."""
        count = self.config.train.accumulation * self.config.parallel.micro_batches * self._batches()
        rows = len(batch.samples) // count
        parts = [batch_tensors(batch, slice(part * rows, (part + 1) * rows)) for part in range(count)]
        scale = Tensor(self.scale.value / max(batch.weight_total, 1.0), mstype.float32)
        if self.mesh.size("pipeline") > 1:
            return self.gradient_step(parts, scale)
        total, gradients = 0.0, None
        for inputs in parts:
            with self.graphs.compiling("gradients"):
                loss, new = self.gradient_step(*inputs, scale)
            total += float(loss.asnumpy())
            gradients = new if gradients is None else self.add_gradients(*gradients, *new)
        return total, gradients

    def _batches(self) -> int:
        """How many batches the next step takes."""
        return batches_of_step(self.config.train, self.step + 1)

    def train_batch(self, batch) -> dict[str, Any]:
        """Run one batch; returns its event."""
        config = self.config
        started = time.perf_counter()
        total, gradients = self.gradients(batch)
        gradients = self.ranks.sum_gradients(gradients)
        total = self.ranks.sum_loss(total)
        routing = {} if self.routing is None else self.routing.take(self.ranks.sum_over_records, batch.weight_total)
        with self._compiling("norm"):
            squared = float(self.squared_norm(*gradients))
        squared = self.ranks.sum_over_all(squared)
        norm = math.sqrt(squared) / self.scale.value
        records = config.data.batch_size * self._batches()
        self.records += records
        if not math.isfinite(norm):
            return self._overflow()
        lr = learning_rate(config.train, self.step + 1)
        muon = config.train.optimizer == "muon"  # it has two graphs, and AdamW's is small then
        with contextlib.nullcontext() if muon else self._compiling("update"):
            self.optimizer.update(gradients, norm, 1.0 / self.scale.value, lr)
        self.scale.good()
        self.step += 1
        tokens = records * config.data.seq_length
        self.tokens += tokens
        self.last_loss = total / max(batch.weight_total, 1.0)
        seconds = time.perf_counter() - started
        return {
            "kind": "step",
            "step": self.step,
            "loss": self.last_loss,
            "lr": lr,
            "grad_norm": norm,
            "loss_scale": self.scale.value,
            "tokens": self.tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "epoch": round(self.records / len(self.dataset), 3),
            "memory_mb": psutil.Process().memory_info().rss >> 20,
            **routing,
        }

    def _compiling(self, name: str):
        """As ``graphs.compiling``, for what is a graph only in the portable back end."""
        return self.graphs.compiling(name) if isinstance(self.backend, Portable) else contextlib.nullcontext()

    def _overflow(self) -> dict[str, Any]:
        """A gradient was not finite: skip the update and lower the loss scale, or end training at its floor."""
        before = self.scale.value
        if not self.scale.overflow():
            if not self.scale.active:
                raise TrainingFailed(
                    f"the gradients are not finite at step {self.step + 1}: lower train.start_lr, or "
                    "lengthen train.warmup_steps"
                )
            raise TrainingFailed(
                f"the loss scale fell to its floor ({before:g}) at step {self.step + 1}: try "
                "model.softmax_dtype=float32, a lower train.start_lr, or model.compute_dtype=float32"
            )
        return {"kind": "overflow", "step": self.step, "loss_scale": self.scale.value, "was": before}

    # ---------------------------------------------------------------- around the steps

    def evaluate(self) -> None:
        """Write the held-out loss to an event."""
        if self.evalset is None:
            return
        self.run.status(state="evaluating", step=self.step)
        config, begun = self.config, time.monotonic()
        batches = config.train.eval_batches * config.train.accumulation  # the same records however a batch is split
        self.last_eval = held_out_loss(
            self._eval_loss, self.evalset, self._eval_batch(), batches, config.data.eod_reset
        )
        self.eval_step = self.step
        self.run.event("eval", step=self.step, **self.last_eval.figures())
        if self.ranks.is_first:
            self.samples.write(self.step, self.weights)
        self.timetable.evaluating = time.monotonic() - begun

    def _eval_loss(self, *inputs):
        with self.graphs.compiling("evaluation"):
            return self.eval_loss(*inputs)

    def _eval_batch(self) -> int:
        return max(1, self.config.data.batch_size // self.config.train.accumulation)

    def evaluate_and_judge(self) -> bool:
        """Evaluate; whether the current step is the best so far, the same answer on every rank."""
        self.evaluate()
        if self.last_eval is None:
            return False
        return self.ranks.any(self.ranks.is_first and self.watch.is_best(self.step, self.last_eval))

    def save(self, best: bool = False) -> Path:
        """Save a checkpoint of the current state; ``best``: its held-out loss is the lowest so far."""
        self.run.status(state="saving", step=self.step)
        begun = time.monotonic()
        state = {
            "step": self.step,
            "records": self.records,
            "tokens": self.tokens,
            "seed": self.config.train.seed,
            "loss_scale": self.scale.value,
            "loss_scale_good_steps": self.scale.good_steps,
            "dataset": data_identity(self.dataset),
            **self.timetable.state(self.config.train),
        }
        path = save_together(self.run, self.step, *self._own_tensors(), state, self.config, self.ranks)
        if self.ranks.is_first:
            self.run.event("checkpoint", step=self.step, path=path.name)
            if best:
                self.watch.keep(self.step, self.last_eval)
            self.run.keeper.prune(self.config.train.keep_checkpoints, self.watch.best and self.watch.best.step)
        self.timetable.saving = time.monotonic() - begun
        return path

    def fit_schedule(self) -> bool:
        """Choose the last step by the time that is left (``train.minutes``); whether it changed, the same on every rank."""
        train = self.config.train
        if train.minutes is None:
            return False
        chosen = self.timetable.fit(train, self.step)
        steps, cooldown = (0, 0.0) if chosen is None else (chosen.steps, chosen.cooldown)
        [steps, cooldown], *_ = self.ranks.by_rank([float(steps), cooldown])  # the first rank's clock decides
        if not steps:
            return False
        self._take_schedule(dataclasses.replace(train, steps=int(steps), decay_steps=int(steps), cooldown=cooldown))
        self.run.event("schedule", step=self.step, steps=int(steps), cooldown=round(cooldown, 4))
        self.run.status(steps=int(steps))
        return True

    def _own_tensors(self):
        """This rank's part of a checkpoint, and the region of each tensor; every element is written by one rank."""
        tensors, regions, specs = {}, {}, self.specs
        for name, shard in self.shards.items():  # of several copies only the owner's is written
            if is_owner(specs[name], self.mesh) and name not in self.optimizer.masters:
                tensors[name], regions[name] = self.weights(name).asnumpy(), (shard.whole, shard.offset)
        for name, value in {**self.optimizer.masters, **self.optimizer.moments()}.items():
            parameter = _parameter_of(name)
            shard, spec = self.moment_shards[parameter], specs[parameter]
            sliced = shard != self.shards[parameter]
            if is_owner(spec, self.mesh) or sliced and is_first_copy(spec, self.mesh):
                tensors[name], regions[name] = value, (shard.whole, shard.offset)
        return tensors, regions

    def report_memory(self) -> None:
        """Write every rank's memory to an event; every rank must call it."""
        weights = sum(value.nbytes for value in (self.weights(name) for name in self.shards))
        moments = sum(
            4 * math.prod(shard.shape) * len(self._moments(name)) for name, shard in self.moment_shards.items()
        )
        own = [peak_mb(), device_peak_mb(), weights / MB, moments / MB]
        self.run.event("memory", step=self.step, ranks=by_rank(self.ranks.by_rank(own)))

    def loop(self, stop_reason: Callable[[], str | None], progress: Progress) -> tuple[str, Path]:
        """Train until the last step, or until ``stop_reason`` gives a reason; returns it and the last checkpoint."""
        config, path = self.config.train, None  # of its schedule only what the minutes leave as it is
        data = self.config.data
        batches = self.dataset.batches(
            data.batch_size,
            seed=config.seed,
            shuffle=data.shuffle,
            start=self.records,
            eod_reset=data.eod_reset,
            rank=self.mesh.index("data"),
            ranks=self.mesh.size("data"),
        )
        reason = None
        while self.step < self.config.train.steps and reason is None:
            before = self.step
            batch = Batch.joined([next(batches) for _ in range(self._batches())])
            self._step_and_report(batch, progress)
            if self.step > before:
                chosen = self.fit_schedule()
                best = self.step % config.eval_every == 0 and self.evaluate_and_judge()
                path = self.save(best) if best or chosen or self.step % config.checkpoint_every == 0 else None
            reason = stop_reason() or ("no gain" if self.watch.hopeless else None)
            if reason == "time budget" and self.step >= self.config.train.steps:
                reason = None  # the minutes and the schedule have ended together
            if self.ranks.any(reason is not None):  # one rank's reason stops all
                reason = reason or "stopped with the other ranks"
        path = path or self.save()  # before anything else: the sender of a signal may not wait long
        if self.step % config.eval_every and reason != "signal" and self.evaluate_and_judge() and self.ranks.is_first:
            self.watch.keep(self.step, self.last_eval)
        self.report_memory()
        return reason or "finished", path

    def _step_and_report(self, batch, progress: Progress) -> None:
        self.run.status(state="training" if self.first_step_done else "compiling", step=self.step)
        event = self.train_batch(batch)
        kind = event.pop("kind")
        if kind == "step":
            self.watch.step(self.last_loss)
        if not self.first_step_done:
            self.first_step_done = True
            self.run.event("compile", step=self.step, seconds=event.get("seconds"), graphs_taken=self.graphs.taken)
            for name in ("seconds", "tokens_per_second"):  # these would include the compilation
                event.pop(name, None)
        steps = max(self.step, self.timetable.expected(self.config.train, self.step))
        if self.config.train.minutes is not None:
            event["steps"] = steps
        if kind == "overflow" or self.step % self.config.train.log_every == 0 or self.step == self.config.train.steps:
            self.run.event(kind, **event)
        self.run.status(state="training", step=self.step, steps=steps)
        progress(
            self.step,
            steps,
            f"overflow, loss scale now {event['loss_scale']:g}"
            if kind == "overflow"
            else step_text(event, self.config.model.num_parameters),
        )


def _parameter_of(name: str) -> str:
    """The parameter that an optimizer's state (or a master weight) belongs to."""
    kind, _, rest = name.partition(".")
    return rest if kind in ("adam_m", "adam_v", "muon_m") else name
