"""Is it the meaning of an explanation that the reconstructor reads? The same texts, edited, read by the same half.

Edits that keep the meaning should keep the FVE; a wrong fact should raise the error. A private code of the two halves,
in the order, the number or the shape of sentences, shows here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Group
from rich.table import Table
from torch import Tensor

from nla.data.rewording import rewording_of
from nla.data.source import GroundTruth
from nla.evaluation.cells import cells
from nla.evaluation.edits import (
    Edit,
    first_half,
    row_rng,
    sentence_order,
    unquoted,
    word_order,
    wrong_facts_of,
)
from nla.evaluation.explanations import score
from nla.evaluation.subject import Subject

EDITS = {  # what is done to the texts, in the order of the table
    "paraphrase": "the same in other words",
    "sentence_order": "sentences in another order",
    "word_order": "words in another order",
    "without_quotes": "without quotations",
    "first_half": "the first half alone",
}
KEPT = 0.8  # of the FVE under an edit that keeps the meaning
RAISED = 0.9  # share of wrong facts that must raise the error
ROWS = 256  # rows whose facts are made wrong


def robustness(subject: Subject, rows: int = ROWS) -> dict[str, Any]:
    """`edits`: by edit `{fve, ci95, kept, changed}`; `wrong_facts`: the share that raises the error, by kind; `flags`.

    Args:
        rows: of which each fact is made wrong in turn.
    """
    texts, source = subject.greedy.texts.explanation, subject.data.source
    edits: dict[str, Edit] = {
        "sentence_order": sentence_order,
        "word_order": word_order,
        "without_quotes": unquoted,
        "first_half": first_half,
    }
    paraphrase = rewording_of(source, texts)
    if paraphrase is not None:
        edits["paraphrase"] = paraphrase
    found = {name: _edited(subject, texts, name, edits[name]) for name in EDITS if name in edits}
    result: dict[str, Any] = {"edits": found, "wrong_facts": _wrong_facts(subject, texts, rows)}
    if paraphrase is None:
        result["edits"]["paraphrase"] = {"fve": None, "ci95": None, "reason": "no way to rephrase such texts is known"}
    result["flags"] = _flags(result)
    return result


def _edited(subject: Subject, texts: Sequence[str | None], name: str, edit: Edit) -> dict[str, Any]:
    changed = [None if text is None else edit(text, row_rng(subject.seed, name, row)) for row, text in enumerate(texts)]
    different = sum(new != old for new, old in zip(changed, texts, strict=True))
    if not different:
        return {"fve": None, "ci95": None, "reason": "the edit changes none of the texts", "changed": 0.0}
    error = _error(subject, changed)
    return {
        **subject.variance.fve(error),
        "kept": subject.variance.kept(error, subject.greedy.scores.error),
        "changed": different / max(1, sum(text is not None for text in texts)),
    }


def _error(subject: Subject, texts: Sequence[str | None]) -> Float[Tensor, " batch"]:
    return score(subject.reconstruct(list(texts)), subject.rows.activation, texts).error


def _wrong_facts(subject: Subject, texts: Sequence[str | None], rows: int) -> dict[str, Any]:
    make_wrong = wrong_facts_of(subject.data.source, texts)
    if make_wrong is None:
        return {"value": None, "ci95": None, "n": 0, "reason": "no way to make one fact of such texts wrong is known"}
    chosen = list(range(0, len(texts), max(1, -(-len(texts) // rows))))
    truth = subject.truth
    edited: list[tuple[int, str, str]] = []
    for row in chosen:
        text = texts[row]
        for kind, value, changed in [] if text is None else make_wrong(text, row_rng(subject.seed, "wrong", row)):
            if truth is None or _made_wrong(truth, subject, row, (kind, value), changed):
                edited.append((row, kind, changed))
    if not edited:
        return {"value": None, "ci95": None, "n": 0, "reason": "no fact was found in these texts"}
    index = torch.tensor([row for row, _, _ in edited])
    error = score(subject.reconstruct([text for _, _, text in edited]), subject.rows.activation[index]).error
    rise = error - subject.greedy.scores.error[index]
    kinds = [kind for _, kind, _ in edited]
    by_kind = {kind: _raised(subject, index, rise, [other == kind for other in kinds]) for kind in sorted(set(kinds))}
    return {**_raised(subject, index, rise, [True] * len(kinds)), "by_kind": by_kind}


def _made_wrong(truth: GroundTruth, subject: Subject, row: int, claim: tuple[str, str], changed: str) -> bool:
    """Whether the claim was true and its replacement is false."""
    place = subject.rows.document_id[row], subject.rows.text[row]
    before, after = (
        {(found.kind, found.value) for found in truth.claims(text, *place) if found.true}
        for text in (subject.greedy.texts.explanation[row] or "", changed)
    )
    return claim in before and after < before


def _raised(subject: Subject, index: Tensor, rise: Float[Tensor, " edit"], inside: Sequence[bool]) -> dict[str, Any]:
    """`{value, ci95, n, rise}`: the share of wrong facts that raise the error, and by how much on average."""
    mask = torch.tensor(inside)
    counts = torch.zeros(len(subject.rows), 2, dtype=torch.float64)
    counts.index_add_(0, index[mask], torch.stack([(rise > 0), torch.ones_like(rise) > 0], 1)[mask].double())
    share = subject.resamples.ratio(counts[:, 0], counts[:, 1])
    return {**share, "n": int(mask.sum()), "rise": float(rise[mask].mean())}


def _flags(result: dict[str, Any]) -> list[str]:
    flags = []
    for name in ("paraphrase", "sentence_order"):
        kept = result["edits"].get(name, {}).get("kept", {}).get("value")
        if kept is not None and kept < KEPT:
            flags.append(f"{EDITS[name]}, the texts keep {kept:.2f} of the FVE; at least {KEPT} is wanted")
    raised = result["wrong_facts"]["value"]
    if raised is not None and raised < RAISED:
        flags.append(f"a wrong fact raises the error in {raised:.0%} of cases only; at least {RAISED:.0%} is wanted")
    return flags


def table(result: dict[str, Any]) -> Group:
    """FVE under each edit, then wrong facts by kind."""
    edits = Table(title="Edited explanations, read by the same reconstructor", title_justify="left")
    for title in ("edit", "texts changed", "FVE", "95%", "share kept", "95%"):
        edits.add_column(title, justify="left" if title == "edit" else "right")
    for name, label in EDITS.items():
        found = result["edits"].get(name, {})
        if found.get("fve") is not None:
            kept = found["kept"]
            figures = (*cells(found["fve"], found["ci95"]), *cells(kept["value"], kept["ci95"], "{:.2f}"))
            edits.add_row(label, f"{found['changed']:.0%}", *figures)
    facts = Table(title="One fact made wrong: how often the error rises", title_justify="left")
    for title in ("fact", "n", "error rises", "95%", "by, on average"):
        facts.add_column(title, justify="left" if title == "fact" else "right")
    wrong = result["wrong_facts"]
    if wrong["value"] is not None:
        for kind, found in (("all", wrong), *wrong["by_kind"].items()):
            share = cells(found["value"], found["ci95"], "{:.2f}")
            facts.add_row(kind, str(found["n"]), *share, f"{found['rise']:.3f}")
    return Group(edits, facts)
