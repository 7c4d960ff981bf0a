"""The method's maths as pure functions on tensors. fp32 throughout; FVE in fp64.

Source: Fraser-Taliente, Kantamneni, Ong et al., "Natural Language Autoencoders", Transformer Circuits, 2026, and the
code released with it. Policy-gradient names: PPO (Schulman 2017), GRPO (Shao 2024), Dr. GRPO (Liu 2025),
RLOO (Ahmadian 2024); KL estimators k1, k2, k3: Schulman, "Approximating KL divergence", 2020.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nla.errors import ConfigError

Scale = float | None
RewardKind = Literal["neg_error", "neg_log_error"]
AdvantageKind = Literal["standardized", "centered", "leave_one_out"]
LengthKind = Literal["sample_mean", "token_mean"]
KLKind = Literal["k3", "k2"]
ErrorKind = Literal["plain", "whitened"]

LOG_FLOOR = 1e-8  # smallest error that enters a logarithm


def resolve_scale(scale: str | float | int | None, d_model: int) -> Scale:
    """`sqrt_d_model` -> sqrt(d), a number -> itself, None -> None (raw vectors). Anything else: ConfigError."""
    if scale is None:
        return None
    if scale == "sqrt_d_model":
        return math.sqrt(d_model)
    if isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale) and scale > 0:
        return float(scale)
    raise ConfigError(f"scale {scale!r}: expected a positive number, null (raw vectors) or 'sqrt_d_model'")


def normalize(
    vector: Float[Tensor, "*rows d_model"], scale: Scale, eps: float = 1e-12
) -> Float[Tensor, "*rows d_model"]:
    """`scale * v / sqrt(|v|^2 + eps)`, computed in at least fp32; `scale=None` gives the vector itself.

    eps is inside the root: a clamp outside it gives NaN gradients at tiny norms.
    """
    vector = vector if vector.dtype == torch.float64 else vector.float()
    if scale is None:
        return vector
    return vector * (scale * torch.rsqrt(vector.square().sum(-1, keepdim=True) + eps))


def reconstruction_error(
    prediction: Float[Tensor, "sample d_model"],
    activation: Float[Tensor, "sample d_model"],
    scale: Scale,
    weight: Float[Tensor, " d_model"] | None = None,
) -> Float[Tensor, " sample"]:
    """`mean_d (normalize(prediction) - normalize(activation))^2`; at scale sqrt(d) this is `2 (1 - cos)`, in [0, 4].

    `weight` (of mean 1 under the variance, see `whitening`) multiplies each dimension's square.
    """
    squares = (normalize(prediction, scale) - normalize(activation, scale)).square()
    return (squares if weight is None else squares * weight).mean(-1)


def orthogonal_error(
    activation: Float[Tensor, "sample d_model"], scale: Scale, weight: Float[Tensor, " d_model"] | None = None
) -> Float[Tensor, " sample"]:
    """The error of an orthogonal prediction of equal norm: `2 s^2 / d`, or `2 mean_d h^2` for raw vectors.

    With a weight: of an orthogonal prediction that is spread evenly over the dimensions.
    """
    squares = normalize(activation, scale).square()
    if weight is None:
        return 2 * squares.mean(-1)
    return ((squares + squares.mean(-1, keepdim=True)) * weight).mean(-1)


def whitening(activation: Float[Tensor, "sample d_model"], scale: Scale) -> Float[Tensor, " d_model"]:
    """Weights that give each dimension of the error the same share: mean variance over its own variance.

    Predicting the mean then has the same error as without weights, so errors stay comparable. A dimension of almost no
    variance counts as one of a thousandth of the mean.
    """
    variance = normalize(activation, scale).double().var(0, correction=0)
    return (variance.mean() / variance.clamp_min(variance.mean() / 1000)).float()


def cosine(
    prediction: Float[Tensor, "sample d_model"], activation: Float[Tensor, "sample d_model"]
) -> Float[Tensor, " sample"]:
    """Cosine of prediction and activation."""
    return (normalize(prediction, 1.0) * normalize(activation, 1.0)).sum(-1)


def reward(
    error: Float[Tensor, " sample"],
    well_formed: Bool[Tensor, " sample"],
    orthogonal: Float[Tensor, " sample"],
    kind: RewardKind = "neg_error",
) -> Float[Tensor, " sample"]:
    """`-error` or `-log error`; a malformed or cut-off explanation earns what an orthogonal prediction would.

    Without gradient. Leaving malformed samples out instead has collapsed policies within 25 steps.
    """
    counted = torch.where(well_formed, error, orthogonal).detach().float()
    if kind == "neg_error":
        return -counted
    if kind == "neg_log_error":
        return -counted.clamp_min(LOG_FLOOR).log()
    raise ConfigError(f"reward kind {kind!r}: expected 'neg_error' or 'neg_log_error'")


def group_advantages(
    reward: Float[Tensor, " sample"], group: int, kind: AdvantageKind = "standardized", eps: float = 1e-4
) -> Float[Tensor, " sample"]:
    """Rewards relative to their own group (contiguous samples of one activation).

    standardized `(r - mean) / (std + eps)` with the n-1 standard deviation (GRPO); centered `r - mean` (Dr. GRPO);
    leave_one_out `r - mean of the others` (RLOO). A group of equal rewards gives 0. A non-finite reward gets 0 and is
    left out of its group's statistics.
    """
    if group < 1 or len(reward) % group:
        raise ConfigError(f"group {group} does not divide the {len(reward)} samples of the rollout")
    rows = reward.detach().float().view(-1, group)
    finite = rows.isfinite()
    rows = torch.where(finite, rows, 0.0)
    count = finite.sum(1, keepdim=True)
    centered = torch.where(finite, rows - rows.sum(1, keepdim=True) / count.clamp_min(1), 0.0)
    spread = centered.amax(1, keepdim=True) - centered.amin(1, keepdim=True)
    if kind == "standardized":
        std = (centered.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        advantage = centered / (std + eps)
    elif kind == "centered":
        advantage = centered
    elif kind == "leave_one_out":
        advantage = centered * count / (count - 1).clamp_min(1)
    else:
        raise ConfigError(f"advantage kind {kind!r}: expected 'standardized', 'centered' or 'leave_one_out'")
    rounding = 1e-6 * rows.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return torch.where(spread > rounding, advantage, 0.0).reshape(-1)


def aggregate(
    values: Float[Tensor, "sample time"],
    mask: Bool[Tensor, "sample time"],
    length: LengthKind,
    denominator: Float[Tensor, ""] | Int[Tensor, ""] | float | int,
) -> Float[Tensor, ""]:
    """Sum per-token values into one number: this micro-batch's share of the global batch's mean.

    sample_mean: mean over a sample's tokens, then `/ denominator` = samples of the global batch;
    token_mean: sum `/ denominator` = tokens of the global batch.
    """
    values = torch.where(mask, values, 0.0)
    if length == "sample_mean":
        total = (values.sum(1) / mask.sum(1).clamp_min(1)).sum()
    elif length == "token_mean":
        total = values.sum()
    else:
        raise ConfigError(f"length {length!r}: expected 'sample_mean' or 'token_mean'")
    return total / denominator


def policy_gradient_loss(
    log_probs: Float[Tensor, "sample time"],
    advantage: Float[Tensor, " sample"],
    mask: Bool[Tensor, "sample time"],
    length: LengthKind = "sample_mean",
    denominator: Float[Tensor, ""] | Int[Tensor, ""] | float | int = 1.0,
) -> Float[Tensor, ""]:
    """On-policy surrogate `-r A`; the ratio `r = exp(log pi - log pi_old)` is 1 on the policy's own samples.

    Its gradient is REINFORCE with the group's baseline. There is no clipping, because a rollout serves one update of
    the policy. `mask` must end with the stop token: later tokens are never trained on.
    """
    log_probs = torch.where(mask, log_probs, 0.0)
    ratio = (log_probs - log_probs.detach()).exp()
    return aggregate(-(ratio * advantage.unsqueeze(1)), mask, length, denominator)


def kl_to_reference(
    log_probs: Float[Tensor, "sample time"],
    reference: Float[Tensor, "sample time"],
    mask: Bool[Tensor, "sample time"],
    kind: KLKind = "k3",
    clamp: float = 12.0,
    length: LengthKind = "sample_mean",
    denominator: Float[Tensor, ""] | Int[Tensor, ""] | float | int = 1.0,
) -> Float[Tensor, ""]:
    """KL to the reference with `D = clamp(log pi_ref - log pi)`: k3 `exp(D) - D - 1`, k2 `D^2 / 2`.

    On samples of pi both values estimate KL(pi || pi_ref). As a loss, k3's gradient is that of KL(pi_ref || pi), k2's
    that of KL(pi || pi_ref). Unclamped, D explodes at temperature 1; clamped at 5 runs have collapsed.
    For k1 inside the reward see `sequence_kl`.
    """
    difference = torch.where(mask, reference - log_probs, 0.0).clamp(-clamp, clamp)
    if kind == "k3":
        values = difference.exp() - difference - 1
    elif kind == "k2":
        values = difference.square() / 2
    else:
        raise ConfigError(f"KL kind {kind!r}: expected 'k3' or 'k2'")
    return aggregate(values, mask, length, denominator)


def sequence_kl(
    log_probs: Float[Tensor, "sample time"], reference: Float[Tensor, "sample time"], mask: Bool[Tensor, "sample time"]
) -> Float[Tensor, " sample"]:
    """k1 per sample, `sum_t log pi - log pi_ref`, without gradient, to be subtracted from the reward."""
    return torch.where(mask, log_probs - reference, 0.0).sum(1).detach()
