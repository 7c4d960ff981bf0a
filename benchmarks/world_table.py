"""The tables and explanations of README.md and docs/records/results.md that come from runs of the embedded world.

    python benchmarks/world_table.py runs/world runs/s1 runs/s2 --seconds 345 --peak 1.9

The first run is the demo's; `--seconds` and `--peak` (GiB) are what `make demo` took. The text between
`<!-- world -->` and `<!-- /world -->` is written anew, the rest of both pages is not touched.
"""

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from timing import ROOT

from nla.data.world import WorldSource
from nla.evaluation.suites.controls import CONTROLS
from nla.evaluation.verdicts import verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, evaluated; one for each seed from 0 on")
    parser.add_argument("--seconds", type=float, required=True, help="of `make demo` after installation")
    parser.add_argument("--peak", type=float, required=True, help="memory of `make demo`, GiB")
    parser.add_argument("--pages", type=Path, default=ROOT, help="folder of README.md and docs/records/results.md")
    arguments = parser.parse_args()
    pages: Path = arguments.pages
    evaluations = [json.loads((run / "evaluation/metrics.json").read_text(encoding="utf-8")) for run in arguments.runs]
    took = f"{arguments.seconds:.0f} s with the packages already in place, {arguments.peak:.1f} GiB of memory"
    demo = "\n\n".join(part(evaluations[0]) for part in (headline, texts, proven, remarks))
    write(pages / "README.md", f"{brief(evaluations[0])}\n\n{took}.\n\n{samples(arguments.runs[0], 2)}")
    sections = [
        f"{took}.",
        demo,
        samples(arguments.runs[0]),
        seeds(evaluations),
        kinds(evaluations, arguments.runs),
        marks(evaluations, arguments),
    ]
    write(pages / "docs/records/results.md", "\n\n".join(sections))
    return 0


