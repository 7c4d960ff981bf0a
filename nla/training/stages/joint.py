"""Joint training: sample explanations, score their reconstructions, policy gradient for one half, MSE for the other.

L(phi, theta) = E_h E_{z ~ p_phi(.|h)} |h - h_theta(z)|^2. The explanation is discrete and the reward detached, so the
two halves share no gradient: one sum, one backward pass, one optimizer step are exact. A group never spans two
micro-batches or ranks, so advantages are final within each.

Logged per step: ``loss``, ``reward`` (penalties included), ``error`` (well-formed explanations) and ``fve_batch`` (this
batch's own variance), both of what the reconstructor read, ``kl`` (nats per token), ``surprisal`` (nats per token,
estimates the policy's entropy), ``explanation_tokens``, ``well_formed``, ``at_cap`` (share of samples as long as the
cap), ``repetition`` (share of runs of four tokens that repeat an earlier one of the same sample), ``equal_groups``
(share of groups without a signal), ``sampling_gap`` (mean |log-prob as sampled - teacher forced|), gradient norms,
skipped steps, and the seconds spent sampling, scoring (the reconstructor's forward pass, which serves its own loss too)
and updating.
"""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import (
    LengthKind,
    group_advantages,
    kl_to_reference,
    orthogonal_error,
    policy_gradient_loss,
    reconstruction_error,
    sequence_kl,
)
from nla.core.records import ActivationBatch, Rollout
from nla.errors import ConfigError
from nla.models.parameters import trainable
from nla.models.reconstructor import Reconstructor, frozen_copy
from nla.models.reference import Reference
from nla.models.sampling import SamplingParams
from nla.training.out_of_memory import in_micro_batches
from nla.training.parallel import serving, whole
from nla.training.rewards import Divergence, Reward
from nla.training.stages.base import Stage
from nla.training.stages.texts import text_metrics


