"""The evaluation printed for a person: numbers with intervals, claims before and after, a few explanations."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from nla.evaluation.cells import cells
from nla.evaluation.evaluation import Evaluation
from nla.evaluation.suites import SUITES
from nla.evaluation.suites.controls import CONTROLS
from nla.evaluation.verdicts import lines, verdicts

CONTEXT_CHARACTERS = 160  # of a sample's context, counted from its end


def show(evaluation: Evaluation, console: Console, examples: int = 5) -> None:
    """Print it. Texts are shown literally, markup included."""
    metrics = evaluation.metrics
    blocks: list[Any] = [_numbers(metrics), _facts(metrics)]
    for suite in SUITES:
        if metrics.get(suite.name) is not None:
            blocks.append(suite.table(metrics[suite.name]))
    blocks += list(_examples(evaluation, examples))
    blocks.append(lines(verdicts(metrics)))
    console.print(Group(*blocks))


def _numbers(metrics: dict[str, Any]) -> Table:
    title = f"{metrics['n']} activations of {metrics['documents']} held-out documents, layer {metrics['layer']}"
    table = Table(title=title, title_justify="left")
    table.add_column("explanation")
    table.add_column("FVE", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_row("warm start, greedy", *cells(metrics["fve_warm_start"], metrics["fve_warm_start_ci95"]))
    table.add_row("this pair, greedy", *cells(metrics["fve"], metrics["fve_ci95"]), style="bold")
    table.add_row("  each dimension by its own variance", *cells(metrics["fve_whitened"], metrics["fve_whitened_ci95"]))
    table.add_row("this pair, sampled", *cells(metrics["fve_sampled"], metrics["fve_sampled_ci95"]))
    if "fve_above_warm_start" in metrics:
        gain = cells(metrics["fve_above_warm_start"], metrics["fve_above_warm_start_ci95"])
        table.add_row("greedy above the warm start", *gain)
    frozen = metrics["frozen_reconstructor"]
    if frozen["fve"] is not None:
        table.add_row("this pair's texts, warm start's reconstructor", *cells(frozen["fve"], frozen["ci95"]))
    for prefix in metrics["prefixes"]:
        table.add_row(f"this pair, first {prefix['tokens']} tokens", *cells(prefix["fve"], prefix["ci95"]))
    table.add_section()
    for name, label in CONTROLS.items():
        table.add_row(label, *cells(metrics["controls"][name]["fve"], metrics["controls"][name]["ci95"]))
    ceiling = metrics["ceiling"]["ground_truth"]
    if ceiling["fve"] is not None:
        table.add_section()
        table.add_row("all known facts (ceiling)", *cells(ceiling["fve"], ceiling["ci95"]))
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
