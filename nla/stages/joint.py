"""Joint training: sample explanations, score their reconstructions, policy gradient for one half, MSE for the other.

L(phi, theta) = E_h E_{z ~ p_phi(.|h)} |h - h_theta(z)|^2. The explanation is discrete and the reward detached, so the
two halves share no gradient: one sum, one backward pass, one optimizer step are exact. A group never spans two
micro-batches or ranks, so advantages are final within each.

Logged per step: ``loss``, ``reward``, ``error`` (well-formed explanations), ``fve_batch`` (this batch's own variance),
``kl`` (nats per token), ``surprisal`` (nats per token, estimates the policy's entropy), ``explanation_tokens``,
``well_formed``, ``at_cap`` (share of samples as long as the cap), ``repetition`` (share of runs of four tokens that
repeat an earlier one of the same sample), ``equal_groups`` (share of groups without a signal), ``sampling_gap`` (mean
|log-prob as sampled - teacher forced|), gradient norms, skipped steps, and the seconds spent sampling, scoring (the
reconstructor's forward pass, which serves its own loss too) and updating.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nla.objectives import (
    AdvantageKind,
    KLKind,
    LengthKind,
    RewardKind,
    fraction_of_variance_explained,
    group_advantages,
    kl_to_reference,
    orthogonal_error,
    policy_gradient_loss,
    reconstruction_error,
    reward,
    sequence_kl,
)
from nla.stages.backward import in_micro_batches
from nla.stages.base import Stage
from nla.stages.texts import text_metrics
from nla.types import ActivationBatch, Rollout


@dataclass(frozen=True, slots=True)
class Sampling:
    """How explanations are sampled for training. Anything but temperature 1 departs from the policy that is trained."""

    group_size: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    backend: str = "engine"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # the engine's; None: that of the weights
    compiled: bool = False  # the engine's decode step through torch.compile


@dataclass(frozen=True, slots=True)
class Reward:
    """What a reconstruction earns, and how it is compared within its group."""

    kind: RewardKind = "neg_error"
    advantage: AdvantageKind = "standardized"


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL to the warm-start verbalizer: in the loss (k3, k2), or as k1 in the reward. At coefficient 0 it is skipped."""

    coefficient: float
    kind: KLKind | Literal["reward"] = "k3"
    clamp: float = 12.0


