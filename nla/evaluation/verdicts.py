"""What an evaluation proves and what it does not, a line each, from metrics.json alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from nla.evaluation.cells import cells
from nla.evaluation.suites.controls import CONTROLS

EARLY = 0.95  # of the claims must be true whatever the number of tokens read
FEWEST = 20  # claims behind a share that is judged


@dataclass(frozen=True, slots=True)
class Verdict:
    """`proven`: the 95% interval says so; False: it does not, or it says the opposite."""

    proven: bool
    text: str


def verdicts(metrics: dict[str, Any]) -> list[Verdict]:
    """Only about what was measured. Suites add theirs as `flags`, each a sentence about something found wrong."""
    found = [*_fve(metrics), *_match(metrics), *_claims(metrics)]
    for name, result in metrics.items():
        if isinstance(result, dict):
            found += [Verdict(False, f"{name}: {flag}") for flag in result.get("flags") or ()]
    return found


def _fve(metrics: dict[str, Any]) -> Iterator[Verdict]:
    if "fve_above_warm_start" in metrics:
        gain = metrics["fve_above_warm_start"], metrics["fve_above_warm_start_ci95"]
        yield Verdict(_above(gain[1], 0), f"joint training raised the FVE: by {_shown(*gain)}")
    below, equal = [], []
    for name, label in CONTROLS.items():
        interval, own = metrics["controls"][name]["ci95"], metrics["fve_ci95"]
        if interval is None or own is None:
            continue
        (below if own[0] > interval[1] else equal).append(label)
    if below:
        yield Verdict(True, f"the FVE is above, intervals apart: {', '.join(below)}")
    if equal:
        yield Verdict(False, f"the FVE is not clearly above: {', '.join(equal)}")


def _match(metrics: dict[str, Any]) -> Iterator[Verdict]:
    same = ((metrics.get("position_match") or {}).get("greedy") or {}).get("same_document")
    if same and same["n"]:
        text = f"positions of one text are told apart: {_shown(same['rank1'], same['ci95'])}, by chance"
        yield Verdict(_above(same["ci95"], same["chance"]), f"{text} {same['chance']:.3f}")


def _claims(metrics: dict[str, Any]) -> Iterator[Verdict]:
    claims = metrics.get("claims")
    if not claims or claims["true_share"] is None:
        return
    shown = _shown(claims["true_share"], claims["true_share_ci95"])
    chance = claims["chance"]
    if chance and chance["true_share_ci95"]:
        text = f"claims are true more often than by chance: {shown}, by chance {chance['true_share']:.3f}"
        yield Verdict(_above(claims["true_share_ci95"], chance["true_share_ci95"][1]), text)
    change = claims.get("change")
    if change and change["true_share_ci95"]:
        low, high = change["true_share_ci95"]
        if not low <= 0 <= high:
            direction = "truer" if low > 0 else "less true"
            shown = _shown(change["true_share"], change["true_share_ci95"])
            yield Verdict(low > 0, f"joint training made claims {direction}: {shown}")
    for name, part in claims.get("by_tokens_read", {}).items():
        if part["n"] >= FEWEST and part["true_share"] < EARLY:
            truth = _shown(part["true_share"], part["true_share_ci95"])
            yield Verdict(False, f"after {name} tokens fewer than {EARLY:.0%} of the claims are true: {truth}")


def _above(interval: list[float] | None, bound: float) -> bool:
    return interval is not None and interval[0] > bound


def _shown(value: float, interval: list[float] | None) -> str:
    figure, bounds = cells(value, interval)
    return f"{figure} ({bounds})"


def lines(found: list[Verdict]) -> Group:
    """For a terminal: what is proven, then what is not."""
    marks = {True: ("  yes  ", "green"), False: ("  no   ", "red")}
    ordered = sorted(found, key=lambda verdict: not verdict.proven)
    shown = [Text.assemble(marks[verdict.proven], verdict.text) for verdict in ordered]
    return Group(Text("\nWhat this evaluation proves", style="bold"), *shown)
