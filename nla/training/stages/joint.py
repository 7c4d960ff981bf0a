"""Joint training: sample explanations, score their reconstructions, policy gradient for one half, MSE for the other.

L(phi, theta) = E_h E_{z ~ p_phi(.|h)} |h - h_theta(z)|^2. The explanation is discrete and the reward detached, so the
two halves share no gradient: one sum, one backward pass, one optimizer step are exact. A step is: collect a rollout;
then, for each micro-batch, three terms (policy gradient, KL, MSE) and backward; update. A group never spans two
micro-batches or ranks, so advantages are final within each.

Logged per step: ``loss``, ``reward`` (penalties included), ``error`` (well-formed explanations) and ``fve_batch`` (this
batch's own variance), both of what the reconstructor read, ``kl`` (nats per token), ``surprisal`` (nats per token,
estimates the policy's entropy), ``explanation_tokens``, ``well_formed``, ``at_cap`` (share of samples as long as the
cap), ``repetition`` (share of runs of four tokens that repeat an earlier one of the same sample), ``equal_groups``
(share of groups without a signal), ``sampling_gap`` (mean |log-prob as sampled - teacher forced|), gradient norms,
skipped steps, and the seconds spent sampling, scoring (the reconstructor's forward pass, which serves its own loss too)
and updating.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from nla.core.fve import FractionOfVarianceExplained
from nla.core.objectives import (
    ErrorKind,
    LengthKind,
    group_advantages,
    kl_to_reference,
    orthogonal_error,
    policy_gradient_loss,
    reconstruction_error,
    sequence_kl,
)
from nla.core.records import ActivationBatch, Rollout, well_formed
from nla.errors import ConfigError
from nla.models.parameters import trainable
from nla.models.reconstructor import Reconstructor, frozen_copy
from nla.models.reference import Reference
from nla.models.sampling import SamplingParams
from nla.training.gate import Discrimination, Errors
from nla.training.out_of_memory import in_micro_batches
from nla.training.parallel import gathered, whole
from nla.training.rewards import KLToReference, Reward
from nla.training.reworded import check_share, reworded
from nla.training.stages.base import Stage
from nla.training.stages.texts import text_metrics

log = logging.getLogger(__name__)

Counts = dict[str, Float[Tensor, ""]]  # samples, tokens and well-formed samples of the global batch, per rank


@dataclass(frozen=True, slots=True)
class Terms:
    """The three terms of a micro-batch's loss, weighted, and its share of the metrics."""

    policy_gradient: Float[Tensor, ""]
    mse: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    reward: Float[Tensor, " sample"]
    metrics: dict[str, Tensor]

    @property
    def loss(self) -> Float[Tensor, ""]:
        return self.policy_gradient + self.mse + self.kl


