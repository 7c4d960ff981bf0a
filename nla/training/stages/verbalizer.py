"""Warm start of the verbalizer: cross-entropy of a given explanation, with the activation in its prompt."""

from typing import Any

import torch

from nla.core.records import ActivationBatch
from nla.training.out_of_memory import in_micro_batches
from nla.training.stages.base import Stage


class VerbalizerStage(Stage):
    """Teaches p(z | h) from texts by a teacher (method, section 5).

    Logs ``loss`` (nats per token) and, in validation, ``reading_gap``: the loss with activations of other rows minus
    the loss with the right ones. A gap of 0 means that the verbalizer writes without reading its activation.
    """

    name = "verbalizer"
    trains = ("verbalizer",)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        tokens = self.mean_over_ranks(self.nla.verbalizer.respond(self.explanations_of(batch))[1].sum())

        def backward(size: int) -> torch.Tensor:
            losses = []
            for micro_batch in self.micro_batches(batch, size):
                loss = self._surprisal(micro_batch, micro_batch.activation)[0] / tokens
                self.manual_backward(loss)
                losses.append(loss.detach())
            return torch.stack(losses).sum()

        loss, self.micro_batch_size = in_micro_batches(self, backward, self.micro_batch_size)
        self.log_step({"loss": loss, **self.update(batch, loss)}, shown=["loss"])

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        right, tokens = self._surprisal(batch, batch.activation)
        others, _ = self._surprisal(batch, batch.activation.roll(max(1, len(batch) // 2), dims=0))
        losses = {"loss": right / tokens, "reading_gap": (others - right) / tokens}
        self.log_validation(losses, 0 if batch.padding else int(tokens))
        return super().validation_step(batch, batch_idx)

    def _surprisal(self, batch: ActivationBatch, activation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The total surprisal of the given explanations, in nats, and their number of tokens."""
        tokens, mask = self.nla.verbalizer.respond(self.explanations_of(batch))
        return -self.nla.verbalizer(activation, tokens, mask).sum(), mask.sum()