def write(page: Path, text: str, name: str = "world") -> None:
    """Put a text between the two comments of its name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begun, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{page} lacks the comments {begin} and {end}: put them where the tables belong")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def table(*lines: list[str]) -> str:
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def interval(value: float | None, bounds: list[float] | None, bold: bool = False) -> str:
    if value is None:
        return "–"
    shown = f"**{value:.3f}**" if bold else f"{value:.3f}"
    return shown if bounds is None else f"{shown} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def brief(m: dict[str, Any]) -> str:
    """The few figures of the README."""
    controls = {
        about: m["controls"][name] for name, about in CONTROLS.items() if m["controls"][name]["fve"] is not None
    }
    about, best = max(controls.items(), key=lambda item: item[1]["fve"])
    after, before = m["claims"], m["claims"]["warm_start"]
    chance = after["chance"] or {}
    return table(
        [f"{m['n']} activations of {m['documents']} held-out documents", "(95 % interval)"],
        ["FVE of the explanations", interval(m["fve"], m["fve_ci95"], bold=True)],
        ["FVE before joint training", interval(m["fve_warm_start"], m["fve_warm_start_ci95"])],
        [f"FVE of the best control: {about}", interval(best["fve"], best["ci95"])],
        ["true statements", interval(after["true_share"], after["true_share_ci95"], bold=True)],
        ["true before joint training", interval(before["true_share"], before["true_share_ci95"])],
        [
            "true by chance (the same statements about another document)",
            interval(chance.get("true_share"), chance.get("true_share_ci95")),
        ],
    )


def headline(m: dict[str, Any]) -> str:
    rows = [
        ["after joint training, greedy", interval(m["fve"], m["fve_ci95"], bold=True)],
        ["after joint training, sampled", interval(m["fve_sampled"], m["fve_sampled_ci95"])],
        ["after the warm start, greedy", interval(m["fve_warm_start"], m["fve_warm_start_ci95"])],
    ]
    for name, about in CONTROLS.items():
        control = m["controls"][name]
        rows.append([f"control: {about}", interval(control["fve"], control["ci95"])])
    ceiling = m["ceiling"]["ground_truth"]
    if ceiling["fve"] is not None:
        rows.append(["the reconstructor on all known facts", interval(ceiling["fve"], ceiling["ci95"])])
    return table(["what", "FVE (95 % interval)"], *rows)


def proven(m: dict[str, Any]) -> str:
    """What the evaluation proves, and what it does not."""
    found = sorted(verdicts(m), key=lambda verdict: not verdict.proven)
    return table(["proven", "by this evaluation"], *(["yes" if each.proven else "no", each.text] for each in found))


def texts(m: dict[str, Any]) -> str:
    after, before = m["claims"], m["claims"]["warm_start"]
    said, start = m["explanation"], m["explanation"]["warm_start"]
    rows = [
        ["true statements", f"{before['true_share']:.3f}", f"{after['true_share']:.3f}"],
        ["recall of the known facts", f"{before['recall']:.2f}", f"{after['recall']:.2f}"],
        ["distinct kinds of fact per text", f"{before['kinds_per_text']:.1f}", f"{after['kinds_per_text']:.1f}"],
        ["repeated statements", f"{start['repeated_share']:.3f}", f"{said['repeated_share']:.3f}"],
        ["well-formed", f"{start['well_formed']:.3f}", f"{said['well_formed']:.3f}"],
        ["tokens", f"{start['tokens_mean']:.1f}", f"{said['tokens_mean']:.1f}"],
    ]
    return table(["explanations", "warm start", "after"], *rows)


def remarks(m: dict[str, Any]) -> str:
    claims = m["claims"]
    false = round(claims["n"] * (1 - claims["true_share"]))
    ending = claims["by_kind"].get("ending", {"n": 0, "true_share": 0.0})
    wrong = round(ending["n"] * (1 - (ending["true_share"] or 0.0)))
    guesses = round(claims["n"] * claims["unrevealed_share"])
    return textwrap.fill(
        f"A statement about a fact that the context has not revealed counts as false. Of {claims['n']} statements "
        f"{false} are false: {wrong} about the ending, the one fact that changes along the text, and {guesses} guesses "
        "at what is not revealed. The other, inflated definition of FVE (`fve_normalized_mean`) gives "
        f"{m['fve_normalized_mean']:.3f}; mean cosine {m['cosine']:.3f}; {m['n']} activations of {m['documents']} "
        "held-out documents.",
        118,
    )


def samples(run: Path, count: int = 5) -> str:
    rows = pq.read_table(run / "evaluation/samples.parquet").to_pylist()
    shown = []
    for row in rows[len(rows) // (2 * count) :: len(rows) // count][:count]:
        shown.append(f"> …{row['text'][-110:].strip()}\n>\n> **{row['explanation']}** (cosine {row['cosine']:.2f})")
    return (
        f"{count} explanations, each of the activation at the last token of the context shown (evenly spaced rows of\n"
        "`samples.parquet`; statements in them can be wrong):\n\n" + "\n\n".join(shown)
    )


def seeds(evaluations: list[dict[str, Any]]) -> str:
    columns = ["seed", "FVE greedy", "FVE sampled", "warm start", "true", "recall", "repeated", "well-formed"]
    rows = [
        [
            str(seed),
            interval(m["fve"], m["fve_ci95"]),
            interval(m["fve_sampled"], m["fve_sampled_ci95"]),
            f"{m['fve_warm_start']:.3f}",
            f"{m['claims']['true_share']:.3f}",
            f"{m['claims']['recall']:.3f}",
            f"{m['explanation']['repeated_share']:.3f}",
            f"{m['explanation']['well_formed']:.3f}",
        ]
        for seed, m in enumerate(evaluations)
    ]
    return table(columns, *rows)


def less_true(m: dict[str, Any]) -> list[str]:
    """Kinds less often true than at the warm start, beyond what comparing all of them gives by chance.

    The paired interval lies below 0, and Fisher's exact p is below 0.05 by Holm's correction for the number of kinds.
    """
    evaluations: dict[str, float] = {}
    for kind, after in m["claims"]["by_kind"].items():
        before = m["claims"]["warm_start"]["by_kind"].get(kind)
        if before and before["n"] and after["n"]:
            counts = [(round(part["n"] * part["true_share"]), part["n"]) for part in (after, before)]
            evaluations[kind] = fisher(*counts[0], *counts[1])
    worse = []
    for rank, kind in enumerate(sorted(evaluations, key=lambda kind: evaluations[kind])):
        if evaluations[kind] * (len(evaluations) - rank) >= 0.05:
            break
        bounds = (m["claims"]["change"]["by_kind"].get(kind) or {}).get("true_share_ci95")
        if bounds is not None and bounds[1] < 0:
            worse.append(kind)
    return worse


def fisher(one: int, of_one: int, other: int, of_other: int) -> float:
    """Two-sided p of two shares being one."""
    total, right = of_one + of_other, one + other

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def log_p(x: int) -> float:
        return log_choose(of_one, x) + log_choose(of_other, right - x) - log_choose(total, right)

    bound = log_p(one) + 1e-9
    possible = range(max(0, right - of_other), min(of_one, right) + 1)
    return sum(math.exp(log_p(x)) for x in possible if log_p(x) <= bound)


def named_by_both(run: Path) -> dict[str, tuple[float, float]]:
    """By kind, over the texts in which warm start and trained pair both name it: shares of true statements."""
    source = WorldSource({})
    true: dict[str, list[tuple[bool, bool]]] = {}
    for row in pq.read_table(run / "evaluation/samples.parquet").to_pylist():
        before, after = (
            {claim.kind: claim.true for claim in source.claims(row[column] or "", row["document"], row["text"])}
            for column in ("explanation_warm_start", "explanation")
        )
        for kind in before.keys() & after.keys():
            true.setdefault(kind, []).append((before[kind], after[kind]))
    return {
        kind: (sum(b for b, _ in pairs) / len(pairs), sum(a for _, a in pairs) / len(pairs))
        for kind, pairs in true.items()
    }


def kinds(evaluations: list[dict[str, Any]], runs: list[Path]) -> str:
    columns = ["kind", *(f"seed {seed}: before (n), after (n); both" for seed in range(len(evaluations)))]
    every = sorted({kind for m in evaluations for kind in m["claims"]["by_kind"]} - {"unparsed"})
    both = [named_by_both(run) for run in runs]

    def cell(m: dict[str, Any], shared: dict[str, tuple[float, float]], kind: str) -> str:
        sections = [m["claims"]["warm_start"]["by_kind"].get(kind), m["claims"]["by_kind"].get(kind)]
        shown = [f"{part['true_share']:.3f} ({part['n']})" if part and part["n"] else "– (0)" for part in sections]
        same = "; {:.3f}, {:.3f}".format(*shared[kind]) if kind in shared else ""
        return ", ".join(shown) + same

    return table(
        columns, *[[kind, *(cell(m, s, kind) for m, s in zip(evaluations, both, strict=True))] for kind in every]
    )


def marks(evaluations: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    def each(show: Any) -> str:
        return ", ".join(str(show(m)) for m in evaluations)

    best = max(
        c["fve"] for m in evaluations for c in (m["controls"][name] for name in CONTROLS) if c["fve"] is not None
    )
    rows = [
        ["FVE, greedy", "0.65 (0.70)", each(lambda m: f"{m['fve']:.3f}")],
        ["FVE, sampled", "0.60", each(lambda m: f"{m['fve_sampled']:.3f}")],
        ["above the warm start", "0.30", each(lambda m: f"{m['fve_above_warm_start']:.3f}")],
        ["every control clearly below", "yes", f"the best is {best:.3f}"],
        ["true statements", "85 %", each(lambda m: f"{m['claims']['true_share']:.1%}")],
        ["kinds of fact per text", "3", each(lambda m: f"{m['claims']['kinds_per_text']:.1f}")],
        ["repeated statements", "at most 5 %", each(lambda m: f"{m['explanation']['repeated_share']:.1%}")],
        ["well-formed", "95 %", each(lambda m: f"{m['explanation']['well_formed']:.1%}")],
        ["kinds less true than at the warm start", "none", each(lambda m: " and ".join(less_true(m)) or "none")],
        ["`make demo` after installation", "6 min, 3 GB", f"{arguments.seconds:.0f} s; {arguments.peak:.1f} GiB"],
    ]
    return table(["mark", "aim", "found, by seed"], *rows)


if __name__ == "__main__":
    sys.exit(main())
