"""Lenses: next words read from an activation without training a pair. The cheap rivals of an explanation.

Logit lens: final norm and output head, applied to the activation itself (nostalgebraist, 2020). Tuned lens: an affine
map to the last block's output first (Belrose et al., 2023), here by least squares in closed form.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nla.core.ridge import NormalEquations
from nla.data.documents import prepare
from nla.data.positions import keyed_fraction
from nla.errors import DataError
from nla.evaluation.activations import EvaluationData, read_layers, with_positions
from nla.models.backbone import depth, unembed
from nla.models.target import Target

HELD_OUT = 0.2  # of the training documents, on which the penalty is chosen
POSITIONS = (32, 12)  # of a document, the first number that at least half of them have: one pass reads any number
PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of standardized inputs


@dataclass(frozen=True, slots=True)
class TunedLens:
    """`last = W h + b`: the last block's output from block `layer`'s, in float64.

    `rows`: activations that it was fitted to. `error`: of the held-out ones, each dimension relative to its variance.
    """

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]
    rows: int
    error: float

    def __call__(self, activation: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """At the activation's norm: a reconstruction must be brought to it first."""
        return activation.double() @ self.weight.T + self.bias


def fit_tuned_lens(target: Target, data: EvaluationData, split: str, documents: int | None) -> TunedLens:
    """Fitted to training documents, up to 32 positions of each. Raises DataError if there are too few."""
    layers = [target.layer, depth(target.model) - 1]
    data = with_positions(data, _positions(target, data, split, documents))
    states, document = read_layers(target, data, split, documents, layers)
    held_out = torch.tensor([keyed_fraction("lens", name) < HELD_OUT for name in document])
    if int(held_out.sum()) < 2 or int((~held_out).sum()) < 2:
        raise DataError(f"split '{split}' has too few documents to fit a tuned lens: {len(set(document))}")
    return affine(states[:, 0], states[:, 1], held_out)


def _positions(target: Target, data: EvaluationData, split: str, documents: int | None) -> int | None:
    """The largest number of `POSITIONS` that half of the documents have; None: that of the plan."""
    some = sorted(data.source.documents(split), key=lambda document: keyed_fraction("lens", document.id))[:documents]
    for count in POSITIONS:
        plan = dataclasses.replace(data.plan, positions_per_document=count)
        if 2 * len(prepare(some, target.tokenizer, plan)[0]) >= len(some) > 0:
            return count
    return None


def affine(
    inputs: Float[Tensor, "row d_model"], outputs: Float[Tensor, "row d_model"], held_out: Bool[Tensor, " row"]
) -> TunedLens:
    """Least squares with the ridge penalty that is best on the rows `held_out`.

    Inputs and outputs are standardized, since a few dimensions are a thousand times as large as the others.
    """
    x, y = inputs.double(), outputs.double()
    (x_mean, x_scale), (y_mean, y_scale) = (_moments(part[~held_out]) for part in (x, y))
    x, y = (x - x_mean) / x_scale, (y - y_mean) / y_scale
    equations = NormalEquations.empty(x.shape[1], y.shape[1])
    equations.add(x[~held_out], y[~held_out])
    candidates = equations.solve(PENALTIES)
    errors = [float((y[held_out] - x[held_out] @ weight.T).square().mean()) for weight in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    weight = y_scale.unsqueeze(1) * candidates[best] / x_scale
    return TunedLens(weight, y_mean - weight @ x_mean, int((~held_out).sum()), errors[best])


def _moments(values: Float[Tensor, "row d_model"]) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Mean, and standard deviation or 1 where nothing varies."""
    scale = values.std(0, correction=0)
    return values.mean(0), torch.where(scale > 0, scale, 1.0)


@torch.no_grad()
def lens_logits(target: Target, states: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
    """Logits of states in the place of the last block's output."""
    device: Any = target.device
    return unembed(target.model, states.float().to(device))
