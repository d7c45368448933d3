"""Perplexity of a model on a prepared data set: the number that training reports, for any model and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pangu_lab.config import RunConfig
from pangu_lab.data import open_dataset
from pangu_lab.errors import InputError
from pangu_lab.evaluate.scoring import inference_config
from pangu_lab.loading import Model
from pangu_lab.memory import check, scoring_need
from pangu_lab.progress import Progress, silent


@dataclass(frozen=True)
class PerplexityResult:
    """Mean negative log-likelihood a token (nats), its exp, and over how much text.

    Attributes:
        bits_per_character: the same loss in a unit that compares between vocabularies; None where the data set does
            not know its characters.
        records, of_records: how many of the data set's records were used.
    """

    perplexity: float
    loss: float
    tokens: int
    records: int
    model: str
    of_records: int = 0
    bits_per_character: float | None = None


def perplexity(
    source: str | Path | Model,
    data: str | Path,
    batch_size: int = 8,
    max_records: int | None = None,
    progress: Progress = silent,
) -> PerplexityResult:
    """Perplexity of a model (anything that ``PanguLM.load`` opens, or has opened) on a data set made by ``prepare``.

    Args:
        max_records: use about this many records (whole batches) from the start.

    Raises:
        InputError: no model or no data set there; the data set was made with another tokenizer, or its records are
            longer than the model's positions.
    """
    from pangu_lab.train.evaluation import held_out_loss  # imports MindSpore

    model = source if isinstance(source, Model) else Model.load(source)
    settings = (model.settings or RunConfig()).data  # a bundle was made of a run whose documents were kept apart
    dataset = open_dataset(data, settings.column)
    dataset.check_tokenizer(model.require_tokenizer())
    length = dataset.record_length - 1
    if length > model.config.num_positions:
        raise InputError(f"{data}: records of {length} tokens are longer than the model's {model.config.num_positions}")
    wanted = min(len(dataset), max_records or len(dataset))
    batch_size = max(1, min(batch_size, wanted))
    check(
        f"{model.name}: measuring",
        scoring_need(model.config, batch_size * length),
        lambda config: scoring_need(config, batch_size * length),
    )
    batches = -(-wanted // batch_size)
    measured = _loss_of_bundle(model) if model.bundle is not None else _loss_cell(model, length)
    loss = held_out_loss(measured, dataset, batch_size, batches, settings.eod_reset, progress)
    return PerplexityResult(
        loss.perplexity, loss.loss, loss.tokens, loss.records, model.name, loss.of, loss.bits_per_character
    )


def _loss_of_bundle(model: Model):
    """As ``_loss_cell``, with the bundle's own graph: no model code runs."""
    bundle = model.engine

    def total(inputs, positions, samples, labels, weights):
        import mindspore as ms

        sums, _ = bundle.eval_loss(*(tensor.asnumpy() for tensor in (inputs, positions, labels, weights)))
        return ms.Tensor(sums.sum())

    return total


def _loss_cell(model: Model, length: int):
    """The cell that computes Σ weight · −log p for a batch, without dropout."""
    import mindspore as ms

    from pangu_lab.model.pangu import PanguLoss, PanguStage, Parts, Weights

    ms.set_context(mode=ms.GRAPH_MODE)
    config, weights = inference_config(model.config), model.require_weights("measured")
    return PanguLoss(PanguStage(Parts(config, Weights(weights), seq_length=length)))
