"""Warm start of the reconstructor: the error of its prediction from a given explanation."""

from nla.objectives import reconstruction_error
from nla.stages.base import Stage
from nla.types import ActivationBatch


class ReconstructorStage(Stage):
    """Teaches h(z) from texts by a teacher (method, section 5). Logs ``error``: at scale sqrt(d), 2 (1 - cos)."""

    name = "reconstructor"
    trains = ("reconstructor",)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        self.optimizer.zero_grad()
        prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(self.explanations_of(batch)))
        error = reconstruction_error(prediction, batch.activation, self.nla.mse_scale).mean()
        self.manual_backward(error)
        self.log_step({"error": error.detach(), **self.update()}, shown=["error"])
