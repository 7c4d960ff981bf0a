"""The evaluation printed for a person: numbers with intervals, claims before and after, a few explanations."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from nla.evaluation.controls import CONTROLS
from nla.evaluation.suite import Evaluation

MATCHED = {
    "greedy": "this pair, greedy",
    "warm_start": "warm start, greedy",
    "source_text": "the context's last tokens",
    "shuffled": "explanation of another document",
}
CONTEXT_CHARACTERS = 160  # of a sample's context, counted from its end


def show(evaluation: Evaluation, console: Console, examples: int = 5) -> None:
    """Print it. Texts are shown literally, markup included."""
    metrics = evaluation.metrics
    blocks: list[Any] = [_numbers(metrics), _facts(metrics), _matches(metrics["position_match"])]
    if metrics["claims"] is not None:
        blocks.append(_claims(metrics["claims"]))
    blocks += list(_examples(evaluation, examples))
    console.print(Group(*blocks))


def _numbers(metrics: dict[str, Any]) -> Table:
    title = f"{metrics['n']} activations of {metrics['documents']} held-out documents, layer {metrics['layer']}"
    table = Table(title=title, title_justify="left")
    table.add_column("explanation")
    table.add_column("FVE", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_row("warm start, greedy", *_cells(metrics["fve_warm_start"], metrics["fve_warm_start_ci95"]))
    table.add_row("this pair, greedy", *_cells(metrics["fve"], metrics["fve_ci95"]), style="bold")
    table.add_row(
        "  each dimension by its own variance", *_cells(metrics["fve_whitened"], metrics["fve_whitened_ci95"])
    )
    table.add_row("this pair, sampled", *_cells(metrics["fve_sampled"], metrics["fve_sampled_ci95"]))
    if "fve_above_warm_start" in metrics:
        gain = _cells(metrics["fve_above_warm_start"], metrics["fve_above_warm_start_ci95"])
        table.add_row("greedy above the warm start", *gain)
    frozen = metrics["frozen_reconstructor"]
    if frozen["fve"] is not None:
        table.add_row("this pair's texts, warm start's reconstructor", *_cells(frozen["fve"], frozen["ci95"]))
    for prefix in metrics["prefixes"]:
        table.add_row(f"this pair, first {prefix['tokens']} tokens", *_cells(prefix["fve"], prefix["ci95"]))
    table.add_section()
    for name, label in CONTROLS.items():
        table.add_row(label, *_cells(metrics["controls"][name]["fve"], metrics["controls"][name]["ci95"]))
    ceiling = metrics["ceiling"]["ground_truth"]
    if ceiling["fve"] is not None:
        table.add_section()
        table.add_row("all known facts (ceiling)", *_cells(ceiling["fve"], ceiling["ci95"]))
    return table


def _facts(metrics: dict[str, Any]) -> Text:
    summary = metrics["explanation"]
    top = metrics["top_dimensions"]
    repeated = "-" if summary["repeated_share"] is None else f"{summary['repeated_share']:.1%}"
    return Text(
        f"cosine {metrics['cosine']:.3f}   well-formed {summary['well_formed']:.1%}   "
        f"tokens {summary['tokens_mean']:.1f}   repeated statements {repeated}   "
        f"seconds {metrics['seconds']['total']:.1f}\n"
        f"largest {len(top['dimensions'])} dimensions: {top['variance_share']:.1%} of the variance\n"
    )


def _matches(matches: dict[str, Any]) -> Table:
    """How often an explanation is nearest to its own position."""
    table = Table(title="Position match: nearest to its own activation, of several", title_justify="left")
    table.add_column("explanation")
    for title in ("same document", "95% interval", "by chance", "other documents", "by chance"):
        table.add_column(title, justify="right")
    for name, label in MATCHED.items():
        if name in matches:
            same, others = matches[name]["same_document"], matches[name]["other_documents"]
            figures = [*_cells(same["rank1"], same["ci95"], "{:.2f}"), _cells(same["chance"], None, "{:.2f}")[0]]
            figures += [_cells(others[key], None, "{:.3f}")[0] for key in ("rank1", "chance")]
            table.add_row(label, *figures)
    return table


def _claims(claims: dict[str, Any]) -> Table:
    before = claims["warm_start"]
    texts = f"{claims['kinds_per_text']:.1f}"
    if before is not None:
        texts = f"{before['kinds_per_text']:.1f} before, {texts} after"
    table = Table(
        title=f"Claims against ground truth, warm start and this pair (by chance: against another document); distinct "
        f"kinds per text: {texts}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("kind", no_wrap=True)
    for moment in ("before", "after"):
        for column in ("claims", "true", "95%", "recall"):
            table.add_column(f"{moment if column == 'claims' else ''}\n{column}", justify="right", no_wrap=True)
    table.add_column("by chance\ntrue", justify="right", no_wrap=True)
    chance = claims["chance"]
    cells = (*_claim_cells(before), *_claim_cells(claims), _true_cell(chance))
    table.add_row("all", *cells, style="bold", end_section=True)
    for kind in sorted(set(claims["by_kind"]) | set(before["by_kind"] if before else ())):
        earlier, random = (variant["by_kind"].get(kind) if variant else None for variant in (before, chance))
        cells = (*_claim_cells(earlier), *_claim_cells(claims["by_kind"].get(kind)), _true_cell(random))
        table.add_row(Text(kind), *cells)
    return table


def _true_cell(shares: dict[str, Any] | None) -> str:
    return "-" if shares is None else _cells(shares["true_share"], None, "{:.2f}")[0]


def _claim_cells(shares: dict[str, Any] | None) -> list[str]:
    if shares is None:
        return ["-"] * 4
    true, interval = _cells(shares["true_share"], shares["true_share_ci95"], "{:.2f}")
    return [str(shares["n"]), true, interval.replace(" to ", "–"), _cells(shares["recall"], None, "{:.2f}")[0]]


def _examples(evaluation: Evaluation, count: int) -> Iterator[Text]:
    """Evenly spaced rows: context end, then what the pair (and the warm start) says about it."""
    rows, variants = evaluation.rows, evaluation.variants
    if count:
        yield Text("\nExplanations (evenly spaced rows)", style="bold")
    for k in range(min(count, len(rows))):
        index = k * len(rows) // min(count, len(rows))
        context = " ".join(rows.text[index].split())
        context = context if len(context) <= CONTEXT_CHARACTERS else f"… {context[-CONTEXT_CHARACTERS:]}"
        yield Text(f"\n{context}", style="dim")
        for name, label in (("greedy", "this pair"), ("warm_start", "warm start")):
            if name in variants:
                text = variants[name].texts.explanation[index]
                cosine = float(variants[name].scores.cosine[index])
                yield Text(f"  {label} ({cosine:.2f}): ", style="bold").append(text or "malformed", style="not bold")


def _cells(value: float | None, interval: list[float] | None, form: str = "{:.3f}") -> tuple[str, str]:
    shown = "-" if value is None else form.format(value)
    return shown, "-" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"
