"""The jobs of a sweep side by side: one table, one plot, one file for programs.

runs/<name>/sweep/<overrides>/evaluation/metrics.json   each job
runs/<name>/sweep/summary.json  summary.png             all of them
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nla import files

METRICS = Path("evaluation", "metrics.json")
HEADLINES = {  # compared beside FVE: the path in metrics.json, and the column's title
    "true_share": (("claims", "true_share"), "true statements"),
    "position_match": (("position_match", "greedy", "same_document", "rank1"), "position match"),
    "kl_share": (("causal", "vectors", "explanation", "kl_share", "value"), "KL / mean's"),
    "next_word": (("next_words", "methods", "reconstruction", "hit@1", "value"), "next word"),
    "paraphrase_kept": (("robustness", "edits", "paraphrase", "kept", "value"), "kept in other words"),
}


def is_sweep(folder: Path) -> bool:
    """Whether `folder` contains the runs of a sweep and is not itself a pair."""
    return folder.is_dir() and not (folder / "verbalizer").is_dir() and any(folder.glob("*/nla/verbalizer"))


def job_folders(sweep: Path) -> list[Path]:
    """One folder per job, finished or not, in the order of their names."""
    return sorted(path for path in sweep.iterdir() if path.is_dir() and (path / "config.yaml").is_file())


def summarize(sweep: Path, console: Console) -> list[dict[str, Any]]:
    """Write summary.json and summary.png from the jobs' metrics and print the table. Jobs without a pair are listed."""
    rows = [_row(job) for job in job_folders(sweep)]
    rows += [_row(sweep / name) for name in sorted(_statuses(sweep)) if not (sweep / name / "config.yaml").is_file()]
    files.write_text(sweep / "summary.json", json.dumps(rows, indent=2) + "\n")
    shown = [name for name in HEADLINES if any(row[name] is not None for row in rows)]
    columns = [HEADLINES[name][1] for name in shown]
    table = Table("job", "layer", "FVE (95 %)", "sampled", "warm start", *columns, title=str(sweep))
    for row in rows:
        table.add_row(Text(row["job"]), *_cells(row, shown))
    console.print(table)
    for row in rows:
        if row["fve"] is None and row["again"]:
            console.print(Text(f"{row['job']}: {row['status']}; again: {row['again']}"))
    done = [row for row in rows if row["fve"] is not None]
    if done:
        plot(done, sweep / "summary.png")
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """FVE with its interval per job, the warm start beside it."""
    from matplotlib.figure import Figure

    layers = [row["layer"] for row in rows]
    by_layer = len(set(layers)) == len(layers)
    x = layers if by_layer else list(range(len(rows)))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    values = [row["fve"] for row in rows]
    # with a handful of documents a percentile interval can leave its own point outside
    below = [max(0.0, row["fve"] - row["fve_ci95"][0]) for row in rows]
    above = [max(0.0, row["fve_ci95"][1] - row["fve"]) for row in rows]
    axes.errorbar(x, values, yerr=[below, above], fmt="o-", capsize=4, label="after joint training (95 %)")
    warm = [row["fve_warm_start"] for row in rows]
    if all(value is not None for value in warm):
        axes.plot(x, warm, "s--", color="0.6", label="after the warm start")
    axes.axhline(0, color="0.8", linewidth=1)
    axes.set_xticks(x, [str(layer) for layer in layers] if by_layer else [row["job"] for row in rows])
    axes.set_xlabel("layer (block whose output is read)" if by_layer else "job")
    axes.set_ylabel("FVE on held-out documents")
    axes.legend(frameon=False)
    with files.new_file(path) as scratch:
        figure.savefig(scratch, dpi=150, format="png")


def _row(job: Path) -> dict[str, Any]:
    path = job / METRICS
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    listed = _statuses(job.parent).get(job.name, {})
    status = "evaluated" if metrics else ("not evaluated" if (job / "nla").is_dir() else listed.get("status"))
    keys = ("layer", "fve", "fve_ci95", "fve_sampled", "fve_warm_start", "cosine", "n", "documents", "seed")
    row: dict[str, Any] = {"job": job.name, "status": status or "not finished"}
    row |= {key: metrics.get(key) for key in keys}
    return row | {name: _at(metrics, path) for name, (path, _) in HEADLINES.items()} | {"again": listed.get("command")}


def _at(metrics: dict[str, Any], path: Sequence[str]) -> float | None:
    """The figure at this place; None where the suite did not run or had no answer."""
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _statuses(sweep: Path) -> dict[str, dict[str, str]]:
    """Each job as the sweep last ran it: `status` (`failed (status 1)`, `killed (SIGKILL)`, ...) and `command`."""
    path = sweep / "jobs.json"
    jobs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {job["job"]: job for job in jobs}


def _cells(row: dict[str, Any], headlines: Sequence[str]) -> list[str]:
    if row["fve"] is None:
        return ["-", row["status"], "-", "-", *("-" for _ in headlines)]

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    low, high = row["fve_ci95"]
    interval = f"{row['fve']:.3f} ({low:.3f} to {high:.3f})"
    return [str(row["layer"]), interval, *(number(row[key]) for key in ("fve_sampled", "fve_warm_start", *headlines))]
