"""Fraction of variance explained (method, section 2) from three sums: functions, and a torchmetrics metric on top.

Error, count and total (of the normalized activations) are float64 sums over a set, or one row of sums per resample.
The metric is streamed and reduced over ranks. Apple's GPUs have no float64 and NCCL does not reduce CPU tensors, so it
sums on the CPU in float64 and keeps pairs of float32 on the device: a value and its rounding error, 48 bits in all.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from nla.core.objectives import normalize


def normalized_activations(activation: Float[Tensor, "sample d_model"]) -> Float[Tensor, "sample d_model"]:
    """``g = normalize(h, sqrt d)`` in float64 on the CPU."""
    return normalize(activation.cpu().double(), math.sqrt(activation.shape[-1]))


def mean_length(count: Float[Tensor, "*set"], total: Float[Tensor, "*set d_model"]) -> Float[Tensor, "*set"]:
    """``|mu| / sqrt d`` in [0, 1], with ``mu = total / count`` the plain mean of the ``g``."""
    return (total / count.unsqueeze(-1)).norm(dim=-1) / math.sqrt(total.shape[-1])


def explained(
    error: Float[Tensor, "*set"], count: Float[Tensor, "*set"], length: Float[Tensor, "*set"]
) -> Float[Tensor, "*set"]:
    """FVE. Since every ``|g|^2 = d``, ``sum_i mean_d (g_i - mu)^2 = count (1 - length^2)``."""
    return 1 - error / (count * (1 - length.square()))


def explained_beyond_normalized_mean(
    error: Float[Tensor, "*set"], count: Float[Tensor, "*set"], length: Float[Tensor, "*set"]
) -> Float[Tensor, "*set"]:
    """The other definition, with variance about normalize(mu), ``2 count (1 - length)``: higher; never quote as FVE."""
    return 1 - error / (2 * count * (1 - length))


class FractionOfVarianceExplained(Metric):
    """FVE: ``1 - sum error_i / sum mean_d (g_i - mu)^2``, ``g = normalize(h, sqrt d)``.

    ``mu`` is the plain mean of the ``g`` seen so far. Malformed explanations count with the error 2 of an orthogonal
    vector. ``compute`` gives ``fve`` and, under its own name, the inflated ``fve_normalized_mean``, in float32.
    """

    full_state_update = False
    error: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        for name, shape in (("error", (2,)), ("count", (2,)), ("total", (2, d_model))):
            self.add_state(name, torch.zeros(shape), dist_reduce_fx=_merged)

    def update(
        self,
        prediction: Float[Tensor, "sample d_model"],
        activation: Float[Tensor, "sample d_model"],
        well_formed: Bool[Tensor, " sample"] | None = None,
    ) -> None:
        truth = normalized_activations(activation)
        error = (normalized_activations(prediction) - truth).square().mean(-1)
        if well_formed is not None:
            error = torch.where(well_formed.cpu(), error, 2.0)
        count = torch.tensor(float(len(truth)), dtype=torch.float64)
        for name, increment in (("error", error.sum()), ("count", count), ("total", truth.sum(0))):
            state = getattr(self, name)
            setattr(self, name, _pair(_whole(state) + increment).to(state.device))

    def compute(self) -> dict[str, Tensor]:
        error, count = _whole(self.error), _whole(self.count)
        length = mean_length(count, _whole(self.total))
        values = {
            "fve": explained(error, count, length),
            "fve_normalized_mean": explained_beyond_normalized_mean(error, count, length),
        }
        return {name: value.float().to(self.error.device) for name, value in values.items()}


def _pair(value: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
    """A float64 as two float32."""
    rounded = value.float()
    return torch.stack([rounded, (value - rounded.double()).float()])


def _whole(pair: Float[Tensor, "2 *shape"]) -> Float[Tensor, "*shape"]:
    return pair.cpu().double().sum(0)


def _merged(pairs: Float[Tensor, "rank 2 *shape"]) -> Float[Tensor, "2 *shape"]:
    """The sum over ranks."""
    return _pair(pairs.cpu().double().sum((0, 1))).to(pairs.device)
