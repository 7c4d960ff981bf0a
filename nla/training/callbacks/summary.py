"""Keeps a summary of the activations that a stage trained on, to be saved with the pair."""

from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from nla.core.records import ActivationBatch
from nla.core.summary import ActivationSummary


class Summary(Callback):
    """Sums up the first `rows` activations of each stage, of all ranks, in `nla.summary`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._activations: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._activations = []  # before a checkpoint is restored

    def state_dict(self) -> dict[str, Any]:
        return {"found": torch.cat(self._activations)} if self._activations else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._activations = list(state_dict.values())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, ActivationBatch) and sum(map(len, self._activations)) < self.rows:
            self._activations.append(_of_all_ranks(batch.activation.detach().float().cpu()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if sum(map(len, self._activations)) > 1:
            pl_module.nla.summary = ActivationSummary.of(torch.cat(self._activations)[: max(2, self.rows)])  # pyright: ignore


def _of_all_ranks(activation: Float[Tensor, "batch d_model"]) -> Float[Tensor, "rows d_model"]:
    """In the order of ranks; every rank then has collected the same, and so has a checkpoint."""
    if not distributed.is_initialized():
        return activation
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, activation)  # ranks may have different numbers of rows
    return torch.cat(parts)
