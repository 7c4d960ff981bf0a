"""95% intervals: whole documents are resampled, because positions of one document are not independent.

Everything is a ratio of sums over rows, so each document is summed once and a resample is a row of integer weights:
a thousand resamples are one matrix product. float64 throughout. Intervals are percentiles of the resamples; since mu is
recomputed in each, a resampled FVE is lower by about the unexplained share divided by the number of documents: with
few documents the interval is shifted downward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from nla.core.fve import explained, explained_beyond_normalized_mean, mean_length, normalized_activations

Interval = list[float] | None  # None: one document only, or nothing to count


class Resamples:
    """`count` resamples of the documents that rows belong to, as weights [count, documents].

    Args:
        document: the document of each row.
        count: resamples; seed: of the draw.
    """

    def __init__(self, document: Sequence[str], count: int, seed: int) -> None:
        names = {name: index for index, name in enumerate(dict.fromkeys(document))}
        self.documents = len(names)
        self._index = torch.tensor([names[name] for name in document])
        draws = np.random.default_rng(seed).multinomial(
            self.documents, np.full(self.documents, 1 / self.documents), count
        )
        self._weights = torch.from_numpy(draws.astype(np.float64))

    def sums(
        self, values: Float[Tensor, "batch *rest"]
    ) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "resample *rest"]]:
        """Sums over all rows, and over the rows of each resample."""
        values = values.double()
        each = torch.zeros(self.documents, *values.shape[1:], dtype=torch.float64).index_add_(0, self._index, values)
        return each.sum(0), torch.einsum("rd,d...->r...", self._weights, each)

    def interval(self, resampled: Float[Tensor, " resample"]) -> Interval:
        """The middle 95% of a statistic's resamples; those in which it is undefined are left out."""
        finite = resampled[resampled.isfinite()]
        if self.documents < 2 or not len(finite):
            return None
        bounds = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=finite.dtype))
        return [float(bounds[0]), float(bounds[1])]

    def ratio(self, above: Shaped[Tensor, " batch"], below: Shaped[Tensor, " batch"]) -> dict[str, Any]:
        """`{value, ci95}` of a ratio of sums over rows; None where the sum below is 0."""
        total, resampled = self.sums(torch.stack([above.double(), below.double()], 1))
        value = float(total[0] / total[1]) if float(total[1]) else None
        return {"value": value, "ci95": self.interval(resampled[:, 0] / resampled[:, 1])}


class Variance:
    """FVE (`nla.core.fve`) of any errors on one set of activations, with mu recomputed in each resample."""

    def __init__(self, activation: Float[Tensor, "batch d_model"], resamples: Resamples) -> None:
        self.resamples = resamples
        self._truth = truth = normalized_activations(activation)
        self._count = resamples.sums(torch.ones(len(truth)))
        self._length = tuple(  # |mu| / sqrt(d), of the whole set and of each resample
            mean_length(count, total) for total, count in zip(resamples.sums(truth), self._count, strict=True)
        )

    def fve(self, error: Float[Tensor, " batch"]) -> dict[str, float | Interval]:
        """`{fve, ci95}` of one error per activation."""
        return self._summary(*self._fve(error))

    def above(self, error: Float[Tensor, " batch"], other: Float[Tensor, " batch"]) -> dict[str, float | Interval]:
        """How much higher the FVE of `error` is than that of `other`, paired within each resample."""
        pairs = zip(self._fve(error), self._fve(other), strict=True)
        return self._summary(*(mine - theirs for mine, theirs in pairs))

    def kept(self, error: Float[Tensor, " batch"], other: Float[Tensor, " batch"]) -> dict[str, float | Interval]:
        """`{value, ci95}`: the FVE of `error` as a share of that of `other`, paired; None unless that is above 0."""
        (mine, resampled), (theirs, theirs_resampled) = self._fve(error), self._fve(other)
        if float(theirs) <= 0:
            return {"value": None, "ci95": None}
        return {"value": float(mine / theirs), "ci95": self.resamples.interval(resampled / theirs_resampled)}

    def whitened(
        self, prediction: Float[Tensor, "batch d_model"], well_formed: Bool[Tensor, " batch"]
    ) -> dict[str, float | Interval]:
        """`{fve, ci95}` with each dimension's error over its own variance: the mean of R^2 over dimensions.

        No dimension counts for more than another, where in the plain FVE a few large ones may carry much of the
        variance. A malformed explanation has the error of an orthogonal vector that is spread evenly.
        """
        error = torch.where(
            well_formed.unsqueeze(1), (normalized_activations(prediction) - self._truth).square(), self._truth**2 + 1
        )
        whole, resampled = (
            1 - (errors / variance.clamp_min(torch.finfo(torch.float64).tiny)).mean(-1)
            for errors, variance in zip(self.resamples.sums(error), self._dimensions(), strict=True)
        )
        return self._summary(whole, resampled)

    def top_dimensions(self, error: Float[Tensor, "batch d_model"], count: int) -> dict[str, Any]:
        """The dimensions of largest variance: their indices, and their share of the variance and of a squared error."""
        variance = self._dimensions()[0]
        top = variance.topk(min(count, len(variance))).indices
        errors = error.double().sum(0)
        return {
            "dimensions": top.tolist(),
            "variance_share": float(variance[top].sum() / variance.sum()),
            "error_share": float(errors[top].sum() / errors.sum()) if float(errors.sum()) > 0 else None,
        }

    def _dimensions(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "resample d_model"]]:
        """The sum of squared differences from the mean, by dimension: of the whole set and of each resample."""
        squares, totals = self.resamples.sums(self._truth.square()), self.resamples.sums(self._truth)
        whole, resampled = (
            square - total.square() / count.unsqueeze(-1)
            for square, total, count in zip(squares, totals, self._count, strict=True)
        )
        return whole, resampled

    def mean(self) -> dict[str, float | Interval]:
        """Predicting mu itself, without normalising: 0 by definition."""
        return self._summary(*(torch.zeros_like(length) for length in self._length))

    def constant_direction(self) -> dict[str, float | Interval]:
        """The best constant reconstruction, normalize(mu): `(r - 1) / (r + 1)`, `r = |mu| / sqrt d`."""
        return self._summary(*((length - 1) / (length + 1) for length in self._length))

    def normalized_mean(self, error: Float[Tensor, " batch"]) -> float:
        """The other definition, whose denominator is taken about normalize(mu): higher; never quote it as FVE."""
        return float(explained_beyond_normalized_mean(error.double().sum(), self._count[0], self._length[0]))

    def _fve(self, error: Tensor) -> tuple[Tensor, Tensor]:
        sums = zip(self.resamples.sums(error), self._count, self._length, strict=True)
        whole, resampled = (explained(total, count, length) for total, count, length in sums)
        return whole, resampled

    def _summary(self, whole: Tensor, resampled: Tensor) -> dict[str, float | Interval]:
        return {"fve": float(whole), "ci95": self.resamples.interval(resampled)}