class JointStage(Stage):
    """The custom training step of the NLA.

    Args:
        sampling: how explanations are sampled. reward: what they earn. kl: the anchor to the warm start.
        length: what a loss is averaged over: a sample's tokens and then samples (as released), or all tokens.
        reconstructor_updates: optimizer steps of the reconstructor per step, all on the same explanations; the
            verbalizer takes one.
        frozen_reconstructor: whether validation also has the explanations read by the reconstructor as it is at the
            start, which has learnt nothing from them (``validation/fve_frozen``). Costs a copy of it.
    """

    name = "joint"
    trains = ("verbalizer", "reconstructor")

    def __init__(
        self,
        *args: Any,
        sampling: SamplingParams,
        reward: Reward,
        kl: Divergence,
        length: LengthKind,
        reconstructor_updates: int,
        frozen_reconstructor: bool,
        **kwargs: Any,
    ) -> None:
        if reconstructor_updates < 1:
            raise ConfigError(f"stage.joint.reconstructor_updates={reconstructor_updates}: must be at least 1")
        super().__init__(*args, max_new_tokens=sampling.max_new_tokens, **kwargs)
        self.sampling, self.reward, self.kl = sampling, reward, kl
        self.length: LengthKind = length
        self.reconstructor_updates = reconstructor_updates
        self.fve_batch = FractionOfVarianceExplained(self.nla.d_model)
        self.reference = Reference(self.nla.verbalizer) if kl.anchored else None
        # in a tuple, so that neither state_dict nor parameters() sees it
        self._frozen = (frozen_copy(self.nla.reconstructor),) if frozen_reconstructor else ()
        self.fve_frozen = FractionOfVarianceExplained(self.nla.d_model)

    @property
    def frozen_readers(self) -> tuple[Reconstructor, ...]:
        return self._frozen

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        self.zero_grad()  # else those of the step before take memory while sampling
        rollout = self._sample(batch)
        sampled = time.perf_counter()
        counts = self._global_counts(rollout)

        def backward(size: int) -> list[dict[str, Tensor]]:
            self.fve_batch.reset()
            parts = []
            for part in rollout.split(size):
                loss, metrics = self.losses(part, counts)
                self.manual_backward(loss)
                parts.append({**metrics, "loss": loss.detach()})
            return parts

        parts, self.micro_batch_size = in_micro_batches(self, backward, self.micro_batch_size, rollout.group)
        metrics = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
        update = self.update(batch, metrics["loss"])
        for _ in range(self.reconstructor_updates - 1):
            self._update_reconstructor(batch, rollout, counts)
        metrics["fve_batch"] = self.fve_batch.compute()["fve"]
        texts = text_metrics(rollout.completions, self.sampling.max_new_tokens)
        scoring = float(metrics["seconds_scoring"])
        seconds = {"seconds_sampling": sampled - started, "seconds_update": time.perf_counter() - sampled - scoring}
        shown = ["fve_batch", "reward", "kl", "explanation_tokens", "well_formed"]
        self.log_step({**metrics, **texts, **update, **seconds}, shown)

    def _sample(self, batch: ActivationBatch) -> Rollout:
        group = self.sampling.group_size
        seed, first_row = hash((self.seed, self.global_step)) % 2**31, self.global_rank * len(batch) * group
        completions = self.sample(batch.activation, self.sampling, seed, first_row)
        key, first = self.seed + self.global_step, self.global_rank * len(batch)
        read = self.reward.read(completions, group, self.nla.reconstructor.tokenizer, key, first)
        return Rollout(batch.activation, group, completions, read)

    def _global_counts(self, rollout: Rollout) -> dict[str, Float[Tensor, ""]]:
        """Samples, tokens and well-formed samples per rank, on average over ranks, since gradients are averaged."""
        completions = rollout.completions
        counts = torch.stack(
            [
                torch.tensor(float(len(completions)), device=self.device),
                completions.mask.sum().float(),
                completions.well_formed.sum().float(),
            ]
        )
        samples, tokens, well_formed = self.mean_over_ranks(counts).clamp_min(1 / self.trainer.world_size)
        return {"samples": samples, "tokens": tokens, "well_formed": well_formed}

    def losses(
        self, rollout: Rollout, counts: dict[str, Float[Tensor, ""]]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Policy gradient + beta KL + MSE of one micro-batch, each as its share of the global mean."""
        completions, group = rollout.completions, rollout.group
        well_formed, mask = completions.well_formed, completions.mask
        started = time.perf_counter()
        prediction, error = self._reconstruct(rollout)
        scoring = torch.tensor(time.perf_counter() - started)
        mse = torch.where(well_formed, error, 0.0).sum() / counts["well_formed"]

        log_probs = self.nla.verbalizer(rollout.activation, completions.tokens, mask)
        coefficient = self.kl.at(self.global_step / self.steps)
        reference = self._reference_log_probs(rollout, coefficient)
        activation = rollout.activation.repeat_interleave(group, dim=0)
        earned = self.reward(
            error, orthogonal_error(activation, self.nla.mse_scale), completions, self.sampling.max_new_tokens
        )
        if self.kl.kind == "reward" and reference is not None:
            earned = earned - coefficient * sequence_kl(log_probs, reference, mask)
        advantage = group_advantages(earned, group, self.reward.advantage)
        over = counts["samples"] if self.length == "sample_mean" else counts["tokens"]
        policy = policy_gradient_loss(log_probs, advantage, mask, self.length, over)
        loss = policy + mse
        if reference is not None and self.kl.kind != "reward":
            kl = kl_to_reference(log_probs, reference, mask, self.kl.kind, self.kl.clamp, self.length, over)
            loss = loss + coefficient * kl
        metrics = self._metrics(rollout, counts, prediction, log_probs, reference, earned, advantage, mse)
        return loss, metrics | {"seconds_scoring": scoring}

    def _reconstruct(self, rollout: Rollout) -> tuple[Float[Tensor, "sample d_model"], Float[Tensor, " sample"]]:
        """Predictions and their errors. Malformed samples run through, so that every rank runs the same modules."""
        prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(rollout.texts))
        activation = rollout.activation.repeat_interleave(rollout.group, dim=0)
        return prediction, reconstruction_error(prediction, activation, self.nla.mse_scale)

    def _update_reconstructor(
        self, batch: ActivationBatch, rollout: Rollout, counts: dict[str, Float[Tensor, ""]]
    ) -> None:
        """One more step of the reconstructor alone on the same explanations; skipped where a gradient is not finite."""

        def backward(size: int) -> None:
            for part in rollout.split(size):
                error = torch.where(part.completions.well_formed, self._reconstruct(part)[1], 0.0)
                self.manual_backward(error.sum() / counts["well_formed"])

        # gradients are cleared first, and a weight without one is passed over by the optimizer: the verbalizer stays
        in_micro_batches(self, backward, self.micro_batch_size, rollout.group)
        norm = whole(nn.utils.clip_grad_norm_(trainable(self.nla.reconstructor), self.clip_norm))
        if self.trainer.strategy.reduce_boolean_decision(bool(norm.isfinite()), all=True):
            self.optimizer.optimizer.step()  # past Lightning, which would count it as a step of training
            self.skipped_steps.took("reconstructor updates")
        else:
            self.optimizer.zero_grad()
            self.skip(batch, {"gradient_norm_reconstructor": float(norm)}, "reconstructor updates")

    def _reference_log_probs(self, rollout: Rollout, coefficient: float) -> Float[Tensor, "sample time"] | None:
        if coefficient == 0 or self.reference is None:
            return None
        with self.reference.active() as reference:
            return reference(rollout.activation, rollout.completions.tokens, rollout.completions.mask)

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        rows = super().validation_step(batch, batch_idx)
        for frozen in self._frozen:
            with serving(frozen, self.gather):
                prediction = frozen.to(self.device).reconstruct([text or "" for text in rows["explanation"]])
            formed = torch.tensor([text is not None for text in rows["explanation"]], device=self.device)
            counted = slice(0 if batch.padding else None)
            self.fve_frozen.update(prediction[counted], batch.activation[counted], formed[counted])
        return rows

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.fve_frozen.update_called:
            self.log(f"{self.name}/validation/fve_frozen", self.fve_frozen.compute()["fve"].float())
            self.fve_frozen.reset()

    @torch.no_grad()
    def _metrics(
        self,
        rollout: Rollout,
        counts: dict[str, Float[Tensor, ""]],
        prediction: Tensor,
        log_probs: Tensor,
        reference: Tensor | None,
        earned: Tensor,
        advantage: Tensor,
        mse: Tensor,
    ) -> dict[str, Tensor]:
        """Shares of this micro-batch, which add up to means over the batch."""
        completions = rollout.completions
        mask, tokens = completions.mask, counts["tokens"]
        share = len(completions) / counts["samples"]
        activation = rollout.activation.repeat_interleave(rollout.group, dim=0)
        self.fve_batch.update(prediction, activation, completions.well_formed)
        metrics = {
            "reward": earned.sum() / counts["samples"],
            "error": mse.detach(),
            "surprisal": -log_probs.sum() / tokens,
            "equal_groups": (advantage.view(-1, rollout.group) == 0).all(1).float().mean() * share,
        }
        if reference is not None:
            metrics["kl"] = kl_to_reference(log_probs, reference, mask, "k3", self.kl.clamp, "token_mean", tokens)
        if completions.log_probs is not None:
            gap = torch.where(mask, log_probs - completions.log_probs, 0.0).abs()
            metrics["sampling_gap"] = gap.sum() / tokens
        return metrics
