"""Explanations of many activations, and how well each reconstructs its activation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nla.core.objectives import cosine, reconstruction_error
from nla.core.records import well_formed
from nla.errors import ModelError
from nla.evaluation.ranks import shared
from nla.models.explanations import sentences
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams

ORTHOGONAL = 2.0  # error of a malformed explanation


@dataclass(frozen=True, slots=True)
class Texts:
    """Explanations, `samples` per activation, contiguous. `tokens` counts tags and the stop token."""

    explanation: list[str | None]  # None: malformed or cut off
    tokens: Int[Tensor, " sample"]

    def summary(self) -> dict[str, float | None]:
        """`well_formed` share, mean `tokens` and `repeated_share`."""
        return {
            "well_formed": float(well_formed(self.explanation).double().mean()),
            "tokens_mean": float(self.tokens.double().mean()),
            "repeated_share": repeated_share([text for text in self.explanation if text is not None]),
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """float64, at scale sqrt(d): error `2 (1 - cos)` in [0, 4]; malformed: error 2, cosine 0."""

    error: Float[Tensor, " sample"]
    cosine: Float[Tensor, " sample"]


def explain(
    nla: NLA,
    activation: Float[Tensor, "batch d_model"],
    *,
    max_new_tokens: int,
    batch_size: int,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> Texts:
    """Greedy at temperature 0. A sample depends on seed and row, not on the batch size."""

    params = SamplingParams.policy(max_new_tokens, samples, temperature)

    def batch(start: int) -> tuple[list[str | None], Tensor]:
        rows = activation[start : start + batch_size].to(nla.device)
        completions = nla.verbalizer.sample(rows, params, seed, first_row=start * samples)
        return completions.explanation, completions.mask.sum(1).cpu()

    batches = shared(range(0, len(activation), batch_size), batch)
    return Texts([text for texts, _ in batches for text in texts], torch.cat([tokens for _, tokens in batches]))


def reconstruct(nla: NLA, texts: Sequence[str | None], batch_size: int) -> Float[Tensor, "sample d_model"]:
    """Predictions on the CPU, each different text read once. Raises ModelError where one is not finite."""
    different = {text: index for index, text in enumerate(dict.fromkeys(text or "" for text in texts))}
    order = sorted(different, key=len)  # like lengths together
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    predictions = torch.zeros(len(different), nla.d_model)
    found = shared(batches, lambda batch: nla.reconstruct(batch, batch_size).cpu())
    for batch, predicted in zip(batches, found, strict=True):
        predictions[[different[text] for text in batch]] = predicted
    if not bool(predictions.isfinite().all()):
        count = int((~predictions.isfinite().all(1)).sum())
        raise ModelError(
            f"the reconstructor's prediction is not finite for {count} of {len(different)} texts: the pair is damaged; "
            "evaluate an earlier one (runs/<name>/stages/<stage>/nla)"
        )
    return predictions[[different[text or ""] for text in texts]]


def score(
    prediction: Float[Tensor, "sample d_model"],
    activation: Float[Tensor, "sample d_model"],
    explanation: Sequence[str | None] | None = None,
) -> Scores:
    """Error and cosine of each prediction; those whose explanation is None count as orthogonal."""
    prediction, activation = prediction.double(), activation.double()
    error = reconstruction_error(prediction, activation, math.sqrt(activation.shape[-1]))
    cosines = cosine(prediction, activation)
    if explanation is not None:
        formed = well_formed(explanation)
        error, cosines = torch.where(formed, error, ORTHOGONAL), torch.where(formed, cosines, 0.0)
    return Scores(error, cosines)


def repeated_share(texts: Sequence[str]) -> float | None:
    """The share of statements that repeat an earlier one of the same text, case and closing sign aside."""
    total = repeated = 0
    for text in texts:
        keys = [" ".join(sentence.casefold().split()).rstrip(".!?;") for sentence in sentences(text)]
        total += len(keys)
        repeated += len(keys) - len(set(keys))
    return repeated / total if total else None
