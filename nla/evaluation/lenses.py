"""Lenses: next words read from an activation without training a pair. The cheap rivals of an explanation.

Logit lens: final norm and output head, applied to the activation itself (nostalgebraist, 2020). Tuned lens: an affine
map to the last block's output first (Belrose et al., 2023), here by least squares in closed form.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.ridge import PENALTIES, NormalEquations
from nla.data.positions import keyed_fraction
from nla.errors import DataError
from nla.evaluation.activations import EvaluationData, read_layers
from nla.models.backbone import depth, unembed
from nla.models.target import Target

HELD_OUT = 0.2  # of the training documents, on which the penalty is chosen
POSITIONS = 12  # of a document


@dataclass(frozen=True, slots=True)
class TunedLens:
    """`last = W [unit(h) |h|_mean; 1]`: the last block's output from a direction at the usual norm.

    `rows`: activations that it was fitted to. `error`: of the held-out ones, relative to their variance.
    """

    weight: Float[Tensor, "d_model inputs"]
    norm: float
    rows: int
    error: float

    def __call__(self, activation: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """The norm is not read: a reconstruction's is arbitrary."""
        return _inputs(activation, self.norm) @ self.weight.T


def fit_tuned_lens(target: Target, data: EvaluationData, split: str, documents: int | None) -> TunedLens:
    """Fitted to training documents, a dozen positions of each. Raises DataError if there are too few."""
    plan = dataclasses.replace(data.plan, positions_per_document=POSITIONS)
    last = depth(target.model) - 1
    states, document = read_layers(target, EvaluationData(data.source, plan), split, documents, [target.layer, last])
    held_out = torch.tensor([keyed_fraction("lens", name) < HELD_OUT for name in document])
    if int(held_out.sum()) < 2 or int((~held_out).sum()) < 2:
        raise DataError(f"split '{split}' has too few documents to fit a tuned lens: {len(set(document))}")
    norm = float(states[:, 0].norm(dim=1).median())
    inputs, outputs = _inputs(states[:, 0], norm), states[:, 1].double()
    equations = NormalEquations.empty(inputs.shape[1], outputs.shape[1])
    equations.add(inputs[~held_out], outputs[~held_out])
    spread = (outputs[held_out] - outputs[~held_out].mean(0)).square().sum()
    errors = []
    for weight in (candidates := equations.solve(PENALTIES)):
        errors.append(float((outputs[held_out] - inputs[held_out] @ weight.T).square().sum() / spread))
    best = min(range(len(errors)), key=errors.__getitem__)
    return TunedLens(candidates[best], norm, int((~held_out).sum()), errors[best])


def _inputs(activation: Float[Tensor, "batch d_model"], norm: float) -> Float[Tensor, "batch inputs"]:
    scaled = normalize(activation.double(), norm)
    return torch.cat([scaled, torch.full((len(scaled), 1), norm, dtype=torch.float64)], dim=1)


@torch.no_grad()
def lens_logits(target: Target, states: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
    """Logits of states in the place of the last block's output."""
    device: Any = target.device
    return unembed(target.model, states.float().to(device))