class JointStage(Stage):
    """The custom training step of the NLA.

    Args:
        sampling: how explanations are sampled. reward: what they earn. kl: the pull to the reference, which is the
            verbalizer of the warm start.
        length: what a loss is averaged over: a sample's tokens and then samples (as released), or all tokens.
        reconstructor_updates: optimizer steps of the reconstructor per step, all on the same explanations; the
            verbalizer takes one.
        frozen_reconstructor: validation also scores the explanations with the reconstructor of the start, which has
            learnt nothing from them (``validation/fve_frozen``). Costs a copy of it.
        gate_rows: validation rows on which the reconstructor of the start must tell an explanation from another row's
            and from an empty text, or else the stage stops before its first step (`nla.training.gate`); 0: no gate.
        reworded: share of the activations whose samples the reconstructor reads in other words (`nla.data.rewording`).
        error: trained on and rewarded: `plain`, or `whitened`, each dimension's square over its own variance.
    """

    name = "joint"
    trains = ("verbalizer", "reconstructor")

    def __init__(
        self,
        *args: Any,
        sampling: SamplingParams,
        reward: Reward,
        kl: KLToReference,
        length: LengthKind,
        reconstructor_updates: int,
        frozen_reconstructor: bool,
        gate_rows: int,
        reworded: float,
        error: ErrorKind,
        **kwargs: Any,
    ) -> None:
        if reconstructor_updates < 1:
            raise ConfigError(f"stage.joint.reconstructor_updates={reconstructor_updates}: must be at least 1")
        if gate_rows < 0:
            raise ConfigError(f"stage.joint.gate_rows={gate_rows}: must be 0 (no gate) or more")
        super().__init__(*args, max_new_tokens=sampling.max_new_tokens, **kwargs)
        self.gate_rows, self.error_kind = gate_rows, error
        self.reworded = check_share(self.name, reworded)
        self.sampling, self.reward, self.kl = sampling, reward, kl
        self.length: LengthKind = length
        self.reconstructor_updates = reconstructor_updates
        self.fve_batch = FractionOfVarianceExplained(self.nla.d_model)
        self.reference = Reference(self.nla.verbalizer) if kl.needs_reference else None
        # in a tuple, so that neither state_dict nor parameters() sees it
        self._frozen = (frozen_copy(self.nla.reconstructor),) if frozen_reconstructor else ()
        self.fve_frozen = FractionOfVarianceExplained(self.nla.d_model)

    @property
    def frozen_readers(self) -> tuple[Reconstructor, ...]:
        return self._frozen

    def on_train_start(self) -> None:
        """Weights of the error; and the gate, once: a run that continues from a checkpoint has passed it."""
        self.measure_error()
        if self.gate_rows == 0 or self.trainer.global_step > 0:
            return
        with self.trainer.precision_plugin.forward_context():
            errors = [self._gate_errors(batch) for batch in self.held_out_rows(self.gate_rows)]
        figures = Discrimination.of(errors, self.sum_over_ranks)
        log.info("gate: %s", figures)
        figures.check()

    @torch.no_grad()
    def _gate_errors(self, batch: ActivationBatch) -> Errors:
        completions = self.sample(batch.activation, SamplingParams.greedy(self.max_new_tokens))
        texts = [text or "" for text in completions.explanation]
        with gathered(self.nla.reconstructor, self.gather):
            reconstruct = self.nla.reconstructor.reconstruct
            own = torch.cat(self.scoring_parts.run(self, lambda part: reconstruct(texts[part]), len(texts)))
            empty = reconstruct([""]).expand_as(own)
        rows = 0 if batch.padding else len(batch)
        predictions = {"own": own, "another row's": own.roll(max(1, len(own) // 2), dims=0), "empty": empty}
        return {
            name: reconstruction_error(prediction, batch.activation, self.nla.mse_scale)[:rows].cpu()
            for name, prediction in predictions.items()
        }

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns reward and length of each sample, for callbacks."""
        started = time.perf_counter()
        self.zero_grad()  # otherwise the gradients of the step before take memory while sampling
        rollout = self.collect(batch)
        sampled = time.perf_counter()
        counts = self._global_counts(rollout)
        (metrics, reward), self.micro_batch_size = in_micro_batches(
            self, lambda size: self._backward(rollout, counts, size), self.micro_batch_size, rollout.group
        )
        update = self.update(batch, metrics["loss"])
        for _ in range(self.reconstructor_updates - 1):
            self._update_reconstructor(batch, rollout, counts)
        metrics["fve_batch"] = self.fve_batch.compute()["fve"]
        texts = text_metrics(rollout.completions, self.sampling.max_new_tokens)
        scoring = float(metrics["seconds_scoring"])
        seconds = {"seconds_sampling": sampled - started, "seconds_update": time.perf_counter() - sampled - scoring}
        shown = ["fve_batch", "reward", "kl", "explanation_tokens", "well_formed"]
        self.log_step({**metrics, **texts, **update, **seconds}, shown)
        return {"reward": reward, "explanation_tokens": rollout.completions.mask.sum(1)}

    def collect(self, batch: ActivationBatch) -> Rollout:
        """Samples of the policy for each activation, and what the reconstructor reads of them."""
        group = self.sampling.group_size
        seed, first_row = hash((self.seed, self.global_step)) % 2**31, self.global_rank * len(batch) * group
        completions = self.sample(batch.activation, self.sampling, seed, first_row)
        key, first = self.seed + self.global_step, self.global_rank * len(batch)
        reading = self.reward.reading(completions, group, self.nla.reconstructor.tokenizer, key, first)
        if self.reworded:
            texts = [text or "" for text in completions.explanation] if reading is None else reading
            keys = [f"{key}/{first + sample // group}" for sample in range(len(texts))]
            reading = reworded(texts, keys, self.reworded, self.source)
        return Rollout(batch.activation, group, completions, reading)

    def with_reference(self, rollout: Rollout, size: int) -> Rollout:
        """The rollout with the reference's log-probs, where the KL counts.

        They are computed before the policy's graph takes memory, in the micro-batches of `size` samples that the policy
        runs in: equal weights then give equal numbers, and the KL before the first update is exactly 0.
        """
        if self.reference is None or self.kl_coefficient == 0:
            return rollout
        with self.reference.active() as reference:
            references = [
                reference(micro_batch.activation, micro_batch.completions.tokens, micro_batch.completions.mask)
                for micro_batch in rollout.split(size)
            ]
        return dataclasses.replace(rollout, reference=torch.cat(references))

    @property
    def kl_coefficient(self) -> float:
        """The KL's coefficient at this step."""
        return self.kl.at(self.global_step / self.steps)

    def _backward(self, rollout: Rollout, counts: Counts, size: int) -> tuple[dict[str, Tensor], Tensor]:
        """For each micro-batch its three terms, then backward. Returns the rollout's metrics and rewards."""
        self.fve_batch.reset()
        seen, rewards = [], []
        for micro_batch in self.with_reference(rollout, size).split(size):
            terms = self.terms(micro_batch, counts)
            self.manual_backward(terms.loss)
            seen.append({**terms.metrics, "loss": terms.loss.detach()})
            rewards.append(terms.reward)
        return {name: torch.stack([metrics[name] for metrics in seen]).sum(0) for name in seen[0]}, torch.cat(rewards)

    def _global_counts(self, rollout: Rollout) -> Counts:
        """Samples, tokens and well-formed samples per rank, averaged over ranks, because gradients are averaged too."""
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

    def terms(self, rollout: Rollout, counts: Counts) -> Terms:
        """Policy gradient, KL and MSE of one micro-batch of whole groups, each as its share of the global mean.

        One forward pass of the reconstructor serves both the reward and the MSE, so reward and advantage are computed
        here and not in `collect`. A scoring pass of its own, without gradients, would take another 5.9 % of the step
        (world's pair, 16 x 8 samples, one core; `benchmarks/joint_step.py --pair runs/world/nla`, 2026-11-27).
        """
        completions, mask = rollout.completions, rollout.completions.mask
        started = time.perf_counter()
        prediction, error = self._reconstruct(rollout)
        scoring = torch.tensor(time.perf_counter() - started)
        log_probs = self.nla.verbalizer(rollout.activation, completions.tokens, mask)
        earned = self._rewards(rollout, error, log_probs)
        advantage = group_advantages(earned, rollout.group, self.reward.advantage)

        over = counts["samples"] if self.length == "sample_mean" else counts["tokens"]
        policy_gradient = policy_gradient_loss(log_probs, advantage, mask, self.length, over)
        mse = torch.where(completions.well_formed, error, 0.0).sum() / counts["well_formed"]
        kl = torch.zeros_like(mse)
        if rollout.reference is not None and self.kl.kind != "reward":
            estimate = kl_to_reference(
                log_probs, rollout.reference, mask, self.kl.kind, self.kl.clamp, self.length, over
            )
            kl = self.kl_coefficient * estimate
        metrics = self._metrics(rollout, counts, prediction, log_probs, earned, advantage)
        metrics |= {"error": mse.detach(), "seconds_scoring": scoring}
        return Terms(policy_gradient, mse, kl, earned.detach(), metrics)

    def _rewards(
        self, rollout: Rollout, error: Float[Tensor, " sample"], log_probs: Float[Tensor, "sample time"]
    ) -> Float[Tensor, " sample"]:
        """What each sample earns; with `kl.kind=reward` less its k1 estimate of the KL."""
        completions, scale = rollout.completions, self.nla.mse_scale
        activation = rollout.activation.repeat_interleave(rollout.group, dim=0)
        orthogonal = orthogonal_error(activation, scale, self.error_weight)
        earned = self.reward(error, orthogonal, completions, self.sampling.max_new_tokens)
        if self.kl.kind == "reward" and rollout.reference is not None:
            earned = earned - self.kl_coefficient * sequence_kl(log_probs, rollout.reference, completions.mask)
        return earned

    def _reconstruct(self, rollout: Rollout) -> tuple[Float[Tensor, "sample d_model"], Float[Tensor, " sample"]]:
        """Predictions and their errors. Malformed samples run through, so that every rank runs the same modules."""
        prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(rollout.texts))
        activation = rollout.activation.repeat_interleave(rollout.group, dim=0)
        return prediction, self.reconstruction_error(prediction, activation)

    def _update_reconstructor(self, batch: ActivationBatch, rollout: Rollout, counts: Counts) -> None:
        """One more step of the reconstructor alone on the same explanations; skipped where a gradient is not finite."""

        def backward(size: int) -> None:
            for micro_batch in rollout.split(size):
                error = torch.where(micro_batch.completions.well_formed, self._reconstruct(micro_batch)[1], 0.0)
                self.manual_backward(error.sum() / counts["well_formed"])

        # gradients are cleared first, and the optimizer passes over weights without one: the verbalizer does not move
        in_micro_batches(self, backward, self.micro_batch_size, rollout.group)
        norm = whole(nn.utils.clip_grad_norm_(trainable(self.nla.reconstructor), self.clip_norm))
        if self.trainer.strategy.reduce_boolean_decision(bool(norm.isfinite()), all=True):
            self.optimizer.optimizer.step()  # past Lightning, which would count it as a step of training
            self.skipped_steps.took("reconstructor updates")
        else:
            self.optimizer.zero_grad()
            self.skip(batch, {"gradient_norm_reconstructor": float(norm)}, "reconstructor updates")

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Any]:
        rows = super().validation_step(batch, batch_idx)
        for frozen in self._frozen:
            with gathered(frozen, self.gather):
                prediction = frozen.to(self.device).reconstruct([text or "" for text in rows["explanation"]])
            formed = well_formed(rows["explanation"], self.device)
            counted = slice(0 if batch.padding else None)
            self.fve_frozen.update(prediction[counted], batch.activation[counted], formed[counted])
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):  # there the target's head may lie elsewhere
            self._log_readability([text for text in rows["explanation"] if text and not batch.padding])
        return rows

    def _log_readability(self, texts: list[str]) -> None:
        """``validation/nats_per_token``: of the greedy explanations under the frozen target. Do they stay language?"""
        found = self.target.surprisal(texts)
        nats, tokens = sum(nats for nats, _ in found), sum(count for _, count in found)
        self.log_validation({"nats_per_token": torch.tensor(nats / max(1, tokens))}, tokens)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.fve_frozen.update_called:
            self.log(f"{self.name}/validation/fve_frozen", self.fve_frozen.compute()["fve"].float())
            self.fve_frozen.reset()

    @torch.no_grad()
    def _metrics(
        self,
        rollout: Rollout,
        counts: Counts,
        prediction: Tensor,
        log_probs: Tensor,
        earned: Tensor,
        advantage: Tensor,
    ) -> dict[str, Tensor]:
        """Shares of this micro-batch, which add up to means over the batch."""
        completions, reference = rollout.completions, rollout.reference
        mask, tokens = completions.mask, counts["tokens"]
        share = len(completions) / counts["samples"]
        activation = rollout.activation.repeat_interleave(rollout.group, dim=0)
        self.fve_batch.update(prediction, activation, completions.well_formed)
        metrics = {
            "reward": earned.sum() / counts["samples"],
            "surprisal": -log_probs.sum() / tokens,
            "equal_groups": (advantage.view(-1, rollout.group) == 0).all(1).float().mean() * share,
        }
        if reference is not None:
            metrics["kl"] = kl_to_reference(log_probs, reference, mask, "k3", self.kl.clamp, "token_mean", tokens)
        if completions.log_probs is not None:
            gap = torch.where(mask, log_probs - completions.log_probs, 0.0).abs()
            metrics["sampling_gap"] = gap.sum() / tokens
        return metrics
