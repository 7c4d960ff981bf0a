"""Where the reconstructor's head starts: the identity, or the least-squares map from its states to the activations.

The ridge head is fitted to the warm start's texts read by the untrained blocks: sums over all ranks, a penalty chosen
on the validation rows. It is the best linear reading of the untrained model, in closed form.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import normalize, reconstruction_error
from nla.core.records import ActivationBatch
from nla.core.ridge import PENALTIES, NormalEquations
from nla.errors import DataError
from nla.models.reconstructor import Reconstructor

HeadStart = Literal["identity", "ridge"]


@torch.no_grad()
def ridge_head(
    reconstructor: Reconstructor,
    training: Iterable[ActivationBatch],
    held_out: Iterable[ActivationBatch],
    total: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "d_model d_model"], dict[str, float]]:
    """The head's weights, and `{texts, penalty, error}` of the fit; `error` is the held-out one.

    The weights are scaled to the identity's norm: a prediction's length means nothing, but a learning rate does.

    Args:
        reconstructor: whose head is the identity, so that its predictions are the states.
        training: batches of this rank; held_out: likewise.
        total: sums a tensor over ranks.
    """
    width = reconstructor.head.in_features
    equations = NormalEquations.empty(width, width)
    for state, activation in _read(reconstructor, training):
        equations.add(state, normalize(activation, math.sqrt(width)))
    equations.gram, equations.moment = total(equations.gram), total(equations.moment)
    texts = int(total(torch.tensor(float(equations.rows), dtype=torch.float64)))
    if texts == 0:
        raise DataError("head_start=ridge: the warm start holds no explained rows to fit the head to")
    heads = equations.solve(PENALTIES)
    errors = torch.zeros(len(heads) + 1, dtype=torch.float64)
    for state, activation in _read(reconstructor, held_out):
        for index, head in enumerate(heads):
            prediction = state.cpu() @ head.T.float()
            errors[index] += reconstruction_error(prediction, activation.cpu(), math.sqrt(width)).sum().double()
        errors[-1] += len(state)
    errors = total(errors)
    best = int(errors[:-1].argmin()) if errors[-1] else len(heads) // 2
    head = heads[best] * math.sqrt(width) / heads[best].norm()
    error = float(errors[best] / errors[-1].clamp_min(1))
    return head.float(), {"texts": float(texts), "penalty": PENALTIES[best], "error": error}


def _read(reconstructor: Reconstructor, batches: Iterable[ActivationBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if batch.explanation is not None and not batch.padding:
            yield reconstructor.reconstruct(batch.explanation), batch.activation
