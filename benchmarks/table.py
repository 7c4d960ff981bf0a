"""The tables of docs/records/benchmarks.md, from all files in benchmarks/results.

    python benchmarks/table.py

Each is written between two comments, `<!-- table -->` and `<!-- /table -->`, and with `gpu` the joint step on one GPU;
the rest of the page is not touched.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timing import RESULTS, ROOT

COLUMNS = ("what", "against", "ours", "other", "ratio", "to reach", "command", "date", "machine")
STEP_COLUMNS = ("trained", "rollout", "scoring", "update", "in all", "tokens/s", "MFU", "peak", "command")
MARKS = {  # ratios to reach; what is not named here is reported only
    "rollout_world": 5.0,
    "rollout_random": 4.0,
    "rollout_random_per_activation": 6.0,
    "reading": 8.0,
    "scoring": 1.5,
    "joint_step": 3.0,
}
AT_MOST = "growth_"  # of these, slopes of log time over log size, a smaller ratio is better: linear is 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/records/benchmarks.md")
    arguments = parser.parse_args()
    page: Path = arguments.page
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Benchmarks\n\n<!-- table -->\n<!-- /table -->\n"
    found = [line(row, run) for run in runs(arguments.results) for row in run["rows"]]
    steps = [step for path in sorted(arguments.results.glob("gpu_joint*.json")) for step in joint_step(path)]
    for name, lines in (("table", [COLUMNS, *found]), ("gpu", [STEP_COLUMNS, *steps])):
        before, begun, rest = text.partition(f"<!-- {name} -->")
        _, ended, after = rest.partition(f"<!-- /{name} -->")
        if begun and ended:
            head, *body = map(shown, lines)
            table = "\n".join([head, shown(["---"] * len(lines[0])), *body])
            text = f"{before}{begun}\n{table}\n{ended}{after}"
        elif name == "table" or steps:
            lacking = (
                f"{page} lacks the comments <!-- {name} --> and <!-- /{name} -->: put them where the table belongs"
            )
            print(lacking, file=sys.stderr)
            return 2
    page.write_text(text, encoding="utf-8")
    return 0


def joint_step(path: Path) -> list[list[str]]:
    """The seconds of a joint step's parts on a GPU, and under them what the hardware allows."""
    run = json.loads(path.read_text(encoding="utf-8"))
    f, parts = run["figures"], ("rollout", "scoring", "update")
    limits = [f[f"limit_{part}"] for part in parts]
    return [
        [
            f["trained"],
            *(f"{f['seconds'][part]:.2f} s" for part in parts),
            f"**{f['step']:.1f} s**",
            f"{f['tokens_per_second']:.0f}",
            f"{f['utilisation']:.0%}",
            f"{f['peak_gib']:.1f} GiB",
            f"`{run['command']}`",
        ],
        ["its limit", *(f"{limit:.2f} s" for limit in limits), f"{sum(limits):.1f} s", "", "", "", ""],
    ]


def runs(folder: Path) -> list[dict[str, Any]]:
    """The records of benchmarks; other measurements lie there too."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted((file for file in files if "rows" in file), key=order)


def order(run: dict[str, Any]) -> tuple[int, str]:
    """Those with marks first, in the order of the marks."""
    places = [index for index, key in enumerate(MARKS) if any(row["key"] == key for row in run["rows"])]
    return min(places, default=len(MARKS)), run["benchmark"]


def line(row: dict[str, Any], run: dict[str, Any]) -> list[str]:
    ours, other = (
        f"{row[way]:.3g} {row['unit']}".strip() if row[way] < 1000 else f"{row[way]:.0f} {row['unit']}"
        for way in ("ours", "other")
    )
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    about = run["machine"]
    cpu = f"{about['cpu']}, {about['cores_used']} core, load {about['load']:.1f}"
    machine = f"{about.get('gpu', cpu)}; {versions}"
    ratio = f"**{row['ratio']:.2f}**"
    return [row["what"], row["against"], ours, other, ratio, mark(row), f"`{run['command']}`", run["date"], machine]


def mark(row: dict[str, Any]) -> str:
    """The ratio to reach and whether it is."""
    if row["key"].startswith(AT_MOST):
        return f"≤ 1: {'yes' if row['ratio'] <= 1 else 'no'}"
    wanted = MARKS.get(row["key"])
    return "reported" if wanted is None else f"≥ {wanted:g}: {'yes' if row['ratio'] >= wanted else 'no'}"


def shown(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
