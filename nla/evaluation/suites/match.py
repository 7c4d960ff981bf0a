"""Position match: which of several activations does an explanation's reconstruction lie nearest to?

No judge and no variance: a pair that says only what all positions of a document share scores no better than chance
within the document, however high its FVE. Beside it the same question among activations of other documents, which is
much easier.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.records import well_formed
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import other_document

MATCHED = {
    "greedy": "this pair, greedy",
    "warm_start": "warm start, greedy",
    "source_text": "the context's last tokens",
    "shuffled": "explanation of another document",
}


def position_match(subject: Subject) -> dict[str, Any]:
    """Of this pair, of the warm start, and of two texts that are not about the activation's position alone."""
    rows = subject.rows

    def found(prediction: Tensor, texts: Sequence[str | None]) -> dict[str, Any]:
        formed = well_formed(texts, prediction.device)
        return matched(prediction, rows.activation, rows.document_id, formed, subject.resamples)

    explained = {name: subject.variants[name] for name in ("greedy", "warm_start") if name in subject.variants}
    result = {name: found(variant.prediction, variant.texts.explanation) for name, variant in explained.items()}
    result["source_text"] = found(subject.source_text, rows.tail)
    partner = other_document(rows.document, subject.seed)
    if partner is not None:
        greedy = subject.greedy
        result["shuffled"] = found(greedy.prediction[partner], [greedy.texts.explanation[i] for i in partner])
    return result


def matched(
    prediction: Float[Tensor, "batch d_model"],
    activation: Float[Tensor, "batch d_model"],
    document: Sequence[str],
    well_formed: Bool[Tensor, " batch"],
    resamples: Resamples,
) -> dict[str, Any]:
    """`same_document` and `other_documents`, each `{rank1, ci95, chance, candidates, n}`.

    `rank1` is the share of rows whose own activation has the highest cosine with their reconstruction: among the rows
    of the same document, and among all rows of other documents. `chance` is the mean of one over the number of
    candidates; a malformed explanation has no match. Documents of one row take no part in the first question.
    """
    similarity = normalize(prediction.float(), 1.0) @ normalize(activation.float(), 1.0).T
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(document):
        rows_of[name].append(row)
    same = torch.zeros(len(document), len(document), dtype=torch.bool)
    for rows in rows_of.values():
        same[torch.tensor(rows).unsqueeze(1), torch.tensor(rows)] = True
    own = torch.eye(len(document), dtype=torch.bool)
    asked = {"same_document": same, "other_documents": ~same | own}
    similarity, formed = similarity.cpu(), well_formed.cpu()
    return {name: _rank1(similarity, candidates, formed, resamples) for name, candidates in asked.items()}


def _rank1(
    similarity: Float[Tensor, "batch batch"],
    candidates: Bool[Tensor, "batch batch"],
    well_formed: Bool[Tensor, " batch"],
    resamples: Resamples,
) -> dict[str, Any]:
    count = candidates.sum(1)
    takes_part = count > 1
    n = int(takes_part.sum())
    if n == 0:
        return {"rank1": None, "ci95": None, "chance": None, "candidates": None, "n": 0}
    best = similarity.masked_fill(~candidates, -torch.inf).argmax(1)
    hit = (best == torch.arange(len(best))) & well_formed & takes_part
    share = resamples.ratio(hit, takes_part)
    return {
        "rank1": share["value"],
        "ci95": share["ci95"],
        "chance": float((1 / count[takes_part].double()).mean()),
        "candidates": float(count[takes_part].double().mean()),
        "n": n,
    }


def table(matches: dict[str, Any]) -> Table:
    """How often an explanation is nearest to its own position."""
    table = Table(title="Position match: nearest to its own activation, of several", title_justify="left")
    table.add_column("explanation")
    for title in ("same document", "95% interval", "by chance", "other documents", "by chance"):
        table.add_column(title, justify="right")
    for name, label in MATCHED.items():
        if name in matches:
            same, others = matches[name]["same_document"], matches[name]["other_documents"]
            figures = [*cells(same["rank1"], same["ci95"], "{:.2f}"), cells(same["chance"], None, "{:.2f}")[0]]
            figures += [cells(others[key], None, "{:.3f}")[0] for key in ("rank1", "chance")]
            table.add_row(label, *figures)
    return table
