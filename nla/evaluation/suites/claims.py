"""Are the explanations true? Claims against the ground truth that a data source may offer.

The source defines what a claim is (`nla.data.GroundTruth`): a statement that it cannot parse, or about a fact that the
text has not revealed yet, is false. Nothing here depends on a particular source.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nla.data.source import GroundTruth
from nla.evaluation.activations import EvaluatedRows
from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import other_document
from nla.evaluation.tokens_read import tokens_read

CLAIMS, TRUE, FACTS, RECALLED, UNREVEALED = range(5)  # columns of a count
Ratio = tuple[Float[Tensor, ""], Float[Tensor, " resample"]]


@runtime_checkable
class FullDescription(Protocol):
    """A source that can say everything it knows: the ceiling for a reconstructor."""

    def full_description(self, document_id: str, text: str) -> str:
        """All facts that `text` has revealed, in the words of the warm-start texts."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Per kind of fact and row: claims made, true ones, facts known, known facts that were stated, guesses.

    A repeated claim counts each time among the claims, its fact once among those recalled. A guess is a claim of a kind
    of which the text has revealed no fact.
    """

    total: Float[Tensor, "batch 5"]
    by_kind: dict[str, Float[Tensor, "batch 5"]]
    fact_kinds: frozenset[str]  # kinds that the source has facts of; other claims are inventions or unparsed


def claims(subject: Subject) -> dict[str, Any] | None:
    """Claims of this pair and of the warm start; `chance`: this pair's, each judged against another document.

    None for data without ground truth.
    """
    source = subject.truth
    if source is None:
        return None
    rows, resamples, variants = subject.rows, subject.resamples, subject.variants
    explanations = subject.greedy.texts.explanation
    after = judge(source, rows, explanations)
    found = summarize(after, resamples)
    found["by_tokens_read"] = {
        name: _shares(after.total * inside.unsqueeze(1), resamples) | {"texts": int(inside.sum())}
        for name, inside in tokens_read(rows.read).items()
    }
    partner = other_document(rows.document, subject.seed)
    others = None if partner is None else judge(source, rows, [explanations[index] for index in partner])
    found["chance"] = None if others is None else summarize(others, resamples)
    if "warm_start" not in variants:
        return {**found, "warm_start": None}
    before = judge(source, rows, variants["warm_start"].texts.explanation)
    return {**found, "warm_start": summarize(before, resamples), "change": change(after, before, resamples)}


def judge(source: GroundTruth, rows: EvaluatedRows, explanations: Sequence[str | None]) -> Counts:
    """Count the claims of each row's explanation; a malformed one claims nothing and recalls nothing."""
    nothing = torch.zeros(len(rows), 5, dtype=torch.float64)
    counts: dict[str, Tensor] = defaultdict(nothing.clone)
    fact_kinds: set[str] = set()
    for index, (explanation, document, text) in enumerate(zip(explanations, rows.document_id, rows.text, strict=True)):
        facts = set(source.facts(document, text))
        claims = [] if explanation is None else source.claims(explanation, document, text)
        known = {kind for kind, _ in facts}
        fact_kinds |= known
        for kind, _ in facts:
            counts[kind][index, FACTS] += 1
        for claim in claims:
            counts[claim.kind][index, CLAIMS] += 1
            counts[claim.kind][index, TRUE] += claim.true
            counts[claim.kind][index, UNREVEALED] += claim.kind not in known and not claim.true
        for kind, _ in {(claim.kind, claim.value) for claim in claims if claim.true} & facts:
            counts[kind][index, RECALLED] += 1
    return Counts(sum(counts.values(), nothing), dict(sorted(counts.items())), frozenset(fact_kinds))


def summarize(counts: Counts, resamples: Resamples) -> dict[str, Any]:
    """`true_share` and `recall` with intervals, distinct kinds of fact per text (claimed, and truly so), by kind."""
    of_facts = [count for kind, count in counts.by_kind.items() if kind in counts.fact_kinds]
    return {
        **_shares(counts.total, resamples),
        "kinds_per_text": sum(float((count[:, CLAIMS] > 0).double().mean()) for count in of_facts),
        "true_kinds_per_text": sum(float((count[:, TRUE] > 0).double().mean()) for count in of_facts),
        "by_kind": {kind: _shares(count, resamples) for kind, count in counts.by_kind.items()},
    }


