"""Keeps a summary of the activations that a stage trained on, to be saved with the pair."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from nla.core.records import ActivationBatch
from nla.core.summary import ActivationSummary


class Summary(Callback):
    """Sums up the first `rows` activations of each stage (this rank's; on resume rank 0's) in `nla.summary`."""

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
            self._activations.append(batch.activation.detach().float().cpu())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if sum(map(len, self._activations)) > 1:
            pl_module.nla.summary = ActivationSummary.of(torch.cat(self._activations)[: max(2, self.rows)])  # pyright: ignore
