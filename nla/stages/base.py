"""What the stages share: the pair, the frozen target, the optimizer and the validation. It knows no loss.

Logged by every stage's validation: ``<stage>/fve`` and ``<stage>/fve_normalized_mean`` (greedy explanations, malformed
ones counted as orthogonal), ``cosine``, ``well_formed`` and ``explanation_tokens``.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nla.autoencoder import NLA
from nla.errors import TrainingError
from nla.metrics import FractionOfVarianceExplained
from nla.objectives import cosine
from nla.target import Target
from nla.types import ActivationBatch, Completions, TokenBatch

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


class Stage(LightningModule):
    """A thin shell around an `NLA` and its `Target`; subclasses add one training step.

    Args:
        steps: optimizer steps in all.
        optimizer: makes the optimizer from parameter groups.
        warmup_steps, final_fraction: linear warm-up of the learning rate, then a cosine down to this share of it at
            the last step; 1 keeps it constant.
        clip_norm: largest gradient norm of each model.
        max_new_tokens: length cap of the explanations that validation writes.
        skipped_in_a_row: so many non-finite gradients one after the other stop the run.
        seed: of the sampled explanations.
    """

    name: ClassVar[str]
    trains: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        nla: NLA,
        target: Target,
        *,
        steps: int,
        optimizer: OptimizerFactory,
        warmup_steps: int,
        final_fraction: float,
        clip_norm: float,
        max_new_tokens: int,
        skipped_in_a_row: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.nla = nla
        self._target = (target,)  # in a tuple: frozen, neither in the state dict nor among the parameters
        self.steps, self.optimizer_factory = steps, optimizer
        self.warmup_steps, self.final_fraction, self.clip_norm = warmup_steps, final_fraction, clip_norm
        self.max_new_tokens, self.skipped_in_a_row, self.seed = max_new_tokens, skipped_in_a_row, seed
        self.automatic_optimization = False
        self.fve = FractionOfVarianceExplained(target.d_model)
        self._skipped = 0
        for half in ("verbalizer", "reconstructor"):
            if half not in self.trains:
                getattr(nla, half).requires_grad_(False)

    @property
    def target(self) -> Target:
        return self._target[0]

    @property
    def optimizer(self) -> LightningOptimizer:
        """The one optimizer, as Lightning wraps it (its ``step`` counts ``global_step``)."""
        return cast(LightningOptimizer, self.optimizers())

    @property
    def scheduler(self) -> LambdaLR:
        return cast(LambdaLR, self.lr_schedulers())

    def halves(self) -> dict[str, nn.Module]:
        """The modules that this stage trains, by name."""
        return {name: getattr(self.nla, name) for name in self.trains}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group per trained half; a subclass may give them rates of their own."""
        return [{"params": trainable(half), "name": name} for name, half in self.halves().items()]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.parameter_groups())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._rate)}}

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine_part = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return warm * (self.final_fraction + (1 - self.final_fraction) * cosine_part)

    def on_fit_start(self) -> None:
        self.target.to(self.device)

    def on_validation_start(self) -> None:
        self.target.to(self.device)

    def on_after_batch_transfer(self, batch: TokenBatch | ActivationBatch, dataloader_idx: int) -> ActivationBatch:
        """Read the activations where the target lives; batches that hold activations already pass through."""
        if isinstance(batch, ActivationBatch):
            return batch
        activation = self.target(batch.tokens, batch.mask, batch.row, batch.position)
        return ActivationBatch(activation, batch.document, batch.position, batch.text, batch.explanation)

    def update(self) -> dict[str, Tensor]:
        """Clip each half, then one optimizer step, unless a gradient is not finite: then skip it and count.

        Raises TrainingError after ``skipped_in_a_row`` of them.
        """
        optimizer = self.optimizer
        norms = {
            name: nn.utils.clip_grad_norm_(trainable(half), self.clip_norm) for name, half in self.halves().items()
        }
        if all(bool(norm.isfinite()) for norm in norms.values()):
            optimizer.step()
            self._skipped = 0
        else:
            self._skipped += 1
            optimizer.zero_grad()
            if self._skipped >= self.skipped_in_a_row:
                raise TrainingError(
                    f"stage {self.name}: {self._skipped} steps in a row had a non-finite gradient (last at step "
                    f"{self.global_step}); lower stage.{self.name}.optimizer.lr or look at the data"
                )
        self.scheduler.step()
        return {f"gradient_norm_{name}": norm for name, norm in norms.items()} | {
            "skipped_steps": torch.tensor(float(self._skipped))
        }

    def log_step(self, metrics: dict[str, Tensor | float], shown: Iterable[str] = ()) -> None:
        """Log ``<stage>/<name>``, the ``shown`` ones in the progress bar too."""
        bar = set(shown)
        for name, value in metrics.items():
            self.log(f"{self.name}/{name}", value, prog_bar=name in bar, on_step=True, on_epoch=False)

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        """Greedy explanations of held-out activations, scored by the reconstructor; returns rows for a table."""
        completions = self.nla.verbalizer.sample(batch.activation, max_new_tokens=self.max_new_tokens, temperature=0.0)
        prediction = self.nla.reconstructor.reconstruct([text or "" for text in completions.explanation])
        well_formed = completions.well_formed
        self.fve.update(prediction, batch.activation, well_formed)
        cosines = torch.where(well_formed, cosine(prediction, batch.activation), 0.0)
        self.log_validation(
            {
                "cosine": cosines.mean(),
                "well_formed": well_formed.float().mean(),
                "explanation_tokens": completions.mask.sum(1).float().mean(),
            },
            len(batch),
        )
        return {"text": batch.text, "explanation": completions.explanation, "cosine": cosines}

    def log_validation(self, metrics: dict[str, Float[Tensor, ""]], rows: int) -> None:
        for name, value in metrics.items():
            self.log(f"{self.name}/validation/{name}", value, on_epoch=True, batch_size=rows, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.fve.update_called:
            for name, value in self.fve.compute().items():
                self.log(f"{self.name}/validation/{name}", value.float(), prog_bar=name == "fve")
            self.fve.reset()

    def explanations_of(self, batch: ActivationBatch) -> list[str]:
        """The batch's warm-start texts. Raises TrainingError where it has none."""
        if batch.explanation is None:
            raise TrainingError(
                f"stage {self.name} learns from given explanations and the data carry none: "
                "give data.explanation_column, or leave the warm start out with stages=[joint]"
            )
        return batch.explanation


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that receive gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def token_count(completions: Completions) -> Float[Tensor, ""]:
    """Mean length of the completions in tokens, the stop token included."""
    return completions.mask.sum(1).float().mean()
