"""The tables and explanations of README.md and docs/records/results.md that come from a run on a real language model.

    python benchmarks/real_table.py runs/smollm2 --seconds 3300 --peak 4.1

`--seconds` and `--peak` (GiB) are what `make smollm2` took. The text between the comments `<!-- smollm2 -->` and
`<!-- /smollm2 -->` is written anew.
"""

import argparse
import csv
import json
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from timing import ROOT
from world_table import brief, headline, interval, proven, table, write

NAME = "smollm2"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder, evaluated")
    parser.add_argument("--seconds", type=float, required=True, help="of `make smollm2` after installation")
    parser.add_argument("--peak", type=float, help="memory of `make smollm2`, GiB, where it was measured")
    parser.add_argument("--pages", type=Path, default=ROOT, help="folder of README.md and docs/records/results.md")
    arguments = parser.parse_args()
    run: Path = arguments.run
    m = json.loads((run / "evaluation/metrics.json").read_text(encoding="utf-8"))
    memory = "" if arguments.peak is None else f", {arguments.peak:.1f} GiB of memory"
    took = f"{arguments.seconds / 60:.0f} minutes with the packages in place{memory}."
    tables = f"{headline(m)}\n\n{claims(m)}\n\n{proven(m)}\n\n{remarks(m, run)}"
    write(arguments.pages / "README.md", f"{brief(m)}\n\n{took}\n\n{samples(run, 3)}", NAME)
    write(arguments.pages / "docs/records/results.md", f"{took}\n\n{tables}\n\n{samples(run, 10)}", NAME)
    return 0


def claims(m: dict[str, Any]) -> str:
    """Shares of true claims by kind, before and after joint training, and by chance."""
    after, before, chance = m["claims"], m["claims"]["warm_start"], m["claims"]["chance"]
    rows = []
    for kind in ("all", *sorted(after["by_kind"])):
        shares = [v if kind == "all" else v["by_kind"].get(kind) for v in (before, after, chance)]
        if not shares[1]["n"]:
            continue
        start, end, random = (
            "-" if v is None or v["true_share"] is None else interval(v["true_share"], v["true_share_ci95"])
            for v in shares
        )
        rows.append([kind, start, end, random, str(shares[1]["n"])])
    return table(["claims", "true, warm start", "true, after", "true by chance", "n"], *rows)


def remarks(m: dict[str, Any], run: Path) -> str:
    said = m["explanation"]
    read = last_validation(run / "stages/reconstructor/metrics.csv")
    top = m["top_dimensions"]
    match = m["position_match"]["greedy"]
    same, others = match["same_document"], match["other_documents"]
    return textwrap.fill(
        f"{m['n']} activations of {m['documents']} held-out speeches. Well-formed {said['well_formed']:.1%}, "
        f"{said['tokens_mean']:.0f} tokens. The reconstructor's warm start on the given texts of validation: FVE "
        f"{read['reconstructor/validation/fve']:.3f}, on another row's texts "
        f"{read['reconstructor/validation/fve_shuffled']:.3f}. With each dimension over its own variance the FVE is "
        f"{interval(m['fve_whitened'], m['fve_whitened_ci95'])}; the two largest dimensions hold "
        f"{top['variance_share']:.1%} of the variance. The last word is true if it is just that, an expected word if "
        "it is among the model's own 20 most probable; by chance: the same claims against another document. The "
        "reconstruction is nearer to its own activation than to those at "
        f"other positions of the same piece of text in {same['rank1']:.2f} of rows (by chance {same['chance']:.2f}), "
        f"and than to all {others['candidates'] - 1:.0f} of other speeches in {others['rank1']:.2f} (by chance "
        f"{others['chance']:.3f}).",
        118,
    )


def last_validation(path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("reconstructor/validation/fve")]
    return {key: float(value) for key, value in rows[-1].items() if value}


def samples(run: Path, count: int) -> str:
    """Evenly spaced rows by error, so that good and bad ones are among them."""
    rows = sorted(pq.read_table(run / "evaluation/samples.parquet").to_pylist(), key=lambda row: row["error"])
    shown = []
    for index in range(count):
        row = rows[round((index + 0.5) * len(rows) / count)]
        text = " ".join((row["explanation"] or "malformed").split())
        context = " ".join(row["text"][-110:].split())
        shown.append(f"> …{context}\n>\n> **{text}** (error {row['error']:.2f})")
    return (
        f"{count} explanations, each of the activation at the last token of the context shown, from good to bad (rows\n"
        "of `samples.parquet` evenly spaced by error; an orthogonal vector has error 2):\n\n" + "\n\n".join(shown)
    )


if __name__ == "__main__":
    raise SystemExit(main())