class JointStage(Stage):
    """The custom training step of the NLA.

    Args:
        rollout: how explanations are sampled. reward: what they earn. kl: the anchor to the warm start.
        length: what a loss is averaged over: a sample's tokens and then samples (as released), or all tokens.
        groups: settings of the optimizer that one half has to itself: ``{"reconstructor": {"lr": 1e-3}}``.
    """

    name = "joint"
    trains = ("verbalizer", "reconstructor")

    def __init__(
        self,
        *args: Any,
        rollout: Sampling,
        reward: Reward,
        kl: Divergence,
        length: LengthKind = "sample_mean",
        groups: dict[str, dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, max_new_tokens=rollout.max_new_tokens, **kwargs)
        self.sampling, self.reward, self.kl = rollout, reward, kl
        self.groups = groups or {}
        self.length: LengthKind = length
        if kl.coefficient > 0:
            self.nla.verbalizer.freeze_reference()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{**group, **self.groups.get(group["name"], {})} for group in super().parameter_groups()]

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        rollout = self._sample(batch)
        sampled = time.perf_counter()
        counts = self._global_counts(rollout)

        def backward(size: int) -> list[dict[str, Tensor]]:
            parts = []
            for part in rollout.split(size):
                loss, metrics = self.losses(part, counts)
                self.manual_backward(loss)
                parts.append({**metrics, "loss": loss.detach()})
            return parts

        parts, self.micro_batch_size = in_micro_batches(self, backward, self.micro_batch_size, rollout.group)
        metrics = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
        update = self.update(batch, metrics["loss"])
        texts = text_metrics(rollout.completions, self.sampling.max_new_tokens)
        scoring = float(metrics["seconds_scoring"])
        seconds = {"seconds_sampling": sampled - started, "seconds_update": time.perf_counter() - sampled - scoring}
        shown = ["fve_batch", "reward", "kl", "explanation_tokens", "well_formed"]
        self.log_step({**metrics, **texts, **update, **seconds}, shown)

    def _sample(self, batch: ActivationBatch) -> Rollout:
        s, rows = self.sampling, len(batch) * self.sampling.group_size
        completions = self.nla.verbalizer.sample(
            batch.activation,
            s.group_size,
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            seed=hash((self.seed, self.global_step)) % 2**31,
            first_row=self.global_rank * rows,
            backend=s.backend,
            dtype=s.dtype,
            compiled=s.compiled,
        )
        return Rollout(batch.activation, s.group_size, completions)

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
        samples, tokens, well_formed = self.mean_over_ranks(counts).clamp_min(1)
        return {"samples": samples, "tokens": tokens, "well_formed": well_formed}

    def losses(
        self, rollout: Rollout, counts: dict[str, Float[Tensor, ""]]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Policy gradient + beta KL + MSE of one micro-batch, each as its share of the global mean."""
        completions, group = rollout.completions, rollout.group
        activation = rollout.activation.repeat_interleave(group, dim=0)
        well_formed, mask = completions.well_formed, completions.mask
        # malformed samples run through with weight 0, so that every rank runs the same modules
        texts = [text or "" for text in completions.explanation]
        started = time.perf_counter()
        prediction = self.nla.reconstructor(*self.nla.reconstructor.tokenize(texts))
        scoring = torch.tensor(time.perf_counter() - started)
        error = reconstruction_error(prediction, activation, self.nla.mse_scale)
        mse = torch.where(well_formed, error, 0.0).sum() / counts["well_formed"]

        log_probs = self.nla.verbalizer(rollout.activation, completions.tokens, mask)
        reference = self._reference_log_probs(rollout)
        earned = reward(error, well_formed, orthogonal_error(activation, self.nla.mse_scale), self.reward.kind)
        if self.kl.kind == "reward" and reference is not None:
            earned = earned - self.kl.coefficient * sequence_kl(log_probs, reference, mask)
        advantage = group_advantages(earned, group, self.reward.advantage)
        over = counts["samples"] if self.length == "sample_mean" else counts["tokens"]
        policy, _ = policy_gradient_loss(log_probs, advantage, mask, self.length, over)
        loss = policy + mse
        if reference is not None and self.kl.kind != "reward":
            kl = kl_to_reference(log_probs, reference, mask, self.kl.kind, self.kl.clamp, self.length, over)
            loss = loss + self.kl.coefficient * kl
        metrics = self._metrics(rollout, counts, prediction, log_probs, reference, earned, advantage, mse)
        return loss, metrics | {"seconds_scoring": scoring}

    def _reference_log_probs(self, rollout: Rollout) -> Float[Tensor, "sample time"] | None:
        if self.kl.coefficient == 0:
            return None
        with self.nla.verbalizer.reference() as reference:
            return reference(rollout.activation, rollout.completions.tokens, rollout.completions.mask)

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
        fve = fraction_of_variance_explained(
            prediction, rollout.activation.repeat_interleave(rollout.group, dim=0), completions.well_formed
        )
        metrics = {
            "reward": earned.sum() / counts["samples"],
            "error": mse.detach(),
            "fve_batch": torch.tensor(fve, device=self.device) * share,
            "surprisal": -log_probs.sum() / tokens,
            "equal_groups": (advantage.view(-1, rollout.group) == 0).all(1).float().mean() * share,
        }
        if reference is not None:
            metrics["kl"] = kl_to_reference(log_probs, reference, mask, "k3", self.kl.clamp, "token_mean", tokens)
        if completions.log_probs is not None:
            gap = torch.where(mask, log_probs - completions.log_probs, 0.0).abs()
            metrics["sampling_gap"] = gap.sum() / tokens
        return metrics
