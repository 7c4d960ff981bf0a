"""Warm start of the verbalizer: cross-entropy of a given explanation, with the activation in its prompt."""

from typing import Any

import torch

from nla.stages.base import Stage
from nla.types import ActivationBatch


class VerbalizerStage(Stage):
    """Teaches p(z | h) from texts by a teacher (method, section 5).

    Logs ``loss`` (nats per token) and, in validation, ``reading_gap``: the loss with activations of other rows minus
    the loss with the right ones. A gap of 0 says that the verbalizer writes without reading its activation.
    """

    name = "verbalizer"
    trains = ("verbalizer",)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        self.optimizer.zero_grad()
        loss = self._loss(batch)
        self.manual_backward(loss)
        self.log_step({"loss": loss.detach(), **self.update()}, shown=["loss"])

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        right = self._loss(batch)
        others = self._loss(batch, batch.activation.roll(max(1, len(batch) // 2), dims=0))
        self.log_validation({"loss": right, "reading_gap": others - right}, len(batch))
        return super().validation_step(batch, batch_idx)

    def _loss(self, batch: ActivationBatch, activation: torch.Tensor | None = None) -> torch.Tensor:
        tokens, mask = self.nla.verbalizer.respond(self.explanations_of(batch))
        log_probs = self.nla.verbalizer(batch.activation if activation is None else activation, tokens, mask)
        return -log_probs.sum() / mask.sum()
