"""Warm start of the reconstructor: the error of its prediction from a given explanation."""

import dataclasses
import logging
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import ErrorKind, cosine
from nla.core.records import ActivationBatch
from nla.errors import ConfigError
from nla.training.head_start import HeadStart, ridge_head
from nla.training.out_of_memory import in_micro_batches
from nla.training.parallel import gathered
from nla.training.reworded import check_share, reworded
from nla.training.stages.base import Stage

log = logging.getLogger(__name__)


class ReconstructorStage(Stage):
    """Teaches h(z) from texts by a teacher (method, section 5). Logs ``error``: at scale sqrt(d), 2 (1 - cos).

    Args:
        error: `plain`, or `whitened`: each dimension's square over its own variance.
        head_start: of the head: ``identity``, or ``ridge``, the least-squares map from the untrained model's states.
        head_texts: explained rows that the ridge head is fitted to, over all ranks.
        reworded: share of the texts that it is trained on in other words (`nla.data.rewording`).
    """

    name = "reconstructor"
    trains = ("reconstructor",)

    def __init__(
        self, *args: Any, error: ErrorKind, head_start: HeadStart, head_texts: int, reworded: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if head_texts < 1:
            raise ConfigError(f"stage.reconstructor.head_texts={head_texts}: must be at least 1")
        self.error_kind = error
        self.head_start, self.head_texts = head_start, head_texts
        self.reworded = check_share(self.name, reworded)
        self.fve_shuffled = FractionOfVarianceExplained(self.target.d_model)

    def on_train_start(self) -> None:
        """Weights of the error; and the ridge head, once: a run that continues from a checkpoint has it."""
        self.measure_error()
        if self.head_start == "identity" or self.trainer.global_step > 0:
            return
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                "stage.reconstructor.head_start=ridge needs the whole reconstructor on each rank: use head_start="
                "identity with fsdp2, or a hardware config without it"
            )
        with self.trainer.precision_plugin.forward_context():
            head, figures = ridge_head(
                self.nla.reconstructor, self.training_rows(self.head_texts), self.held_out_rows(), self.sum_over_ranks
            )
        self.nla.reconstructor.head.weight.data.copy_(head)
        log.info(
            "ridge head: fitted to %d texts, penalty %g, held-out error %.3f",
            figures["texts"], figures["penalty"], figures["error"],
        )  # fmt: skip

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        """The given texts of held-out activations, read and scored, beside each other's: nothing is sampled.

        ``fve`` is the ceiling of what the verbalizer can learn from such texts; ``fve_shuffled`` must lie below it.
        """
        texts = self.explanations_of(batch)
        with gathered(self.nla.reconstructor, self.gather):
            reconstruct = self.nla.reconstructor.reconstruct
            prediction = torch.cat(self.scoring_parts.run(self, lambda part: reconstruct(texts[part]), len(texts)))
        rows = 0 if batch.padding else len(batch)
        self.fve.update(prediction[:rows], batch.activation[:rows])
        others = prediction.roll(max(1, len(batch) // 2), dims=0)
        self.fve_shuffled.update(others[:rows], batch.activation[:rows])
        cosines = cosine(prediction, batch.activation)
        self.log_validation(
            {"cosine": cosines.mean(), "cosine_shuffled": cosine(others, batch.activation).mean()}, rows
        )
        return {"text": batch.text, "explanation": batch.explanation, "cosine": cosines}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.fve_shuffled.update_called:
            self.log("reconstructor/validation/fve_shuffled", self.fve_shuffled.compute()["fve"])
            self.fve_shuffled.reset()

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        rows = self.mean_over_ranks(torch.tensor(len(batch), device=self.device))
        if self.reworded:
            places = zip(batch.document, batch.position.tolist(), strict=True)
            keys = [f"{self.seed}/{self.global_step}/{document}/{position}" for document, position in places]
            texts = reworded(self.explanations_of(batch), keys, self.reworded, self.source)
            batch = dataclasses.replace(batch, explanation=texts)

        def backward(size: int) -> torch.Tensor:
            errors = []
            for micro_batch in self.micro_batches(batch, size):
                prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(self.explanations_of(micro_batch)))
                error = self.reconstruction_error(prediction, micro_batch.activation).sum() / rows
                self.manual_backward(error)
                errors.append(error.detach())
            return torch.stack(errors).sum()

        error, self.micro_batch_size = in_micro_batches(self, backward, self.micro_batch_size)
        self.log_step({"error": error, **self.update(batch, error)}, shown=["error"])
