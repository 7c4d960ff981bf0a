"""Where the FVE comes from: by tokens read, token type, kind of document, and the sentences of the explanation.

Within a part, `1 - sum error / sum spread`, the spread taken about the mean of the whole set: a part is measured by the
same yardstick as the headline, and the parts' numerators and denominators add up to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.data.source import Kinds
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.explanations import score
from nla.evaluation.subject import Subject
from nla.evaluation.token_types import TYPES, token_types
from nla.evaluation.tokens_read import tokens_read
from nla.models.explanations import sentences

QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


def breakdown(subject: Subject) -> dict[str, Any]:
    """FVE by tokens read, token type, norm and kind of document, each part `{fve, ci95, n}`; `sentences`."""
    rows, error = subject.rows, subject.greedy.scores.error
    types = token_types(subject.target.tokenizer, rows.tokens, rows.following.tolist())
    parts = {
        "by_tokens_read": tokens_read(rows.read),
        "by_token_type": {name: torch.tensor([kind == name for kind in types]) for name in TYPES},
        "by_norm": _by_norm(rows.activation),
    }
    if isinstance(subject.data.source, Kinds):
        kinds = [subject.data.source.kind(name) for name in rows.document_id]
        parts["by_document_kind"] = {
            kind: torch.tensor([found == kind for found in kinds]) for kind in dict.fromkeys(sorted(kinds))
        }
    result: dict[str, Any] = {
        name: partial_fve(rows.activation, error, masks, subject.resamples) for name, masks in parts.items()
    }
    result["sentences"] = _by_sentence(subject)
    return result


def partial_fve(
    activation: Float[Tensor, "batch d_model"],
    error: Float[Tensor, " batch"],
    parts: Mapping[str, Bool[Tensor, " batch"]],
    resamples: Resamples,
) -> dict[str, dict[str, Any]]:
    """FVE within each part, the variance taken about the mean of all rows, recomputed in each resample.

    With `g = normalize(h, sqrt d)` and `mu` the mean of all `g`, a part's spread is
    `sum (1 - 2 g mu / d + mu mu / d)`. A part without rows is left out.
    """
    truth = normalized_activations(activation)
    d_model = truth.shape[1]
    count, total = resamples.sums(torch.ones(len(truth))), resamples.sums(truth)
    mean = [each / number.unsqueeze(-1) for each, number in zip(total, count, strict=True)]
    found: dict[str, dict[str, Any]] = {}
    for name, mask in parts.items():
        inside = mask.double()
        if not float(inside.sum()):
            continue
        sizes, sums = resamples.sums(inside), resamples.sums(truth * inside.unsqueeze(1))
        errors = resamples.sums(error.double() * inside)
        whole, resampled = (
            1 - e / (n * (1 + m.square().sum(-1) / d_model) - 2 * (g * m).sum(-1) / d_model)
            for e, n, g, m in zip(errors, sizes, sums, mean, strict=True)
        )
        interval = resamples.interval(resampled)
        found[name] = {"fve": float(whole), "ci95": interval, "n": int(inside.sum())}
    return found


def _by_norm(activation: Float[Tensor, "batch d_model"]) -> dict[str, Bool[Tensor, " batch"]]:
    norm = activation.norm(dim=1)
    quarter = (norm.argsort().argsort() * 4) // len(norm)
    return {name: quarter == index for index, name in enumerate(QUARTERS)}


def _by_sentence(subject: Subject) -> list[dict[str, Any]]:
    """For the k-th sentence of the greedy texts: FVE of that sentence alone, and of the text without it.

    Over the rows that have such a sentence and at least one other, with the FVE of their whole text beside it.
    """
    texts = [sentences(text) if text else [] for text in subject.greedy.texts.explanation]
    result = []
    for index in range(max(map(len, texts), default=0)):
        has = torch.tensor([len(parts) > max(1, index) for parts in texts])
        if not bool(has.any()):
            continue
        alone = [parts[index] if len(parts) > index else "" for parts in texts]
        without = [" ".join(parts[:index] + parts[index + 1 :]) for parts in texts]
        result.append(
            {
                "sentence": index + 1,
                "n": int(has.sum()),
                "whole": _fve(subject, subject.greedy.scores.error, has),
                "alone": _fve(subject, _error(subject, alone), has),
                "without": _fve(subject, _error(subject, without), has),
            }
        )
    return result


def _error(subject: Subject, texts: Sequence[str]) -> Float[Tensor, " batch"]:
    return score(subject.reconstruct(list(texts)), subject.rows.activation).error


def _fve(subject: Subject, error: Float[Tensor, " batch"], mask: Bool[Tensor, " batch"]) -> dict[str, Any]:
    found = partial_fve(subject.rows.activation, error, {"rows": mask}, subject.resamples)["rows"]
    return {"fve": found["fve"], "ci95": found["ci95"]}


def table(result: dict[str, Any]) -> Table:
    """FVE of each part, then of single sentences."""
    shown = Table(title="Where the FVE comes from", title_justify="left")
    for title in ("part", "n", "FVE", "95% interval"):
        shown.add_column(title, justify="left" if title == "part" else "right")
    titles = {
        "by_tokens_read": "tokens read: {}",
        "by_token_type": "at a {}",
        "by_norm": "norm: {}",
        "by_document_kind": "document: {}",
    }
    for name, title in titles.items():
        for part, found in result.get(name, {}).items():
            shown.add_row(title.format(part), str(found["n"]), *cells(found["fve"], found["ci95"]))
        shown.add_section()
    for found in result["sentences"]:
        for key, title in (("alone", "sentence {} alone"), ("without", "all but sentence {}")):
            figures = cells(found[key]["fve"], found[key]["ci95"])
            shown.add_row(title.format(found["sentence"]), str(found["n"]), *figures)
    return shown
