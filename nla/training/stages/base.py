"""What the stages share: the pair, the frozen target, the optimizer and the validation; not the loss.

Logged by every stage's validation: ``<stage>/fve`` and ``<stage>/fve_normalized_mean`` (greedy explanations, malformed
ones counted as orthogonal), ``cosine``, ``well_formed`` and ``explanation_tokens``.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nla.config.trainer import Gather
from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import ErrorKind, cosine, reconstruction_error, whitening
from nla.core.records import ActivationBatch, Completions, TokenBatch
from nla.core.schedule import learning_rate_share
from nla.data.datamodule import VALIDATION_POSITIONS, NLADataModule
from nla.errors import TrainingError
from nla.models.pair import NLA
from nla.models.parameters import trainable
from nla.models.reconstructor import Reconstructor
from nla.models.reference import Reference
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.training.optim import parameter_groups
from nla.training.out_of_memory import SAMPLING, SCORING, Parts
from nla.training.parallel import checkpoint_activations, gathered, shard, whole
from nla.training.skipped_steps import SkippedSteps

WHITENING_ROWS = 2048  # training rows that the weights of a whitened error are measured on
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


class Stage(LightningModule):
    """A thin shell around an `NLA` and its `Target`; subclasses add one training step.

    Args:
        steps: optimizer steps in all.
        optimizer: makes the optimizer from parameter groups.
        warmup_steps, final_fraction: linear warm-up of the learning rate, then a cosine down to this share of it at
            the last step; 1 keeps it constant.
        clip_norm: largest gradient norm of each model.
        micro_batch_size: rows per forward and backward pass; never changes the result. Halved when memory runs out.
        activation_checkpointing: run each block again in the backward pass instead of storing its activations.
        gather: how sharded weights are gathered for sampling and reading: `once` per rollout, or by `blocks` in each
            pass.
        max_new_tokens: length cap of the explanations that validation writes.
        skipped_in_a_row: number of consecutive steps without a finite loss and gradient that stops the run.
        seed: of the sampled explanations.
        groups: optimizer settings of one half alone: ``{"reconstructor": {"lr": 1e-3}}``.
    """

    name: ClassVar[str]
    trains: ClassVar[tuple[str, ...]]
    reference: Reference | None = None  # the KL reference of a stage that has one
    error_kind: ErrorKind = "plain"  # of the error that is trained on

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
        micro_batch_size: int,
        activation_checkpointing: bool,
        gather: Gather,
        max_new_tokens: int,
        skipped_in_a_row: int,
        seed: int,
        groups: dict[str, dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self.nla = nla
        self._target = (target,)  # in a tuple: frozen, neither in the state dict nor among the parameters
        self.steps, self.optimizer_factory = steps, optimizer
        self.warmup_steps, self.final_fraction, self.clip_norm = warmup_steps, final_fraction, clip_norm
        self.micro_batch_size, self.max_new_tokens, self.seed = micro_batch_size, max_new_tokens, seed
        self.activation_checkpointing = activation_checkpointing
        self.gather: Gather = gather
        self.groups = groups or {}
        self.automatic_optimization, self._configured = False, False
        self._error_weight: tuple[Tensor, ...] = ()  # in a tuple: not in the state dict
        self.fve = FractionOfVarianceExplained(target.d_model)
        self._validated: dict[str, Tensor] = {}  # weighted sums and weights
        self.skipped_steps = SkippedSteps(self.name, skipped_in_a_row)
        self.sampling_parts, self.scoring_parts = Parts(SAMPLING), Parts(SCORING)
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

    def measure_error(self) -> None:
        """Weights of a whitened error, from the first training rows: the same on all ranks and after a resume."""
        if self.error_kind == "whitened":
            with self.trainer.precision_plugin.forward_context():
                rows = torch.cat([batch.activation for batch in self.training_rows(WHITENING_ROWS)])
            self._error_weight = (
                self.mean_over_ranks(whitening(rows, self.nla.mse_scale).to(self.device)).to(self.device),
            )

    def reconstruction_error(
        self, prediction: Float[Tensor, "sample d_model"], activation: Float[Tensor, "sample d_model"]
    ) -> Float[Tensor, " sample"]:
        """The error that is trained on."""
        return reconstruction_error(prediction, activation, self.nla.mse_scale, self.error_weight)

    @property
    def error_weight(self) -> Float[Tensor, " d_model"] | None:
        return self._error_weight[0] if self._error_weight else None

    def halves(self) -> dict[str, nn.Module]:
        """The modules that this stage trains, by name."""
        return {name: getattr(self.nla, name) for name in self.trains}

    @property
    def frozen_readers(self) -> tuple[Reconstructor, ...]:
        """Further reconstructors, which are not trained."""
        return ()

    def configure_model(self) -> None:
        if self._configured:  # Lightning calls it again at each entry point
            return
        self._configured = True
        if self.activation_checkpointing:
            for half in self.halves().values():
                checkpoint_activations(half)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            # GPUs may differ: the one with the least memory decides
            once = self.trainer.strategy.reduce_boolean_decision(self.gather == "once", all=True)
            self.gather = "once" if once else "blocks"
            device, precision = self.trainer.strategy.root_device, self.trainer.precision
            shard(self.nla, self.target, device, precision, self.frozen_readers, self.reference)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(parameter_groups(self.halves(), self.groups))
        settings = {
            "steps": self.steps, "warmup_steps": self.warmup_steps, "final_fraction": self.final_fraction,
        }  # fmt: skip
        # a plain function: LambdaLR saves the attributes of any other callable in each checkpoint
        scheduler = LambdaLR(optimizer, lambda step: learning_rate_share(step, **settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def on_fit_start(self) -> None:
        self.target.to(self.device)

    def on_validation_start(self) -> None:
        self.target.to(self.device)

    def on_after_batch_transfer(self, batch: TokenBatch | ActivationBatch, dataloader_idx: int) -> ActivationBatch:
        """Read the activations where the target lives; batches that hold activations already pass through."""
        if isinstance(batch, ActivationBatch):
            return batch
        with gathered(self.target, self.gather):
            activation = self.target(batch.tokens, batch.mask, batch.row, batch.position)
        return ActivationBatch(activation, batch.document, batch.position, batch.text, batch.explanation, batch.padding)

    def sample(self, activation: Tensor, params: SamplingParams, seed: int = 0, first_row: int = 0) -> Completions:
        """`Verbalizer.sample`, in parts where memory runs out: rows have their own seeds, so tokens are the same."""

        def sample_rows(rows: slice) -> Completions:
            first = first_row + rows.start * params.group_size
            return self.nla.verbalizer.sample(activation[rows], params, seed, first)

        with gathered(self.nla.verbalizer, self.gather):
            parts = self.sampling_parts.run(self, sample_rows, len(activation))
        return Completions.join(parts, self.nla.verbalizer.pad_id)

    def training_rows(self, rows: int) -> Iterator[ActivationBatch]:
        """This rank's batches of the first `rows` training rows, with activations, past the loader."""
        data: NLADataModule = cast(Any, self.trainer).datamodule
        return self._batches(data, data.split, -(-rows // data.batch_size))

    def held_out_rows(self, rows: int | None = None) -> Iterator[ActivationBatch]:
        """Likewise of the validation split: the first `rows`, rounded up to whole batches on every rank; None: all."""
        data: NLADataModule = cast(Any, self.trainer).datamodule
        count = data.validation_batches
        if rows is not None:
            count = min(count, -(-rows // (VALIDATION_POSITIONS * self.trainer.world_size)))
        return self._batches(data, "validation", count)

    @property
    def source(self) -> object:
        """Where the rows come from."""
        return cast(NLADataModule, cast(Any, self.trainer).datamodule).reader.source

    def _batches(self, data: NLADataModule, split: str, count: int) -> Iterator[ActivationBatch]:
        for number in range(count):
            yield self.on_after_batch_transfer(data.batch(split, 0, number).to(self.device), 0)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """One process stays on the CPU, in float64, which not every device has."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum").cpu()

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of counts that divide a loss; gradients are averaged over ranks, so counts must be too."""
        return self.trainer.strategy.reduce(value.float(), reduce_op="mean")

    def micro_batches(self, batch: ActivationBatch, size: int) -> Iterator[ActivationBatch]:
        """Parts of at most `size` rows. Under FSDP2, where ranks meet in each pass, all ranks run the same number.

        Ranks may have different numbers of rows, because positions without an explanation are left out.
        """
        parts = -(-len(batch) // size)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            parts = int(self.trainer.strategy.reduce(torch.tensor(float(parts), device=self.device), reduce_op="max"))
            if parts > len(batch):
                raise TrainingError(
                    f"stage {self.name}, rank {self.global_rank}: {len(batch)} rows for {parts} micro-batches: raise "
                    f"hardware.micro_batch_size={size} or stage.{self.name}.data.batch_size"
                )
        return batch.parts(parts)

    def update(self, batch: ActivationBatch, loss: Float[Tensor, ""]) -> dict[str, Tensor]:
        """Clip each half and take one optimizer step, or skip it where a loss or gradient is not finite on any rank.

        Skipped steps are counted and their rows recorded. Raises TrainingError after ``skipped_in_a_row`` of them.
        """
        optimizer = self.optimizer
        norms = {
            name: whole(nn.utils.clip_grad_norm_(trainable(half), self.clip_norm))
            for name, half in self.halves().items()
        }
        finite = all(bool(value.isfinite()) for value in (loss.detach(), *norms.values()))
        if self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            optimizer.step()
            self.scheduler.step()  # together with the optimizer, so that a skipped step changes nothing
            self.skipped_steps.took()
        else:
            optimizer.zero_grad()
            figures = {"loss": float(loss), **{f"gradient_norm_{name}": float(norm) for name, norm in norms.items()}}
            self.skip(batch, figures)
        return {f"gradient_norm_{name}": norm for name, norm in norms.items()}

    def skip(self, batch: ActivationBatch, figures: dict[str, float], kind: str = "steps") -> None:
        """Count and record a skipped update. Raises TrainingError after ``skipped_in_a_row`` of its kind."""
        folder = Path(self.trainer.default_root_dir)
        self.skipped_steps.skip(batch, figures, step=self.global_step, rank=self.global_rank, folder=folder, kind=kind)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skips"] = self.skipped_steps.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps.load_state_dict(checkpoint.get("skips", {}))

    def log_step(self, metrics: dict[str, Tensor | float], shown: Iterable[str] = ()) -> None:
        """Log ``<stage>/<name>``, each the mean over ranks, and the skipped steps; ``shown`` ones go to the bar too."""
        bar = set(shown)
        metrics = {**metrics, "skipped_steps": float(self.skipped_steps.total)}
        values = torch.stack(
            [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in metrics.values()]
        )
        for name, value in zip(metrics, self.mean_over_ranks(values), strict=True):
            self.log(f"{self.name}/{name}", value, prog_bar=name in bar, on_step=True, on_epoch=False)

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        """Greedy explanations of held-out activations, scored by the reconstructor; returns rows for a table."""
        completions = self.sample(batch.activation, SamplingParams.greedy(self.max_new_tokens))
        texts = [text or "" for text in completions.explanation]
        with gathered(self.nla.reconstructor, self.gather):
            reconstruct = self.nla.reconstructor.reconstruct
            prediction = torch.cat(self.scoring_parts.run(self, lambda part: reconstruct(texts[part]), len(texts)))
        well_formed = completions.well_formed
        rows = 0 if batch.padding else len(batch)
        self.fve.update(prediction[:rows], batch.activation[:rows], well_formed[:rows])
        cosines = torch.where(well_formed, cosine(prediction, batch.activation), 0.0)
        self.log_validation(
            {
                "cosine": cosines.mean(),
                "well_formed": well_formed.float().mean(),
                "explanation_tokens": completions.mask.sum(1).float().mean(),
            },
            rows,
        )
        tokens = completions.mask.sum(1)
        return {
            "text": batch.text, "explanation": completions.explanation, "cosine": cosines, "explanation_tokens": tokens,
        }  # fmt: skip

    def log_validation(self, metrics: dict[str, Float[Tensor, ""]], weight: int) -> None:
        """Log means over all batches of all ranks, where this batch has a weight of `weight` rows or tokens."""
        for name, value in metrics.items():
            share = torch.tensor([float(value) * weight, weight], dtype=torch.float64)  # on the CPU: MPS has no float64
            self._validated[name] = self._validated.get(name, torch.zeros_like(share)) + share

    def on_validation_epoch_end(self) -> None:
        if self._validated:  # each rank has run the same number of batches, padding ones included
            sums = torch.stack(list(self._validated.values())).float().to(self.device)
            shares = self.trainer.strategy.reduce(sums, reduce_op="sum")
            for name, (total, weight) in zip(self._validated, shares, strict=True):
                self.log(f"{self.name}/validation/{name}", total / weight.clamp_min(1))
            self._validated.clear()
        if self.fve.update_called:
            for name, value in self.fve.compute().items():
                self.log(f"{self.name}/validation/{name}", value, prog_bar=name == "fve")
            self.fve.reset()

    def explanations_of(self, batch: ActivationBatch) -> list[str]:
        """The batch's warm-start texts. Raises TrainingError if it has none."""
        if batch.explanation is None:
            raise TrainingError(
                f"stage {self.name} learns from given explanations, but the data have none: "
                "set data.explanation_column, or leave the warm start out with stages=[joint]"
            )
        return batch.explanation
