"""Warm start of the reconstructor: the error of its prediction from a given explanation."""

import torch

from nla.core.objectives import reconstruction_error
from nla.core.records import ActivationBatch
from nla.training.out_of_memory import in_micro_batches
from nla.training.stages.base import Stage


class ReconstructorStage(Stage):
    """Teaches h(z) from texts by a teacher (method, section 5). Logs ``error``: at scale sqrt(d), 2 (1 - cos)."""

    name = "reconstructor"
    trains = ("reconstructor",)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        rows = self.mean_over_ranks(torch.tensor(len(batch), device=self.device))

        def backward(size: int) -> torch.Tensor:
            errors = []
            for micro_batch in self.micro_batches(batch, size):
                prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(self.explanations_of(micro_batch)))
                error = reconstruction_error(prediction, micro_batch.activation, self.nla.mse_scale).sum() / rows
                self.manual_backward(error)
                errors.append(error.detach())
            return torch.stack(errors).sum()

        error, self.micro_batch_size = in_micro_batches(self, backward, self.micro_batch_size)
        self.log_step({"error": error, **self.update(batch, error)}, shown=["error"])
