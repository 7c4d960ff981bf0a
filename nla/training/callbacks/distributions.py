"""Histograms and FVE by position, for TensorBoard: what a mean hides.

It reads what a stage's steps return: from training `reward` and `explanation_tokens` of the samples, from validation
`cosine` and `explanation_tokens` of the rows. Of this rank only; other loggers get the scalars alone.
"""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.records import ActivationBatch
from nla.training.callbacks.loggers import FaultTolerantLogger

POSITIONS = (0, 8, 32, 128)  # token index from which each range begins


class Distributions(Callback):
    """Histograms every `every` steps and at each validation; ``validation/fve_from_<position>`` at each validation.

    The FVE of a range of positions takes the variance about the mean of all validation rows, as
    `nla.evaluation.suites.breakdown` does.
    """

    def __init__(self, every: int) -> None:
        self.every = max(1, every)
        self._rows: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and trainer.global_step % self.every == 0:
            _histograms(trainer, f"{_name(pl_module)}/samples", outputs)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.sanity_checking or not isinstance(batch, ActivationBatch) or batch.padding:
            return
        if isinstance(outputs, dict) and "cosine" in outputs:
            rows = {"activation": batch.activation, "position": batch.position, **_tensors(outputs)}
            self._rows.append({name: value.detach().cpu() for name, value in rows.items()})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._rows:
            return
        rows = {name: torch.cat([row[name] for row in self._rows]) for name in self._rows[0]}
        self._rows = []
        name = f"{_name(pl_module)}/validation"
        figures = fve_by_position(rows["activation"], rows["cosine"], rows["position"])
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({f"{name}/{key}": value for key, value in figures.items()}, trainer.global_step)
        _histograms(trainer, name, {key: rows[key] for key in rows if key not in ("activation", "position")})


def fve_by_position(activation: Tensor, cosine: Tensor, position: Tensor) -> dict[str, float]:
    """`fve_from_<position>` of each range with rows; the error is `2 (1 - cosine)`."""
    truth = normalized_activations(activation)
    spread = (truth - truth.mean(0)).square().mean(1)
    figures = {}
    for first, after in zip(POSITIONS, (*POSITIONS[1:], math.inf), strict=True):
        inside = (position >= first) & (position < after)
        if float(spread[inside].sum()) > 0:
            error = (2 * (1 - cosine[inside].double())).sum()
            figures[f"fve_from_{first}"] = float(1 - error / spread[inside].sum())
    return figures


def _tensors(outputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 1}


def _histograms(trainer: Trainer, name: str, values: dict[str, Any]) -> None:
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, FaultTolerantLogger):
            for key, value in _tensors(values).items():
                logger.log_histogram(f"{name}/{key}", value, trainer.global_step)


def _name(pl_module: LightningModule) -> str:
    return str(getattr(pl_module, "name", type(pl_module).__name__))
