"""Perplexity of a model on a prepared data set: the number that training reports, for any model and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from pangu_lab.errors import InputError
from pangu_lab.memory import check, scoring_need
from pangu_lab.progress import Progress, silent


@dataclass(frozen=True)
class PerplexityResult:
    """Mean negative log-likelihood a token (nats), its exp, and over how much text."""

    perplexity: float
    loss: float
    tokens: int
    records: int
    model: str


def perplexity(source: Union[str, Path], data: Union[str, Path], batch_size: int = 8,
               max_records: Optional[int] = None, progress: Progress = silent) -> PerplexityResult:
    """Perplexity of the model in a run or checkpoint folder on a data set made by ``prepare``.

    Args:
        max_records: look at about so many records (whole batches) from the start.

    Raises:
        InputError: no model or data set there; the data set was made with another tokenizer, or its records are
            longer than the model's positions.
    """
    from pangu_lab.checkpoint.source import open_weights, tokenizer_folder
    from pangu_lab.data import open_dataset
    from pangu_lab.tokenizer import load_tokenizer
    from pangu_lab.train.evaluation import held_out_loss

    weights, config = open_weights(source)
    dataset = open_dataset(data, config.data.column)
    dataset.check_tokenizer(load_tokenizer(tokenizer_folder(source), config.tokenizer.eod, config.tokenizer.pad))
    length = dataset.record_length - 1
    if length > config.model.num_positions:
        raise InputError(f"{data}: records of {length} tokens are longer than the model's "
                         f"{config.model.num_positions}")
    wanted = min(len(dataset), max_records or len(dataset))
    batch_size = max(1, min(batch_size, wanted))
    check(f"{source}: measuring", scoring_need(config.model, batch_size * length),
          lambda model: scoring_need(model, batch_size * length))
    batches = -(-wanted // batch_size)
    loss = held_out_loss(_loss_cell(config.model, weights, length), dataset, batch_size, batches,
                         config.data.eod_reset, progress)
    records = min(len(dataset), batches * batch_size)
    return PerplexityResult(loss.perplexity, loss.loss, loss.tokens, records, Path(source).name)


def _loss_cell(config, weights, length: int):
    """Σ weight · −log p for a batch, without dropout."""
    import mindspore as ms

    from pangu_lab.evaluate.scoring import inference_config
    from pangu_lab.model.pangu import PanguLoss, PanguStage, Parts, Weights

    ms.set_context(mode=ms.GRAPH_MODE)
    config = inference_config(config)
    return PanguLoss(PanguStage(Parts(config, Weights(weights), seq_length=length)))
