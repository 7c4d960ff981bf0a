"""Fraction of variance explained as a torchmetrics metric: streamed, reduced over ranks, float64."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from nla.objectives import normalize


class FractionOfVarianceExplained(Metric):
    """FVE (method, section 2): ``1 - sum error_i / sum mean_d (g_i - mu)^2``, ``g = normalize(h, sqrt d)``.

    ``mu`` is the plain mean of the ``g`` that were seen. Malformed explanations count with the error 2 of an orthogonal
    vector. ``compute`` gives ``fve`` and, under its own name, the inflated ``fve_normalized_mean``.
    """

    full_state_update = False
    error: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(d_model, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        prediction: Float[Tensor, "sample d_model"],
        activation: Float[Tensor, "sample d_model"],
        well_formed: Bool[Tensor, " sample"] | None = None,
    ) -> None:
        scale = math.sqrt(self.d_model)
        truth = normalize(activation.double(), scale)
        error = (normalize(prediction.double(), scale) - truth).square().mean(-1)
        if well_formed is not None:
            error = torch.where(well_formed, error, 2.0)
        self.error += error.sum()
        self.count += len(truth)
        self.total += truth.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``sum |g - m|^2 / d = n (1 - 2 mu.m/d + |m|^2/d)`` for any m, since every ``|g|^2 = d``."""
        mean = self.total / self.count
        plain = self.count * (1 - mean.square().mean())
        normalized = 2 * self.count * (1 - mean.norm() / math.sqrt(self.d_model))
        return {"fve": 1 - self.error / plain, "fve_normalized_mean": 1 - self.error / normalized}
