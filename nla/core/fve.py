"""Fraction of variance explained as a torchmetrics metric: streamed, reduced over ranks, as exact as float64.

Apple's GPUs have no float64, and NCCL reduces nothing that lies on the CPU. So sums are taken on the CPU in float64 and
kept on the device as pairs of float32, a number and what its rounding left, which together hold 48 bits.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from nla.core.objectives import normalize


class FractionOfVarianceExplained(Metric):
    """FVE (method, section 2): ``1 - sum error_i / sum mean_d (g_i - mu)^2``, ``g = normalize(h, sqrt d)``.

    ``mu`` is the plain mean of the ``g`` that were seen. Malformed explanations count with the error 2 of an orthogonal
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
        scale = math.sqrt(self.d_model)
        truth = normalize(activation.cpu().double(), scale)
        error = (normalize(prediction.cpu().double(), scale) - truth).square().mean(-1)
        if well_formed is not None:
            error = torch.where(well_formed.cpu(), error, 2.0)
        count = torch.tensor(float(len(truth)), dtype=torch.float64)
        for name, more in (("error", error.sum()), ("count", count), ("total", truth.sum(0))):
            state = getattr(self, name)
            setattr(self, name, _pair(_whole(state) + more).to(state.device))

    def compute(self) -> dict[str, Tensor]:
        """``sum |g - m|^2 / d = n (1 - 2 mu.m/d + |m|^2/d)`` for any m, since every ``|g|^2 = d``."""
        error, count, total = _whole(self.error), _whole(self.count), _whole(self.total)
        mean = total / count
        plain = count * (1 - mean.square().mean())
        normalized = 2 * count * (1 - mean.norm() / math.sqrt(self.d_model))
        found = {"fve": 1 - error / plain, "fve_normalized_mean": 1 - error / normalized}
        return {name: value.float().to(self.error.device) for name, value in found.items()}


def _pair(value: Float[Tensor, "*shape"]) -> Float[Tensor, "2 *shape"]:
    """A float64 as two float32."""
    rounded = value.float()
    return torch.stack([rounded, (value - rounded.double()).float()])


def _whole(pair: Float[Tensor, "2 *shape"]) -> Float[Tensor, "*shape"]:
    return pair.cpu().double().sum(0)


def _merged(pairs: Float[Tensor, "rank 2 *shape"]) -> Float[Tensor, "2 *shape"]:
    """The sum over ranks."""
    return _pair(pairs.cpu().double().sum((0, 1))).to(pairs.device)