def change(after: Counts, before: Counts, resamples: Resamples) -> dict[str, Any]:
    """How much truer the claims became, in total and by kind, paired within each resample."""
    both = [kind for kind in after.by_kind if kind in before.by_kind]
    return {
        **_change(after.total, before.total, resamples),
        "by_kind": {kind: _change(after.by_kind[kind], before.by_kind[kind], resamples) for kind in both},
    }


def _shares(count: Float[Tensor, "batch 5"], resamples: Resamples) -> dict[str, Any]:
    true, recall = _ratio(count, TRUE, CLAIMS, resamples), _ratio(count, RECALLED, FACTS, resamples)
    return {
        "n": int(count[:, CLAIMS].sum()),
        "true_share": _number(true[0]),
        "true_share_ci95": resamples.interval(true[1]),
        "unrevealed_share": _number(_ratio(count, UNREVEALED, CLAIMS, resamples)[0]),
        "recall": _number(recall[0]),
        "recall_ci95": resamples.interval(recall[1]),
    }


def _change(after: Tensor, before: Tensor, resamples: Resamples) -> dict[str, Any]:
    mine, theirs = (_ratio(count, TRUE, CLAIMS, resamples) for count in (after, before))
    return {"true_share": _number(mine[0] - theirs[0]), "true_share_ci95": resamples.interval(mine[1] - theirs[1])}


def _ratio(count: Float[Tensor, "batch 5"], numerator: int, denominator: int, resamples: Resamples) -> Ratio:
    """Of the whole set and of each resample; NaN if the denominator is 0."""
    total, resampled = resamples.sums(count)
    return total[numerator] / total[denominator], resampled[:, numerator] / resampled[:, denominator]


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def table(result: dict[str, Any]) -> Group:
    """Claims before and after joint training by kind, then by tokens read."""
    return Group(_by_kind(result), _by_tokens_read(result["by_tokens_read"]))


def _by_kind(result: dict[str, Any]) -> Table:
    before, chance = result["warm_start"], result["chance"]
    texts = f"{result['kinds_per_text']:.1f}"
    if before is not None:
        texts = f"{before['kinds_per_text']:.1f} before, {texts} after"
    shown = _plain_table(
        "Claims against ground truth, warm start and this pair (by chance: against another document); distinct kinds "
        f"per text: {texts}"
    )
    shown.add_column("kind", no_wrap=True)
    for moment in ("before", "after"):
        for column in ("claims", "true", "95%", "recall"):
            shown.add_column(f"{moment if column == 'claims' else ''}\n{column}", justify="right", no_wrap=True)
    shown.add_column("by chance\ntrue", justify="right", no_wrap=True)
    figures = (*_claim_cells(before), *_claim_cells(result), _true_cell(chance))
    shown.add_row("all", *figures, style="bold", end_section=True)
    for kind in sorted(set(result["by_kind"]) | set(before["by_kind"] if before else ())):
        earlier, random = (variant["by_kind"].get(kind) if variant else None for variant in (before, chance))
        figures = (*_claim_cells(earlier), *_claim_cells(result["by_kind"].get(kind)), _true_cell(random))
        shown.add_row(Text(kind), *figures)
    return shown


def _by_tokens_read(parts: dict[str, Any]) -> Table:
    shown = _plain_table("Claims by tokens read")
    for column in ("tokens read", "texts", "claims", "true", "95%", "recall"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, shares in parts.items():
        shown.add_row(name, str(shares["texts"]), *_claim_cells(shares))
    return shown


def _plain_table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _true_cell(shares: dict[str, Any] | None) -> str:
    return "-" if shares is None else cells(shares["true_share"], None, "{:.2f}")[0]


def _claim_cells(shares: dict[str, Any] | None) -> list[str]:
    if shares is None:
        return ["-"] * 4
    true, interval = cells(shares["true_share"], shares["true_share_ci95"], "{:.2f}")
    return [str(shares["n"]), true, interval.replace(" to ", "–"), cells(shares["recall"], None, "{:.2f}")[0]]
