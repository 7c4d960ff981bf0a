"""The training activations in a few numbers, and whether a given vector resembles them.

Saved beside a pair's verbalizer. Pairs from elsewhere lack it; the injection scale then replaces the norm.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from nla.core.objectives import Scale, normalize
from nla.errors import DataError, ReleaseError, first_line

FILE = "summary/activations.safetensors"  # vLLM and SGLang load every *.safetensors beside the weights
EARLIER = "activation_summary.safetensors"  # where it was until 2026-12-01
QUANTILES = (0.001, 0.5, 0.999)
MARGIN = 2.0  # a norm beyond the outer quantiles by this factor is far off
SCALE_MARGIN = 10.0  # the same if only the injection scale, a number near the median norm, is known
COSINE_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class ActivationSummary:
    """Of training activations: mean, and the quantiles 0.001, 0.5, 0.999 of their norms and cosines to that mean."""

    mean: Float[Tensor, " d_model"]
    norm: Float[Tensor, "3"]
    cosine: Float[Tensor, "3"]

    @classmethod
    def of(cls, activation: Float[Tensor, "batch d_model"]) -> "ActivationSummary":
        """Raises DataError for fewer than two activations."""
        if len(activation) < 2:
            raise DataError(f"{len(activation)} activations cannot be summarized: give at least two")
        activation = activation.detach().float().cpu()
        mean = activation.mean(0)
        quantiles = torch.tensor(QUANTILES)
        cosine = normalize(activation, 1.0) @ normalize(mean, 1.0)
        return cls(mean, torch.quantile(activation.norm(dim=-1), quantiles), torch.quantile(cosine, quantiles))

    def on_mean(
        self, direction: Float[Tensor, "batch d_model"], strength: float = 0.5
    ) -> Float[Tensor, "batch d_model"]:
        """`mean + strength * median norm * unit(direction)`: the direction at the mean, not at the origin."""
        return self.mean.to(direction.device) + normalize(direction, strength * float(self.norm[1]))

    def save(self, folder: Path) -> None:
        (folder / FILE).parent.mkdir(exist_ok=True)
        save_file({"mean": self.mean, "norm": self.norm, "cosine": self.cosine}, folder / FILE)

    @classmethod
    def load(cls, folder: Path, d_model: int) -> "ActivationSummary | None":
        """The summary beside a verbalizer; None if there is none. Raises ReleaseError for one that does not fit."""
        path = next((folder / name for name in (FILE, EARLIER) if (folder / name).is_file()), None)
        if path is None:
            return None
        try:
            tensors = load_file(path)
        except Exception as error:  # safetensors raises its own class
            raise ReleaseError(f"{path}: cannot be read ({first_line(error)}); remove it, it is optional") from error
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != {"mean": (d_model,), "norm": (3,), "cosine": (3,)}:
            raise ReleaseError(f"{path} holds {shapes}, expected a mean of width {d_model}: remove it, it is optional")
        return cls(**{name: value.float() for name, value in tensors.items()})


def unusual(
    vector: Float[Tensor, "batch d_model"], summary: ActivationSummary | None, injection_scale: Scale
) -> list[str]:
    """One sentence for each way in which vectors are unlike the training activations; none if all resemble them."""
    found = []
    for measure in _measures(vector, summary, injection_scale):
        rows = measure.far.nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            found.append(
                f"{len(rows)} of {len(vector)} vectors (rows {shown}) have a {measure.quantity} far from training, the "
                f"first {float(measure.values[rows[0]]):.3g}; {measure.known}: the explanation may be meaningless"
                f"{measure.fix}"
            )
    return found


def remarks(
    vector: Float[Tensor, "batch d_model"], summary: ActivationSummary | None, injection_scale: Scale
) -> list[str | None]:
    """For each vector how it is unlike the training activations; None where it resembles them."""
    measures = _measures(vector, summary, injection_scale)
    each = [
        [f"{m.quantity} {float(m.values[row]):.3g}, where {m.known}" for m in measures if bool(m.far[row])]
        for row in range(len(vector))
    ]
    return ["; ".join(found) or None for found in each]


@dataclass(frozen=True, slots=True)
class _Measure:
    """A quantity of each vector, and whether it is far from what is known of the training."""

    quantity: str
    values: Float[Tensor, " batch"]
    low: float
    high: float
    known: str
    fix: str = ""

    @property
    def far(self) -> Bool[Tensor, " batch"]:
        return (self.values < self.low) | (self.values > self.high)


def _measures(
    vector: Float[Tensor, "batch d_model"], summary: ActivationSummary | None, injection_scale: Scale
) -> list[_Measure]:
    vector = vector.detach().float().cpu()
    norm = vector.norm(dim=-1)
    if summary is not None:
        low, high = float(summary.norm[0]), float(summary.norm[2])
        known = f"training activations had {low:.3g} to {high:.3g}"
        first = _Measure("norm", norm, low / MARGIN, high * MARGIN, known)
        cosine = normalize(vector, 1.0) @ normalize(summary.mean, 1.0)
        low, high = float(summary.cosine[0]), float(summary.cosine[2])
        known = f"training activations had {low:.2f} to {high:.2f}"
        fix = "; for a difference or a latent's direction try nla.summary.on_mean(vector)"
        low, high = low - COSINE_MARGIN, high + COSINE_MARGIN
        return [first, _Measure("cosine to the training mean", cosine, low, high, known, fix)]
    if injection_scale is not None:
        low, high = injection_scale / SCALE_MARGIN, injection_scale * SCALE_MARGIN
        return [_Measure("norm", norm, low, high, f"the pair's injection scale is {injection_scale:.3g}")]
    return []
