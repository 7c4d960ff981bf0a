"""Do samples that agree tell the truth? Agreement as confidence: its ranking, its calibration, what abstaining buys.

The confidence of a claim of the greedy text is the share of sampled explanations of the same activation that make it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Group
from rich.table import Table
from torch import Tensor

from nla.core.objectives import cosine
from nla.data.source import GroundTruth
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.explanations import explain, score
from nla.evaluation.subject import Subject

SAMPLES = 4
WANTED = 0.7  # AUROC of agreement for truth


def confidence(subject: Subject, samples: int = SAMPLES) -> dict[str, Any]:
    """`claims`: auroc, ece and the abstention curve, where truth is known; `reconstruction`: agreement against error;
    `best_of`: FVE of the sample that the reconstructor reads best, which needs the activation at hand.

    Args:
        samples: explanations of each activation, at `evaluation.temperature`.
    """
    settings, rows = subject.settings, subject.rows
    drawn = explain(
        subject.nla,
        rows.activation,
        samples=samples,
        temperature=settings.temperature,
        seed=subject.seed + 1,  # not the samples of the variant
        max_new_tokens=settings.max_new_tokens,
        batch_size=max(1, settings.batch_size // samples),
    ).explanation
    predicted = subject.reconstruct(drawn)
    errors = score(predicted, rows.activation.repeat_interleave(samples, 0), drawn).error.view(-1, samples)
    result: dict[str, Any] = {"samples": samples, "reconstruction": _reconstruction(subject, predicted, samples)}
    result["best_of"] = subject.variance.fve(errors.amin(1))
    source = subject.truth
    result["flags"] = []
    if source is None:
        result["claims"] = {"auroc": {"value": None, "ci95": None}, "reason": "the data have no ground truth"}
        return result
    counts = claim_agreement(source, subject, drawn, samples)
    result["claims"] = calibration(counts, subject.resamples)
    auroc = result["claims"]["auroc"]["value"]
    if auroc is not None and auroc < WANTED:
        result["flags"].append(f"agreement of samples ranks true above false claims with AUROC {auroc:.2f} only")
    return result


def claim_agreement(
    source: GroundTruth, subject: Subject, drawn: Sequence[str | None], samples: int
) -> Float[Tensor, "batch level 2"]:
    """How many false and true claims of each row's greedy text 0, 1, ... `samples` of its samples make."""
    rows = subject.rows
    counts = torch.zeros(len(rows), samples + 1, 2, dtype=torch.float64)
    for row, text in enumerate(subject.greedy.texts.explanation):
        if text is None:
            continue
        place = rows.document_id[row], rows.text[row]
        made = []
        for other in drawn[row * samples : (row + 1) * samples]:
            made.append({(claim.kind, claim.value) for claim in source.claims(other, *place)} if other else set())
        for claim in source.claims(text, *place):
            agreeing = sum((claim.kind, claim.value) in others for others in made)
            counts[row, agreeing, int(claim.true)] += 1
    return counts


def calibration(counts: Float[Tensor, "batch level 2"], resamples: Resamples) -> dict[str, Any]:
    """From claims by level of agreement: `auroc`, `ece`, `abstention`; levels are `k / (levels - 1)`.

    AUROC: the probability that a true claim has more agreement than a false one, ties counting half. ECE: the mean
    distance of agreement and truth, over claims. `abstention[k]`: claims with at least k agreeing samples, their share
    of all claims and of truth.
    """
    total, resampled = resamples.sums(counts)
    auroc, ece = _auroc(total), _ece(total)
    curve = []
    for level in range(counts.shape[1]):
        kept, kept_resampled = total[level:].sum(0), resampled[:, level:].sum(1)
        share = kept_resampled[:, 1] / kept_resampled.sum(1)
        curve.append(
            {
                "agreeing": level,
                "coverage": float(kept.sum() / total.sum()),
                "true_share": _finite(kept[1] / kept.sum()),
                "true_share_ci95": resamples.interval(share),
            }
        )
    return {
        "n": int(total.sum()),
        "auroc": {"value": _finite(auroc), "ci95": resamples.interval(_auroc(resampled))},
        "ece": {"value": _finite(ece), "ci95": resamples.interval(_ece(resampled))},
        "abstention": curve,
    }


def _auroc(counts: Float[Tensor, "*set level 2"]) -> Float[Tensor, "*set"]:
    false, true = counts[..., 0], counts[..., 1]
    below = false.cumsum(-1) - false / 2  # false claims with less agreement, and half of those with as much
    return (true * below).sum(-1) / (true.sum(-1) * false.sum(-1))


def _ece(counts: Float[Tensor, "*set level 2"]) -> Float[Tensor, "*set"]:
    level = torch.linspace(0, 1, counts.shape[-2], dtype=counts.dtype)
    number = counts.sum(-1)
    return (counts[..., 1] - number * level).abs().sum(-1) / number.sum(-1)


def _reconstruction(subject: Subject, predicted: Float[Tensor, "sample d_model"], samples: int) -> dict[str, Any]:
    """Spearman's correlation of the samples' agreement in reconstruction with the greedy error, and n."""
    predicted = predicted.double().view(len(subject.rows), samples, -1)
    own = subject.greedy.prediction.double().unsqueeze(1).expand_as(predicted)
    agreement = cosine(predicted.flatten(0, 1), own.flatten(0, 1)).view(len(subject.rows), samples).mean(1)
    x, y = _ranks(agreement), _ranks(subject.greedy.scores.error)
    moments = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], 1)
    total, resampled = subject.resamples.sums(moments)
    interval = subject.resamples.interval(_correlation(resampled))
    return {"rank_correlation_with_error": {"value": _finite(_correlation(total)), "ci95": interval}, "n": len(x)}


def _ranks(values: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Ranks from 0 to 1; equal values share their mean rank."""
    _, inverse, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return ((last - (count + 1) / 2) / max(1, len(values) - 1))[inverse]


def _correlation(moments: Float[Tensor, "*set 6"]) -> Float[Tensor, "*set"]:
    n, x, y, xx, yy, xy = moments.unbind(-1)
    return (n * xy - x * y) / ((n * xx - x * x).clamp_min(0) * (n * yy - y * y).clamp_min(0)).sqrt()


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def table(result: dict[str, Any]) -> Group:
    """Ranking and calibration, then what abstaining buys."""
    figures = Table(title=f"Confidence: agreement of {result['samples']} samples", title_justify="left")
    for title in ("figure", "value", "95%"):
        figures.add_column(title, justify="left" if title == "figure" else "right")
    claims, found = result["claims"], result["reconstruction"]["rank_correlation_with_error"]
    labels = {"auroc": "AUROC for the truth of claims", "ece": "calibration error (ECE)"}
    for name, label in labels.items():
        if claims.get(name) is not None:
            figures.add_row(label, *cells(claims[name]["value"], claims[name]["ci95"]))
    figures.add_row("rank correlation of reconstructions' agreement with error", *cells(found["value"], found["ci95"]))
    best = result["best_of"]
    figures.add_row(f"FVE, best of {result['samples']} samples", *cells(best["fve"], best["ci95"]))
    if "abstention" not in claims:
        return Group(figures)
    curve = Table(title="Claims that enough samples make", title_justify="left")
    for title in ("agreeing samples, at least", "share of claims", "true", "95%"):
        curve.add_column(title, justify="right")
    for point in claims["abstention"]:
        true = cells(point["true_share"], point["true_share_ci95"], "{:.2f}")
        curve.add_row(str(point["agreeing"]), f"{point['coverage']:.2f}", *true)
    return Group(figures, curve)
