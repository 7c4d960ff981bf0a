"""How well explanations fit activations, and what their parts are worth: pure functions on tensors and texts."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import cosine, normalize, reconstruction_error
from nla.core.summary import ActivationSummary

ORTHOGONAL = 2.0  # error of a malformed explanation at scale sqrt(d)
ROWS_AT_ONCE = 256  # of the matrix of all explanations against all activations


def training_mean(summary: ActivationSummary) -> Float[Tensor, " d_model"]:
    """The mean of the normalized training activations, about: the summary's direction, as long as the median cosine."""
    return normalize(summary.mean, math.sqrt(len(summary.mean)) * float(summary.cosine[1]))


def score(
    prediction: Float[Tensor, "row d_model"], activation: Float[Tensor, "rows d_model"], texts: Sequence[str | None]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Error at scale sqrt(d) and cosine; 2 and 0 without a text. A single activation is used for all rows."""
    formed = torch.tensor([text is not None for text in texts], dtype=torch.bool)
    activation = activation.expand(len(prediction), -1)
    error = reconstruction_error(prediction, activation, math.sqrt(activation.shape[-1]))
    return torch.where(formed, error, ORTHOGONAL), torch.where(formed, cosine(prediction, activation), 0.0)


def nearest_wrong(
    prediction: Float[Tensor, "row d_model"], activation: Float[Tensor, "row d_model"], texts: Sequence[str | None]
) -> list[tuple[int, float] | None]:
    """Of each activation: the other row whose prediction is nearest, and its error. Rows of its own text are no others.

    None where no other row has another text.
    """
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    kind = torch.tensor([number[text] for text in texts])
    formed = torch.tensor([text is not None for text in texts], dtype=torch.bool)
    columns = normalize(prediction, 1.0).T
    found: list[tuple[int, float] | None] = []
    for first in range(0, len(activation), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        similarity = normalize(activation[rows], 1.0) @ columns
        wrong = formed & (kind[rows].unsqueeze(1) != kind)
        best = similarity.masked_fill(~wrong, -torch.inf).max(1)
        found += [
            None if value == -torch.inf else (index, 2 * (1 - value))
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    return found


def agreement(
    prediction: Float[Tensor, "row d_model"], texts: Sequence[str | None], mean: Float[Tensor, " d_model"]
) -> float:
    """Mean cosine, about the mean activation, between the reconstructions of each two samples; 0 with a malformed one.

    1: all samples say the same to the reconstructor. Without taking off the mean any two would agree.
    """
    centred = normalize(normalize(prediction, math.sqrt(prediction.shape[-1])) - mean, 1.0)
    centred = torch.where(torch.tensor([text is not None for text in texts]).unsqueeze(1), centred, 0.0)
    pairs = torch.triu_indices(len(texts), len(texts), 1)
    return float((centred[pairs[0]] * centred[pairs[1]]).sum(-1).mean())
